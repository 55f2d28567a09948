from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hub.conduct import (
    BAD,
    FIRST_SECONDS,
    LONGEST_SECONDS,
    STRIKES,
    WITHIN,
    Conduct,
    strike,
)
from tests.hub.desk import Desk, make_desk

NOW = 1_700_000_000


def after(strikes: int, conduct: Conduct, now: int) -> Conduct:
    for _ in range(strikes):
        conduct = strike(conduct, "norm", now)
    return conduct


def test_device_is_set_aside_at_the_fifth_strike_of_a_day() -> None:
    conduct = after(STRIKES - 1, Conduct("ada"), NOW)
    assert conduct.until == 0
    assert strike(conduct, "norm", NOW + WITHIN + 1).strikes == 1  # a day later it begins anew
    set_aside = strike(conduct, "shape", NOW + WITHIN)
    assert (set_aside.until - NOW - WITHIN, set_aside.times, set_aside.reason) == (FIRST_SECONDS, 1, "shape")


def test_each_time_lasts_twice_as_long_up_to_a_week() -> None:
    conduct, now, lasted = Conduct("ada"), NOW, []
    for _ in range(12):
        conduct = after(STRIKES, conduct, now)
        lasted.append(conduct.until - now)
        now = conduct.until
    assert lasted[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert lasted[-1] == LONGEST_SECONDS


@given(st.lists(st.integers(0, 10**6), max_size=60))
def test_strikes_while_set_aside_make_it_no_longer(moments: list[int]) -> None:
    conduct = after(STRIKES, Conduct("ada"), NOW)
    for moment in moments:
        if NOW + moment < conduct.until:
            assert strike(conduct, "norm", NOW + moment) == conduct


def test_what_comes_late_or_twice_is_no_strike() -> None:
    normal = {"too-late", "round-closed", "rolled-back", "release-gone", "not-drawn", "already-counted", "superseded"}
    assert not BAD & {*normal, "replayed", "bad-signature", "wrong-kind", "future", "rate", "set-aside", "no-room"}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = make_desk(tmp_path)
    yield made
    made.close()


def test_what_is_held_against_a_device_outlives_a_restart_until_it_is_pardoned(desk: Desk) -> None:
    device, other = desk.names[:2]
    for _ in range(STRIKES):
        desk.store.add_strike(device, "not-finite", NOW)
    desk.store.add_strike(other, "norm", NOW)
    desk.reopen()
    assert desk.store.set_aside(NOW) == {device: NOW + FIRST_SECONDS}
    assert desk.store.set_aside(NOW + FIRST_SECONDS) == {}
    assert {name: row.strikes for name, row in desk.store.conducts().items()} == {device: 0, other: 1}
    assert desk.store.pardon(device, by="operator")
    assert not desk.store.pardon(device, by="operator")
    assert desk.store.set_aside(NOW) == {}
