from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.federation.decide import Adopt, Fetch, Judge, Situation, Train, Wait, goes_on, next_action
from agent.federation.draw import limit_for, lot
from agent.federation.messages import Announcement, Manifest

RELEASE = Manifest(number=3, sha256="a" * 64, parent="", size=10, round=2)
CANDIDATE = Manifest(number=4, sha256="b" * 64, parent="a" * 64, size=10, round=5)


def announced(
    phase: str, *, candidate: Manifest | None = None, seal_key: bytes = b"key", number: int = 5, **more: Any
) -> Announcement:
    said = {"sequence": 1, "round": number, "phase": phase, "deadline": 0, "release": RELEASE}
    return Announcement.model_validate({**said, "candidate": candidate, "seal_key": seal_key, **more})


READY = Situation(
    announcement=announced("open"),
    adopted=(3, RELEASE.sha256),
    declined=frozenset(),
    here={RELEASE.sha256},
    sent_round=4,
    judged=frozenset(),
    has_text=True,
)
TRIAL = replace(READY, announcement=announced("trial", candidate=CANDIDATE, seal_key=b""), sent_round=5)


def test_device_that_has_everything_trains_for_the_open_round() -> None:
    assert next_action(READY) == Train(round=5, start=RELEASE, seal_key=b"key")


def test_device_waits_for_the_hubs_first_word() -> None:
    assert isinstance(next_action(replace(READY, announcement=None)), Wait)


def test_release_that_is_not_here_is_fetched_before_anything_else() -> None:
    assert next_action(replace(READY, here=frozenset(), adopted=None, has_text=False)) == Fetch(RELEASE)


def test_release_that_is_here_is_adopted_before_training() -> None:
    assert next_action(replace(READY, adopted=(2, "c" * 64))) == Adopt(RELEASE)


def test_release_that_was_declined_is_not_judged_again_but_trained_from() -> None:
    declined = replace(READY, adopted=(2, "c" * 64), declined={RELEASE.sha256})
    assert next_action(declined) == Train(round=5, start=RELEASE, seal_key=b"key")


def test_device_that_sent_its_update_waits_for_the_others() -> None:
    assert isinstance(next_action(replace(READY, sent_round=5)), Wait)


def test_device_without_text_adopts_and_does_nothing_else() -> None:
    assert isinstance(next_action(replace(READY, has_text=False)), Wait)
    assert next_action(replace(READY, has_text=False, adopted=None)) == Adopt(RELEASE)


def test_governor_that_says_no_is_quoted() -> None:
    assert next_action(replace(READY, training_allowed=False, reason="on battery")) == Wait("on battery")


def test_candidate_is_fetched_then_judged_then_left_alone() -> None:
    assert next_action(TRIAL) == Fetch(CANDIDATE)
    here = replace(TRIAL, here={RELEASE.sha256, CANDIDATE.sha256})
    assert next_action(here) == Judge(candidate=CANDIDATE, current=RELEASE, round=5)
    assert isinstance(next_action(replace(here, judged={CANDIDATE.sha256})), Wait)


def test_device_that_missed_the_round_judges_its_candidate_all_the_same() -> None:
    here = replace(TRIAL, here={RELEASE.sha256, CANDIDATE.sha256}, sent_round=0)
    assert isinstance(next_action(here), Judge)


def test_device_trains_for_the_next_round_where_the_hub_takes_updates_during_a_trial() -> None:
    trial = announced("trial", candidate=CANDIDATE, factors="b")
    busy = replace(TRIAL, announcement=trial, here={RELEASE.sha256, CANDIDATE.sha256})
    assert isinstance(next_action(busy), Judge)  # the others wait for this
    judged = replace(busy, judged={CANDIDATE.sha256})
    assert next_action(judged) == Train(round=6, start=RELEASE, seal_key=b"key", factors="b")
    assert isinstance(next_action(replace(judged, sent_round=6)), Wait)


def test_device_that_was_not_drawn_waits_and_says_so() -> None:
    names = [f"device-{number}" for number in range(9)]
    where = {"community": "c" * 32, "round_number": 5, "release": RELEASE.sha256}
    limit, _count = limit_for(names, 3, **where)  # type: ignore[arg-type]
    actions = {
        name: next_action(replace(READY, announcement=announced("open", draw=limit), device=name, community="c" * 32))
        for name in names
    }
    trains = {name for name, action in actions.items() if isinstance(action, Train)}
    assert len(trains) == 3
    assert all("drawn" in action.reason for action in actions.values() if isinstance(action, Wait))
    assert limit is not None
    assert max(lot(name, **where) for name in trains) < limit  # type: ignore[arg-type]


@pytest.mark.parametrize("withdrawn", [[(4, 6)], []])
def test_device_leaves_a_release_that_was_rolled_back_without_asking_its_text(
    withdrawn: list[tuple[int, int]],
) -> None:
    back = replace(READY, announcement=announced("open", withdrawn=withdrawn), adopted=(4, "c" * 64))
    assert next_action(back) == Adopt(RELEASE, anyway=True)
    assert next_action(replace(back, declined={RELEASE.sha256})) == Adopt(RELEASE, anyway=True)


def test_device_that_was_away_during_a_rollback_leaves_the_withdrawn_release_too() -> None:
    later = RELEASE.model_copy(update={"number": 9})
    back = replace(READY, announcement=announced("open", release=later, withdrawn=[(4, 6)]), adopted=(5, "c" * 64))
    assert next_action(back) == Adopt(later, anyway=True)
    assert next_action(replace(back, adopted=(8, "c" * 64))) == Adopt(later)


def test_device_leaves_a_release_that_a_restored_hub_does_not_remember_though_its_number_was_given_again() -> None:
    later = RELEASE.model_copy(update={"number": 9})
    back = replace(READY, announcement=announced("open", release=later), adopted=(8, "c" * 64))
    assert next_action(replace(back, orphaned="c" * 64)) == Adopt(later, anyway=True)
    assert next_action(replace(back, orphaned="d" * 64)) == Adopt(later)
    in_use = replace(back, adopted=(9, later.sha256), orphaned=later.sha256)
    assert isinstance(next_action(in_use), Train)


@pytest.mark.parametrize(
    ("seen", "max_staleness", "worth"),
    [
        (announced("open"), 0, True),
        (announced("merging"), 0, False),
        (announced("merging"), 1, True),
        (announced("trial", candidate=CANDIDATE), 1, True),
        (announced("open", number=6), 1, True),
        (announced("open", number=7), 1, False),
        (announced("closed"), 2, False),
        (announced("open", number=6, withdrawn=[(3, 3)]), 2, False),
        (announced("open", number=6, release=RELEASE.model_copy(update={"number": 2})), 2, False),
    ],
)
def test_training_goes_on_while_its_update_could_still_count(
    seen: Announcement,
    max_staleness: int,
    worth: bool,  # noqa: FBT001
) -> None:
    assert goes_on(5, RELEASE, seen, max_staleness=max_staleness) is worth


def test_announcement_between_which_and_the_next_the_hub_lost_its_memory_is_recognised() -> None:
    known = announced("open").model_copy(update={"sequence": 50})
    assert announced("open", forgotten=[(40, 60)]).forgets(known)
    assert not announced("open", forgotten=[(50, 60), (10, 20)]).forgets(known)
    assert not announced("open").forgets(known)


hashes = st.sampled_from([RELEASE.sha256, CANDIDATE.sha256, "c" * 64])
situations = st.builds(
    Situation,
    announcement=st.none()
    | st.builds(
        announced,
        st.sampled_from(["open", "merging", "trial", "closed"]),
        candidate=st.sampled_from([None, CANDIDATE]),
        seal_key=st.sampled_from([b"", b"key"]),
    ),
    adopted=st.none() | st.tuples(st.integers(0, 5), hashes),
    declined=st.frozensets(hashes),
    here=st.frozensets(hashes),
    sent_round=st.integers(0, 8),
    judged=st.frozensets(hashes),
    has_text=st.booleans(),
    training_allowed=st.booleans(),
    reason=st.just("the governor's word"),
)


@given(situations)
def test_every_situation_has_one_next_step_that_can_be_taken(now: Situation) -> None:
    action = next_action(now)
    match action:
        case Wait(reason=reason):
            assert reason
        case Fetch(manifest=manifest):
            assert manifest.sha256 not in now.here
        case Adopt(release=release, anyway=anyway):
            assert release.sha256 in now.here
            assert anyway or release.sha256 not in now.declined
        case Judge(candidate=candidate, current=current):
            assert {candidate.sha256, current.sha256} <= set(now.here)
            assert now.has_text
            assert candidate.sha256 not in now.judged
        case Train(round=number, start=start, seal_key=key):
            assert key
            assert start.sha256 in now.here
            assert number > now.sent_round
            assert now.has_text
            assert now.training_allowed


@given(situations)
def test_the_same_situation_gives_the_same_step(now: Situation) -> None:
    assert next_action(now) == next_action(replace(now))
