from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.governance.charter import RoundRules
from agent.hub.rounds import (
    FOLLOWERS,
    MAX_TRIAL_EXTENSIONS,
    MAX_WIDENINGS,
    RoundState,
    Tally,
    after_merge,
    begin,
    ended,
    step,
    wanted_in,
)

RULES = RoundRules(quorum=2, target=3, collect_seconds=100, trial_seconds=10)
BUFFERED = RoundRules(mode="asynchronous", buffer=4, quorum=2, target=3, collect_seconds=100, trial_seconds=10)
OPEN = RoundState(number=1, phase="open", deadline=100.0)
COLLECTING = replace(OPEN, phase="collecting")
TRIAL = RoundState(number=1, phase="trial", deadline=110.0)


def test_round_opens_with_its_deadline_and_closes_after_the_last() -> None:
    assert begin(1, RULES, 0.0, last_round=None) == OPEN
    assert begin(3, RULES, 0.0, last_round=3).phase == "open"
    closed = begin(4, RULES, 0.0, last_round=3)
    assert (closed.phase, closed.number) == ("closed", 3)
    assert step(closed, Tally(fresh=9), RULES, 10**9) == closed


def test_round_collects_from_its_first_update_on_late_or_not() -> None:
    assert step(OPEN, Tally(), RULES, 0.0) == OPEN
    assert step(OPEN, Tally(fresh=9), RULES, 0.0) == COLLECTING
    assert step(OPEN, Tally(late=1), RULES, 0.0) == COLLECTING


@pytest.mark.parametrize(
    ("tally", "phase"),
    [
        (Tally(fresh=2), "collecting"),
        (Tally(fresh=3), "merging"),
        (Tally(fresh=9), "merging"),
        (Tally(fresh=2, late=9), "collecting"),  # nobody had time to train for this round yet
    ],
)
def test_round_merges_at_once_when_its_target_of_fresh_updates_is_reached(tally: Tally, phase: str) -> None:
    after = step(COLLECTING, tally, RULES, 0.0)
    assert isinstance(after, RoundState)
    assert after.phase == phase


def test_deadline_merges_with_a_quorum_to_which_late_updates_count() -> None:
    assert step(COLLECTING, Tally(fresh=2), RULES, 99.9) == COLLECTING
    for tally in (Tally(fresh=2), Tally(fresh=1, late=1), Tally(late=2)):
        assert step(COLLECTING, tally, RULES, 100.0) == replace(COLLECTING, phase="merging")
    longer = step(COLLECTING, Tally(fresh=1), RULES, 150.0)
    assert longer == replace(COLLECTING, deadline=250.0, extended=1)


def test_asynchronous_round_merges_when_its_buffer_is_full_whatever_the_updates_started_from() -> None:
    assert step(COLLECTING, Tally(fresh=2, late=1), BUFFERED, 0.0) == COLLECTING
    full = step(COLLECTING, Tally(fresh=2, late=2), BUFFERED, 0.0)
    assert full == replace(COLLECTING, phase="merging")
    assert step(COLLECTING, Tally(fresh=2), BUFFERED, 100.0) == full  # a buffer that does not fill has a deadline too


def test_round_with_a_draw_is_full_when_everybody_who_was_drawn_is_in() -> None:
    drawn = replace(COLLECTING, draw=7, drawn=2)
    assert step(drawn, Tally(fresh=1), RULES, 0.0) == drawn
    assert step(drawn, Tally(fresh=2), RULES, 0.0) == replace(drawn, phase="merging")


def test_draw_widens_with_every_deadline_that_passed_without_a_quorum() -> None:
    rules = RULES.model_copy(update={"wanted": 5})
    assert [wanted_in(replace(OPEN, extended=times), rules) for times in range(3)] == [5, 10, 20]
    assert wanted_in(replace(OPEN, extended=MAX_WIDENINGS + 1), rules) is None
    assert wanted_in(OPEN, RULES) is None
    assert wanted_in(OPEN, rules.model_copy(update={"wanted": 1})) == RULES.quorum  # fewer could never merge
    assert wanted_in(OPEN, rules.model_copy(update={"mode": "asynchronous"})) is None


def test_clock_that_was_set_back_does_not_keep_a_round_open_for_years() -> None:
    later = replace(OPEN, deadline=1.7e9)
    assert step(later, Tally(), RULES, 5.0) == replace(later, deadline=105.0)
    assert step(replace(TRIAL, deadline=1.7e9), Tally(), RULES, 5.0) == replace(TRIAL, deadline=15.0)


def test_merging_and_ended_rounds_ask_the_hub_to_do_something() -> None:
    assert step(replace(OPEN, phase="merging"), Tally(), RULES, 0.0) == "merge"
    assert step(ended(TRIAL, "promoted"), Tally(), RULES, 0.0) == "next"
    assert step(ended(TRIAL, "rejected"), Tally(), RULES, 0.0) == "next"
    assert step(ended(COLLECTING, "rolled-back"), Tally(), RULES, 0.0) == "next"


def test_trial_is_decided_when_everybody_who_took_part_has_judged() -> None:
    assert step(TRIAL, Tally(verdicts=1, unheard=1), RULES, 100.0) == TRIAL
    assert step(TRIAL, Tally(verdicts=2, unheard=0), RULES, 100.0) == "decide"
    assert step(TRIAL, Tally(), RULES, 100.0) == TRIAL


def test_trial_is_decided_at_its_deadline_with_a_verdict_or_after_enough_waiting() -> None:
    assert step(TRIAL, Tally(verdicts=1, unheard=5), RULES, 110.0) == "decide"
    assert step(TRIAL, Tally(unheard=5), RULES, 110.0) == replace(TRIAL, deadline=120.0, extended=1)
    tired = replace(TRIAL, extended=MAX_TRIAL_EXTENSIONS)
    assert step(tired, Tally(unheard=5), RULES, 110.0) == "decide"


states = st.builds(
    RoundState,
    number=st.integers(1, 9),
    phase=st.sampled_from(sorted(FOLLOWERS)),
    deadline=st.floats(0, 300),
    extended=st.integers(0, 5),
    draw=st.none() | st.integers(0, 2**63 - 1),
    drawn=st.integers(0, 5),
)
tallies = st.builds(Tally, *[st.integers(0, 9)] * 4)


@given(states, tallies, st.sampled_from([RULES, BUFFERED]), st.floats(0, 1000))
def test_every_step_is_legal_and_taking_it_again_after_a_crash_gives_the_same(
    state: RoundState, tally: Tally, rules: RoundRules, now: float
) -> None:
    after = step(state, tally, rules, now)
    assert step(state, tally, rules, now) == after
    if isinstance(after, RoundState):
        assert after.number == state.number
        assert after.phase == state.phase or after.phase in FOLLOWERS[state.phase]
        assert after.phase != "merging" or tally.fresh + tally.late >= rules.quorum


@given(states, tallies, st.sampled_from([RULES, BUFFERED]), st.floats(0, 1000))
def test_steps_come_to_an_end_without_more_coming_in(
    state: RoundState, tally: Tally, rules: RoundRules, now: float
) -> None:
    for _ in range(4):
        after = step(state, tally, rules, now)
        if not isinstance(after, RoundState) or after == state:
            return
        state = after
    raise AssertionError(f"{state} goes on for ever")


def test_trial_begins_with_a_deadline_of_its_own() -> None:
    merged = after_merge(replace(OPEN, phase="merging", draw=3, drawn=1, extended=2), RULES, 50.0)
    assert merged == RoundState(number=1, phase="trial", deadline=60.0)
