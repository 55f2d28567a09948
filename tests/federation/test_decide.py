from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent.federation.decide import Adopt, Fetch, Judge, Situation, Train, Wait, next_action
from agent.federation.messages import Announcement, Manifest

RELEASE = Manifest(number=3, sha256="a" * 64, parent="", size=10, round=2)
CANDIDATE = Manifest(number=4, sha256="b" * 64, parent="a" * 64, size=10, round=5)


def announced(phase: str, *, candidate: Manifest | None = None, seal_key: bytes = b"key") -> Announcement:
    return Announcement(
        sequence=1, round=5, phase=phase, deadline=0, release=RELEASE, candidate=candidate, seal_key=seal_key
    )


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
        case Adopt(release=release):
            assert release.sha256 in now.here
            assert release.sha256 not in now.declined
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
