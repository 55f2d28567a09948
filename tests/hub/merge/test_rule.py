from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from agent.errors import MergeError
from agent.hub.merge import rule as rules
from agent.hub.merge.outer import PLAIN
from agent.hub.merge.rule import MergeRule, load_rule, merge
from agent.hub.merge.stack import StackRule
from agent.testing import BrokenPromiseError, check_merge_rule, random_adapter


def installed(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    entries = [EntryPoint(name=name, value=value, group=rules.ENTRY_POINTS) for name, value in values.items()]
    monkeypatch.setattr(rules, "entry_points", lambda *, group: entries if group == rules.ENTRY_POINTS else [])


def test_a_rule_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, other="agent.hub.merge.stack:StackRule")
    rule = load_rule("other")
    assert isinstance(rule, StackRule)
    assert isinstance(rule, MergeRule)


def test_a_built_in_rule_needs_no_installation_and_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, stack="builtins:dict")
    assert isinstance(load_rule("stack"), StackRule)


def test_an_unknown_rule_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, other="agent.hub.merge.stack:StackRule")
    with pytest.raises(MergeError, match=r"'median' \(installed: alternate, fedavg, ffa, other, stack\)"):
        load_rule("median")


@pytest.mark.parametrize("value", ["no.such.module:Rule", "agent.hub.merge.stack:NoSuchRule", "builtins:dict"])
def test_a_plug_in_that_does_not_work_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    installed(monkeypatch, broken=value)
    with pytest.raises(MergeError, match=r"broken|dict"):
        load_rule("broken")


def test_a_merge_without_updates_is_refused() -> None:
    with pytest.raises(MergeError, match="no update"):
        merge(StackRule(), random_adapter(), {})


def test_the_kit_names_the_promise_that_a_rule_breaks() -> None:
    class Forgetful(StackRule):
        def start(self, community, carry=b"", *, outer=PLAIN):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            return super().start(random_adapter(seed=len(carry), alpha=community.alpha + 1), outer=outer)

    with pytest.raises(BrokenPromiseError, match="rank, alpha, base"):
        check_merge_rule(Forgetful())
