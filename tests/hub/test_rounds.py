from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.governance.charter import RoundRules
from agent.hub.rounds import (
    MAX_TRIAL_EXTENSIONS,
    Judgement,
    RoundState,
    after_deadline,
    after_merge,
    after_update,
    begin,
    gate,
    trial_complete,
)

RULES = RoundRules(quorum=2, target=3, collect_seconds=100, trial_seconds=10)
OPEN = RoundState(number=1, phase="open", deadline=100.0)
TRIAL = RoundState(number=1, phase="trial", deadline=110.0)


def judged(before: float, after: float, *, device: str = "a", targets: int = 100) -> Judgement:
    return Judgement(device=device, before=before, after=after, targets=targets)


def test_round_opens_with_its_deadline_and_closes_after_the_last() -> None:
    assert begin(1, RULES, 0.0, last_round=None) == OPEN
    assert begin(3, RULES, 0.0, last_round=3).phase == "open"
    closed = begin(4, RULES, 0.0, last_round=3)
    assert (closed.phase, closed.number) == ("closed", 3)


@pytest.mark.parametrize(("accepted", "phase"), [(0, "open"), (2, "open"), (3, "merging"), (9, "merging")])
def test_round_merges_at_once_when_its_target_is_reached(accepted: int, phase: str) -> None:
    assert after_update(OPEN, accepted, RULES).phase == phase


def test_update_after_the_round_changes_nothing() -> None:
    assert after_update(TRIAL, 9, RULES) == TRIAL


def test_deadline_merges_with_a_quorum_and_waits_without_one() -> None:
    assert after_deadline(OPEN, accepted=2, verdicts=0, rules=RULES, now=99.9) == OPEN
    assert after_deadline(OPEN, accepted=2, verdicts=0, rules=RULES, now=100.0) == replace(OPEN, phase="merging")
    longer = after_deadline(OPEN, accepted=1, verdicts=0, rules=RULES, now=150.0)
    assert longer == RoundState(number=1, phase="open", deadline=250.0, extended=1)


def test_trial_is_decided_at_its_deadline_with_a_verdict_or_after_enough_waiting() -> None:
    assert after_deadline(TRIAL, accepted=2, verdicts=1, rules=RULES, now=110.0) == "decide"
    longer = after_deadline(TRIAL, accepted=2, verdicts=0, rules=RULES, now=110.0)
    assert longer == RoundState(number=1, phase="trial", deadline=120.0, extended=1)
    tired = replace(TRIAL, extended=MAX_TRIAL_EXTENSIONS)
    assert after_deadline(tired, accepted=2, verdicts=0, rules=RULES, now=110.0) == "decide"


def test_trial_is_complete_when_everybody_who_took_part_has_judged() -> None:
    verdicts = {"a": judged(2, 1), "c": judged(2, 1, device="c")}
    assert not trial_complete(["a", "b"], verdicts, RULES)
    assert trial_complete(["a", "c"], verdicts, RULES)
    assert not trial_complete([], {}, RULES)


def test_gate_promotes_what_helps_and_rejects_what_harms() -> None:
    assert gate([judged(2.0, 1.9)], RULES).promote
    assert not gate([judged(2.0, 2.01)], RULES).promote
    assert not gate([], RULES).promote


def test_gate_is_not_moved_by_one_device_that_says_everything_is_wonderful() -> None:
    honest = [judged(2.0, 2.02, device="a"), judged(2.0, 2.01, device="b")]
    liar = judged(2.0, 0.0, device="c", targets=2**40)
    assert not gate([*honest, liar], RULES).promote


def test_gate_protects_the_one_device_that_would_get_much_worse() -> None:
    fine = [judged(2.0, 1.5, device=name) for name in "abc"]
    decision = gate([*fine, judged(2.0, 2.2, device="d")], RULES)
    assert not decision.promote
    assert "d" in decision.reason


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
        assert decision.worst_change <= RULES.harm_limit


class Rounds(RuleBasedStateMachine):
    """A hub that may be killed between any two steps: what it knows is the state and two counts."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.state = begin(1, RULES, self.now, last_round=4)
        self.accepted = 0
        self.verdicts = 0
        self.merged: list[tuple[int, int]] = []

    @precondition(lambda self: self.state.phase == "open")
    @rule(died=st.booleans())
    def update_is_counted(self, *, died: bool) -> None:
        self.accepted += 1
        if not died:  # killed before it could say so: the clock's next step must find out
            self.state = after_update(self.state, self.accepted, RULES)

    @precondition(lambda self: self.state.phase == "trial")
    @rule()
    def verdict_comes(self) -> None:
        self.verdicts += 1

    @rule(seconds=st.sampled_from([0.5, 10, 120]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.state = after_update(self.state, self.accepted, RULES)
        after = after_deadline(self.state, accepted=self.accepted, verdicts=self.verdicts, rules=RULES, now=self.now)
        if after == "decide":
            assert self.state.phase == "trial"
            self.state = begin(self.state.number + 1, RULES, self.now, last_round=4)
            self.accepted = self.verdicts = 0
        else:
            assert after.number == self.state.number
            self.state = after

    @precondition(lambda self: self.state.phase == "merging")
    @rule(times=st.integers(1, 3))
    def merge_happens_perhaps_again_after_a_crash(self, times: int) -> None:
        for _ in range(times):
            after = after_merge(self.state, RULES, self.now)
        self.merged.append((self.state.number, self.accepted))
        self.state = after

    @invariant()
    def no_merge_is_below_the_quorum_and_no_round_is_merged_twice(self) -> None:
        assert all(accepted >= RULES.quorum for _number, accepted in self.merged)
        assert len({number for number, _accepted in self.merged}) == len(self.merged)

    @invariant()
    def rounds_only_go_forward_and_deadlines_lie_ahead(self) -> None:
        assert 1 <= self.state.number <= 4
        assert self.state.phase in {"closed", "merging"} or self.state.deadline > self.now - 120

    def teardown(self) -> None:
        """Whatever happened, time and devices bring it to its end."""
        for _ in range(60):
            if self.state.phase == "closed":
                return
            if self.state.phase == "open":
                self.update_is_counted(died=True)
            elif self.state.phase == "merging":
                self.merge_happens_perhaps_again_after_a_crash(times=1)
            else:
                self.verdict_comes()
            self.time_passes(seconds=120)
        raise AssertionError(f"the community hangs in {self.state}")


TestRounds = Rounds.TestCase
