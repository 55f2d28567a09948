"""The bill of materials and the audit: nothing is left out, and nothing is passed off as looked at."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tools.supply import audit
from tools.supply.audit import Verdict, judge
from tools.supply.bill import ROOT, environment, needed

_FINE = {"name": "numpy", "version": "2.0", "vulns": []}
_UNKNOWN = {"name": "torch", "skip_reason": "not found"}
_OURS = {"name": "bramble-agent", "skip_reason": "editable"}
_BAD = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}


def verdict_on(*rows: dict[str, Any]) -> Verdict:
    return judge(json.dumps({"dependencies": rows, "fixes": []}), "")


def test_known_vulnerability_fails_and_is_named() -> None:
    verdict = verdict_on(_FINE, _BAD)
    assert verdict.status == 1
    assert "old 1.0: PYSEC-1, PYSEC-2" in verdict.words()


def test_packages_that_the_service_does_not_know_are_named() -> None:
    verdict = verdict_on(_FINE, _UNKNOWN, _OURS)
    assert verdict.status == 0
    assert verdict.words().startswith("pip-audit: no known vulnerability in 1 packages")
    assert "torch" in verdict.words()
    assert "bramble-agent" not in verdict.words()


@pytest.mark.parametrize(
    "verdict", [judge("", "Traceback\nrequests.ConnectionError: no route"), verdict_on(_UNKNOWN, _OURS), verdict_on()]
)
def test_service_that_cannot_answer_fails_nothing_and_is_no_all_clear(verdict: Verdict) -> None:
    assert verdict.status == 0
    assert "NOT AUDITED" in verdict.words()


def test_verdict_holds_for_a_day_and_for_the_same_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "KEPT", tmp_path / "audit.json")
    asked: list[Verdict] = []

    def ask() -> Verdict:
        asked.append(verdict_on(_BAD))
        return asked[-1]

    monkeypatch.setattr(audit, "ask", ask)
    assert [audit.main(), audit.main()] == [1, 1]
    assert len(asked) == 1
    for change in ({"time": 0.0}, {"installed": ["other==1"]}):
        kept = json.loads(audit.KEPT.read_text())
        audit.KEPT.write_text(json.dumps({**kept, **change}))
        assert audit.main() == 1
    assert len(asked) == 3


def test_bill_lists_every_dependency_and_nothing_for_tests_alone() -> None:
    bill = needed(environment())
    named = {part["name"].lower().replace("_", "-") for part in bill["components"]}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=\[]", line)[0].lower().replace("_", "-") for line in declared} <= named
    assert "pydantic-core" in named
    assert not {"pytest", "ruff", "mypy", "bandit"} & named
    assert all(part["version"] for part in bill["components"])
