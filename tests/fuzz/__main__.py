"""`make fuzz`: every harness for a while, each in a process of its own, and a table of what came of it.

    python -m tests.fuzz [--seconds N] [--only TARGET ...] [--json FILE]

New inputs are kept in `.fuzz/corpus/TARGET` and are started from the next time; findings in `.fuzz/findings`, each with
the command that replays it. The status is 1 where there is one. JSON: `machine`, `seconds` (of each harness), `targets`
(rows of `target`, `executions`, `per_second`, `corpus_before`, `corpus_after`, `coverage`, `peak_mb`, `limit_mb`,
`slowest_s`, `finding`), `executions`, `elapsed_s`, `findings`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzz.target import CORPUS, REGRESSIONS, Target
from tests.fuzz.targets import all_targets

TARGETS = all_targets()
ROOM = Path(__file__).parents[2] / ".fuzz"
_STATISTIC = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)
_PROGRESS = re.compile(r"^#(\d+)\t\w+\s+cov: (\d+)", re.MULTILINE)
_LIMIT = re.compile(r"^memory limit: (\d+) MiB$", re.MULTILINE)
_ARTIFACT = re.compile(r"Test unit written to (\S+)")
_RAISED = re.compile(r"=== Uncaught Python exception: ===\n(.*)")
_LIBFUZZER = re.compile(r"ERROR: libFuzzer: (.*)")
_SETTLING_SECONDS = 300
"""For starting, reading the corpus, and stopping, beyond what a harness may take."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a decoder must not do.

    Attributes:
        what: the exception, or libFuzzer's word for it.
        input: the file with the bytes.
        replay: the command that does it again.
    """

    what: str
    input: str
    replay: str


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one harness; ``slowest_s`` is on the wall, in whole seconds, so other programs are in it, too."""

    target: str
    executions: int
    per_second: float
    corpus_before: int
    corpus_after: int
    coverage: int
    peak_mb: int
    limit_mb: int
    slowest_s: int
    finding: Finding | None


def main() -> int:
    """Run the harnesses that were asked for; 1 where one of them found something."""
    options = _options()
    if importlib.util.find_spec("atheris") is None:
        print(
            "atheris is not installed: run `make fuzz`, which installs it, or pip install --group fuzz.",
            file=sys.stderr,
        )
        return 2
    began = time.monotonic()
    rows: list[Row] = []
    for name in options.only or TARGETS:
        rows.append(run(TARGETS[name], seconds=options.seconds))
        print(_line(rows[-1]), file=sys.stderr, flush=True)
    report = {
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
        "seconds": options.seconds,
        "targets": [asdict(row) for row in rows],
        "executions": sum(row.executions for row in rows),
        "elapsed_s": round(time.monotonic() - began, 1),
        "findings": sum(row.finding is not None for row in rows),
    }
    _show(rows)
    if options.json:
        text = json.dumps(report, indent=2) + "\n"
        print(text, end="") if options.json == "-" else Path(options.json).write_text(text)
    return 1 if report["findings"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz every decoder.")
    parser.add_argument("--seconds", type=int, default=60, help="for each harness")
    parser.add_argument("--only", nargs="+", choices=sorted(TARGETS), metavar="TARGET")
    parser.add_argument("--json", metavar="FILE", help="- for standard output")
    return parser.parse_args()


def run(target: Target, *, seconds: int) -> Row:
    """Run one harness."""
    fresh, findings = ROOM / "corpus" / target.name, ROOM / "findings"
    for folder in (fresh, findings):
        folder.mkdir(parents=True, exist_ok=True)
    before = len(list(fresh.iterdir()))
    command = _command(
        target.name,
        f"-max_total_time={seconds}",
        f"-artifact_prefix={findings}/{target.name}-",
        *map(str, (fresh, *(root / target.name for root in (CORPUS, REGRESSIONS) if (root / target.name).is_dir()))),
    )
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds + _SETTLING_SECONDS, check=False)
        status, said = done.returncode, (done.stdout + done.stderr).decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        status, said = -1, (error.stderr or b"").decode(errors="replace") + "\nERROR: libFuzzer: it did not end"
    (ROOM / f"{target.name}.log").write_text(said)
    statistics = {name: int(value) for name, value in _STATISTIC.findall(said)}
    progress = _PROGRESS.findall(said)
    executions = statistics.get("number_of_executed_units") or (int(progress[-1][0]) if progress else 0)
    return Row(
        target=target.name,
        executions=executions,
        per_second=round(executions / seconds, 1),
        corpus_before=before,
        corpus_after=len(list(fresh.iterdir())),
        coverage=int(progress[-1][1]) if progress else 0,
        peak_mb=statistics.get("peak_rss_mb", 0),
        limit_mb=int(_LIMIT.findall(said)[0]) if _LIMIT.findall(said) else 0,
        slowest_s=statistics.get("slowest_unit_time_sec", 0),
        finding=_finding(target.name, said) if status else None,
    )


def _command(target: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz.harness", target, *arguments]


def _finding(target: str, said: str) -> Finding:
    """Read what a harness that ended with a status said last."""
    raised, error, written = (form.findall(said) for form in (_RAISED, _LIBFUZZER, _ARTIFACT))
    what = (raised or error or said.strip().splitlines()[-1:] or ["it ended without a word"])[0].strip()
    path = written[-1] if written else ""
    return Finding(what=what, input=path, replay=f"python -m tests.fuzz.harness {target} {path}".strip())


def _line(row: Row) -> str:
    grown = row.corpus_after - row.corpus_before
    words = f"{row.target:<20} {row.executions:>10,} runs {row.per_second:>9,.0f}/s  +{grown}"
    return f"{words}  FOUND {row.finding.what}\n{'':<20} {row.finding.replay}" if row.finding else words


def _show(rows: Sequence[Row]) -> None:
    table = Table("target", "executions", "a second", "new inputs", "coverage", "memory (of at most)", "finding")
    for column in table.columns[1:6]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.target,
            f"{row.executions:,}",
            f"{row.per_second:,.0f}",
            f"{row.corpus_after - row.corpus_before:,}",
            f"{row.coverage:,}",
            f"{row.peak_mb} ({row.limit_mb}) MiB",
            row.finding.what if row.finding else "none",
        )
    table.add_section()
    table.add_row("all", f"{sum(row.executions for row in rows):,}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    sys.exit(main())
