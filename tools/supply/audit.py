"""Asks for known vulnerabilities of everything that is installed: ``python -m tools.supply.audit``.

A vulnerability that is known fails (status 1). That nobody could be asked does not, but it is said, and so is every
package that the service does not know: nothing is passed off as looked at. What was said holds for a day, or until
other versions are installed, so that `make check` asks once a day.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

KEPT = Path(".audit.json")
DAY = 86_400.0
PATIENCE = 300
_OWN = frozenset({"bramble-agent"})
_MANY = 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit found.

    Attributes:
        audited: how many packages the service knows and was asked about.
        skipped: names of the others, our own left out.
        vulnerable: ``package version: advisory, …``, in order.
        failure: why nobody could be asked; empty where somebody was.
    """

    audited: int = 0
    skipped: Sequence[str] = ()
    vulnerable: Sequence[str] = ()
    failure: str = ""

    @property
    def status(self) -> int:
        """What the command ends with."""
        return 1 if self.vulnerable else 0

    def words(self) -> str:
        """Say it to a person."""
        if self.vulnerable:
            return "pip-audit: known vulnerabilities:\n  " + "\n  ".join(self.vulnerable)
        if self.failure or not self.audited:
            why = self.failure or "it knows none of the packages"
            return f"pip-audit: NOT AUDITED: the advisory service could not answer ({why}). This is no all-clear."
        left = f"; NOT audited, for it does not know them: {_listed(self.skipped)}" if self.skipped else ""
        return f"pip-audit: no known vulnerability in {self.audited} packages{left}"


def main() -> int:
    """Give the verdict of today, asking for it where there is none yet."""
    installed = sorted({f"{found.name}=={found.version}" for found in metadata.distributions()})
    verdict = _kept(installed)
    if verdict is None:
        verdict = ask()
        KEPT.write_text(json.dumps({"time": time.time(), "installed": installed, "verdict": asdict(verdict)}) + "\n")
    print(verdict.words(), file=sys.stderr)
    return verdict.status


def ask() -> Verdict:
    """Run pip-audit."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "5"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(failure=f"no answer within {PATIENCE} seconds")
    return judge(done.stdout, done.stderr)


def judge(report: str, said: str) -> Verdict:
    """Read what pip-audit wrote: a report, or nothing and its complaint."""
    try:
        rows: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        return Verdict(failure=last[0][:200])
    return Verdict(
        audited=sum("skip_reason" not in row for row in rows),
        skipped=[row["name"] for row in rows if "skip_reason" in row and row["name"] not in _OWN],
        vulnerable=[
            f"{row['name']} {row['version']}: {', '.join(found['id'] for found in row['vulns'])}"
            for row in rows
            if row.get("vulns")
        ],
    )


def _kept(installed: Sequence[str]) -> Verdict | None:
    """Give a verdict of the last day on the same packages."""
    try:
        kept = json.loads(KEPT.read_text())
        fresh = 0 <= time.time() - kept["time"] < DAY and kept["installed"] == installed
        return Verdict(**kept["verdict"]) if fresh else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more


if __name__ == "__main__":
    sys.exit(main())
