"""Writes the bill of materials: ``python -m tools.supply.bill FILE`` (CycloneDX 1.6, JSON).

It lists what `bramble-agent` needs to run, directly or through others, in the versions that are installed here. What is
installed for tests and checks alone is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OWN = "bramble-agent"
ROOT = Path(__file__).parents[2]


def main() -> int:
    """Write it where the command line says."""
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    bill = needed(environment())
    target.write_text(json.dumps(bill, indent=2, sort_keys=True) + "\n")
    print(f"{target}: {len(bill['components'])} components", file=sys.stderr)
    return 0


def environment() -> dict[str, Any]:
    """Give the bill of everything that is installed, with this project as its root."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    options = ["--mc-type", "application", "--output-reproducible", "--output-format", "JSON", "--no-validate"]
    done = subprocess.run([*command, *options, sys.executable], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def needed(bill: dict[str, Any]) -> dict[str, Any]:
    """Keep what this project needs; the graph in the bill also follows extras that nobody asked for."""
    names = closure(OWN)
    refs = {part["bom-ref"] for part in bill["components"] if canonicalize_name(part["name"]) in names}
    refs.add(bill["metadata"]["component"]["bom-ref"])
    return {
        **bill,
        "components": [part for part in bill["components"] if part["bom-ref"] in refs],
        "dependencies": [
            {**row, "dependsOn": sorted(refs.intersection(row.get("dependsOn", ())))}
            for row in bill["dependencies"]
            if row["ref"] in refs
        ],
    }


def closure(root: str) -> set[str]:
    """Give the normalised names of all that an installed package needs here, directly or through others."""
    found: set[tuple[str, str]] = set()
    waiting = [(root, "")]
    while waiting:
        package = waiting.pop()
        if package in found:
            continue
        found.add(package)
        name, extra = package
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting.extend((canonicalize_name(requirement.name), wanted) for wanted in ("", *requirement.extras))
    return {name for name, _extra in found} - {root}


if __name__ == "__main__":
    sys.exit(main())
