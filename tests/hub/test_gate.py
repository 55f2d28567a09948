from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from agent.governance.charter import RoundRules
from agent.hub.gate import GateDecision, Judgement, gate, group_size

RULES = RoundRules(quorum=2, target=3)


def judged(before: float, after: float, *, device: str = "a", targets: int = 100) -> Judgement:
    return Judgement(device=device, before=before, after=after, targets=targets)


def community(better: int, worse: int, *, after: float = 3.0) -> GateDecision:
    """Let some devices get better and some much worse, all with the same amount of text."""
    fine = [judged(2.0, 1.9, device=f"fine-{number}") for number in range(better)]
    return gate([*fine, *(judged(2.0, after, device=f"hurt-{number}") for number in range(worse))], RULES)


def test_gate_promotes_what_helps_and_rejects_what_harms() -> None:
    assert gate([judged(2.0, 1.9)], RULES).promote
    assert not gate([judged(2.0, 2.01)], RULES).promote
    assert not gate([], RULES).promote


def test_median_may_get_worse_by_the_charters_tolerance_and_no_more() -> None:
    assert gate([judged(2.0, 2.0)], RULES).promote
    tolerant = RULES.model_copy(update={"tolerance": 1 / 32})
    assert gate([judged(1.0, 1 + 1 / 32)], tolerant).promote
    assert not gate([judged(1.0, 1 + 1.01 / 32)], tolerant).promote


def test_gate_is_not_moved_by_one_device_that_says_everything_is_wonderful() -> None:
    honest = [judged(2.0, 2.02, device="a"), judged(2.0, 2.01, device="b")]
    liar = judged(2.0, 0.0, device="c", targets=2**40)
    assert not gate([*honest, liar], RULES).promote


def test_in_a_small_community_one_device_that_would_get_much_worse_is_protected() -> None:
    decision = gate([*(judged(2.0, 1.5, device=name) for name in "abc"), judged(2.0, 2.2, device="d")], RULES)
    assert not decision.promote
    assert decision.reason.startswith("device d ")
    assert (decision.group, decision.harmed) == (1, 1)


def test_in_a_large_community_one_device_that_is_wrong_or_lies_stops_nothing() -> None:
    assert community(better=4, worse=1, after=1000.0).promote
    assert community(better=99, worse=12).promote


def test_a_group_that_would_get_much_worse_stops_a_candidate_that_helps_most() -> None:
    decision = community(better=87, worse=13)
    assert not decision.promote
    assert "13 of 100 devices" in decision.reason
    assert decision.median_change < 0


verdicts = st.lists(
    st.builds(
        Judgement,
        device=st.text("abc", min_size=1, max_size=3),
        before=st.floats(0, 1000),
        after=st.floats(0, 1000),
        targets=st.integers(1, 10**6),
    ),
    max_size=8,
)


@given(verdicts, st.data())
def test_gate_decides_the_same_in_any_order_and_never_promotes_without_a_quorum(
    found: list[Judgement], data: st.DataObject
) -> None:
    decision = gate(found, RULES)
    shuffled = data.draw(st.permutations(found))
    assert gate(shuffled, RULES).promote == decision.promote
    assert decision.reason
    if decision.promote:
        assert len(found) >= RULES.trial_quorum
        assert decision.median_change <= RULES.tolerance


@given(verdicts)
def test_no_group_of_a_quarter_has_a_majority_that_a_promoted_candidate_harms(found: list[Judgement]) -> None:
    """However the group is drawn, of that size or larger."""
    decision = gate(found, RULES)
    harmed_somewhere = any(
        2 * sum(verdict.change > RULES.harm_limit for verdict in group) > len(group)
        for size in range(group_size(len(found)), len(found) + 1)
        for group in combinations(found, size)
        if group
    )
    if decision.promote:
        assert not harmed_somewhere
    elif len(found) >= RULES.trial_quorum and decision.median_change <= RULES.tolerance:
        assert harmed_somewhere
