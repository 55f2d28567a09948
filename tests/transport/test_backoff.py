from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.transport.backoff import STEADY_SECONDS, SUSPICIOUS, Backoff


def bounds(backoff: Backoff, count: int) -> list[float]:
    return [backoff.wait() for _ in range(count)]


@pytest.fixture
def bound() -> Backoff:
    """Draws the bound itself."""
    return Backoff(first=1.0, most=8.0, draw=lambda _least, most: most)


def test_the_bound_doubles_and_stops_growing(bound: Backoff) -> None:
    assert bounds(bound, 6) == [1, 2, 4, 8, 8, 8]


def test_waits_are_spread_from_nothing_to_the_bound() -> None:
    chance = random.Random(7)
    for attempt in range(6):
        drawn = []
        for _ in range(300):
            backoff = Backoff(first=1.0, most=8.0, draw=chance.uniform)
            drawn.append(bounds(backoff, attempt + 1)[-1])
        most = min(8.0, 2.0**attempt)
        assert 0 <= min(drawn) < 0.1 * most
        assert 0.9 * most < max(drawn) <= most
        assert sum(drawn) / len(drawn) == pytest.approx(most / 2, rel=0.15)


def test_a_connection_that_held_begins_the_bound_anew_and_a_short_one_does_not(bound: Backoff) -> None:
    bounds(bound, 3)
    bound.broke(after=STEADY_SECONDS / 2, taken_over=False)
    assert bound.wait() == 8
    bound.broke(after=STEADY_SECONDS, taken_over=False)
    assert bound.wait() == 1


def test_after_a_takeover_the_wait_is_long_at_once_and_grows_to_an_hour() -> None:
    waits: list[tuple[float, float]] = []

    def draw(least: float, most: float) -> float:
        waits.append((least, most))
        return most

    backoff = Backoff(first=1.0, most=60.0, draw=draw)
    for _ in range(9):
        backoff.broke(after=30.0, taken_over=True)
        backoff.wait()
    assert waits[:3] == [(30, 60), (60, 120), (120, 240)]
    assert waits[-2:] == [(1800, 3600)] * 2


def test_an_attempt_that_fails_after_a_takeover_is_followed_by_an_ordinary_wait(bound: Backoff) -> None:
    bound.broke(after=1.0, taken_over=True)
    assert bounds(bound, 2) == [8, 1]


def fight(*, told: bool) -> list[float]:
    """When, in a day, two links throw each other out; the broker tells them so, or not."""
    chance = random.Random(3)
    links = [Backoff(first=1.0, most=60.0, draw=chance.uniform) for _ in range(2)]
    now, held = 0.0, 0.0
    takeovers: list[float] = []
    while now < 24 * 3600:
        out = len(takeovers) % 2
        links[out].broke(after=held, taken_over=told)
        held = links[out].wait()
        now += held
        takeovers.append(now)
    return takeovers


def test_two_that_share_an_id_and_are_told_come_to_take_turns_rarely() -> None:
    takeovers = fight(told=True)
    assert sum(when < 3600 for when in takeovers) < 15
    assert sum(when > 23 * 3600 for when in takeovers) <= 3


def test_two_that_share_an_id_and_are_not_told_come_to_rest_at_the_longest_bound() -> None:
    takeovers = fight(told=False)
    last_hour = sum(when > 23 * 3600 for when in takeovers)
    assert 60 < last_hour < 200  # every half minute on average


def test_a_line_that_breaks_every_half_minute_is_mended_at_once(bound: Backoff) -> None:
    for _ in range(20):
        bound.broke(after=30.0, taken_over=False)
        assert bound.wait() == 1


def test_connections_that_keep_breaking_are_suspicious_until_one_holds(bound: Backoff) -> None:
    for _ in range(SUSPICIOUS):
        assert not bound.suspicious
        bound.broke(after=0.1, taken_over=False)
    assert bound.suspicious
    bound.broke(after=STEADY_SECONDS, taken_over=False)
    assert not bound.suspicious


@given(st.lists(st.one_of(st.none(), st.tuples(st.floats(0, 1e9), st.booleans())), max_size=200))
def test_no_wait_is_negative_or_longer_than_an_hour(steps: list[tuple[float, bool] | None]) -> None:
    backoff = Backoff(first=1.0, most=60.0)
    for step in steps:
        if step is None:
            assert 0 <= backoff.wait() <= 3600
        else:
            backoff.broke(after=step[0], taken_over=step[1])
