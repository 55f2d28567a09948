from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hours import DAYS, MINUTES_A_WEEK, WeekHours

MONDAY = datetime(2026, 3, 2)  # noqa: DTZ001 (the clock on the wall)


def at(day: str, clock: str) -> datetime:
    hour, minute = clock.split(":")
    return MONDAY + timedelta(days=DAYS.index(day), hours=int(hour), minutes=int(minute))


def test_hours_over_midnight_belong_to_the_day_on_which_they_begin() -> None:
    week = WeekHours.of(["fri 22:00-07:00"])
    assert [week.at(at(*when)).open for when in (("fri", "21:59"), ("fri", "22:00"), ("sat", "06:59"))] == [0, 1, 1]
    assert not week.at(at("sat", "07:00")).open
    assert not week.at(at("thu", "23:00")).open


def test_hours_over_the_end_of_the_week_go_on_on_monday() -> None:
    moment = WeekHours.of(["sun 22:00-07:00"]).at(at("mon", "00:30"))
    assert moment.open
    assert moment.since == MONDAY - timedelta(hours=2)
    assert moment.until == at("mon", "07:00")


def test_days_are_lists_and_ranges_that_may_go_over_sunday() -> None:
    assert WeekHours.of(["sat,sun,mon 08:00-09:00"]) == WeekHours.of(["sat-mon 08:00-09:00"])
    assert WeekHours.of(["mon-sun 00:00-24:00"]) == WeekHours.of([]) == WeekHours.of(["00:00-24:00"])


def test_quiet_hours_are_taken_out_of_those_that_are_open() -> None:
    week = WeekHours.of(["08:00-18:00"], ["wed 12:00-13:00"])
    assert week.at(at("wed", "11:59")).until == at("wed", "12:00")
    assert not week.at(at("wed", "12:30")).open
    assert week.at(at("tue", "12:30")).open
    assert week.longest == 600


def test_a_week_that_never_changes_has_no_next_change() -> None:
    moment = WeekHours.of([]).at(MONDAY)
    assert (moment.open, moment.since, moment.until) == (True, None, None)


@pytest.mark.parametrize(
    "text", ["", "22-7", "25:00-26:00", "22:60-23:00", "mo 10:00-11:00", "mon- 10:00-11:00", "24:00-01:00", "8:00-8:00"]
)
def test_hours_that_make_no_sense_are_refused_and_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        WeekHours.of([text])


CLOCK = st.integers(0, 23 * 60 + 59).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
INTERVAL = st.tuples(st.sampled_from(["", "mon ", "sat,sun ", "fri-tue "]), CLOCK, CLOCK)
INTERVALS = st.lists(
    INTERVAL.filter(lambda found: found[1] != found[2]).map(lambda f: f"{f[0]}{f[1]}-{f[2]}"), max_size=3
)


@given(hours=INTERVALS, quiet=INTERVALS, minute=st.integers(0, MINUTES_A_WEEK - 1))
def test_what_is_said_of_a_moment_is_what_the_minutes_say(hours: list[str], quiet: list[str], minute: int) -> None:
    week = WeekHours.of(hours, quiet)
    when = MONDAY + timedelta(minutes=minute, seconds=31)
    moment = week.at(when)
    assert moment.open == bool(week.minutes[minute])
    if moment.since is None or moment.until is None:
        assert len(set(week.minutes)) == 1
        return
    assert moment.since <= when < moment.until
    inside = range(
        int((moment.since - MONDAY).total_seconds()) // 60, int((moment.until - MONDAY).total_seconds()) // 60
    )
    assert {week.minutes[at % MINUTES_A_WEEK] for at in inside} == {week.minutes[minute]}
    assert week.at(moment.until).open != moment.open
    assert week.at(moment.since - timedelta(seconds=1)).open != moment.open
