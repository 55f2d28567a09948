from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "docs" / "threat-model.md"
DEFINED = re.compile(r"^\s*(?:async )?def (test_\w+)\(", re.MULTILINE)


def defined() -> set[str]:
    return {name for path in (ROOT / "tests").rglob("test_*.py") for name in DEFINED.findall(path.read_text())}


def cells() -> list[tuple[str, str, str]]:
    """Give the rows of the detailed tables: what is gained, what stops it, and what shows that."""
    detailed = MODEL.read_text().partition("### 1. ")[2]
    rows = re.findall(r"^\| (?!gains|---)([^|]+) \| ([^|]+) \|([^|]*)\|$", detailed, re.MULTILINE)
    return [(gain, stops, shown.strip()) for gain, stops, shown in rows]


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", MODEL.read_text()))
    assert len(named) > 50
    assert named - defined() == set()


def test_every_cell_names_a_test_or_says_that_it_is_not_protected() -> None:
    assert len(cells()) > 30
    for gain, stops, shown in cells():
        assert "`test_" in shown or "`make faults`" in shown or "**not protected" in stops, gain
