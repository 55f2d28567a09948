"""What holds for any readings at any times: no flapping, nothing forbidden, nothing forgotten, whoever asks when."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.device.governor import Action, Decision, Governor
from agent.device.readings import Readings
from agent.thresholds import GovernorSettings, Threshold
from tests.device.test_governor import MONDAY, WELL

LEVELS = {
    "owner": "idle_seconds",
    "charge": "charge_percent",
    "temperature": "temperature_c",
    "busy": "others_cpu_percent",
    "pressure": "memory_pressure_percent",
    "memory": "memory_available_percent",
    "disk": "disk_free_mb",
}
SWITCHES = {
    "battery": "on_battery",
    "undervoltage": "undervoltage",
    "throttled": "throttled",
    "metered": "metered",
}
TIMES = st.sampled_from([1.0, 5.0, 30.0, 120.0])
GRACE = st.sampled_from([0.0, 0.0, 7.0, 45.0])
RISING = {"temperature": (40, 100), "busy": (0, 100), "pressure": (0, 100)}
FALLING = {"owner": (2, 600), "charge": (0, 100), "memory": (0, 100), "disk": (0, 5000)}
HOURS = st.sampled_from(
    [
        {},
        {"open": ["22:00-07:00"]},
        {"open": ["00:10-00:20", "00:30-01:00"], "quiet": ["mon 00:35-00:40"]},
        {"quiet": ["mon-fri 00:05-00:06"]},
    ]
)


@st.composite
def governors(draw: st.DrawFn) -> GovernorSettings:
    """Give settings of any kind without contradictions."""
    tables: dict[str, object] = {
        "leave_after": draw(st.sampled_from([10, 300, 900])),
        "hours": {**draw(HOURS), "resume_after": draw(TIMES)},
    }
    for name, (low, high) in {**RISING, **FALLING}.items():
        first, second = sorted(draw(st.lists(st.integers(low, high), min_size=2, max_size=2, unique=True)))
        stop, resume = (second, first) if name in RISING else (first, second)
        tables[name] = {
            "enabled": draw(st.integers(0, 9)) > 0,
            "stop": stop,
            "resume": resume,
            "stop_after": draw(GRACE),
            "resume_after": draw(TIMES),
        }
    for name in SWITCHES:
        tables[name] = {"enabled": draw(st.booleans()), "resume_after": draw(TIMES)}
    return GovernorSettings.model_validate(tables)


READINGS = st.builds(
    Readings,
    idle_seconds=st.none() | st.sampled_from([0.0, 20.0, 9000.0]) | st.floats(0, 1000),
    on_battery=st.none() | st.booleans(),
    charge_percent=st.none() | st.floats(0, 100),
    temperature_c=st.none() | st.floats(20, 110),
    undervoltage=st.sampled_from([None, False, False, True]),
    throttled=st.sampled_from([None, False, False, True]),
    others_cpu_percent=st.none() | st.floats(0, 100),
    memory_pressure_percent=st.none() | st.sampled_from([0.0, 50.0]),
    memory_available_percent=st.none() | st.floats(0, 100),
    disk_free_mb=st.none() | st.sampled_from([100.0, 50_000.0]),
    metered=st.sampled_from([None, False, True]),
)
"""Each field by itself, so that one rule's coming and going is not hidden behind another's."""

ONE_FIELD = st.sampled_from([*LEVELS.values(), *SWITCHES.values()])


@st.composite
def weeks(draw: st.DrawFn) -> list[tuple[float, Readings]]:
    """Give seconds since the last readings, and readings: all well but for a few things, or anything at all."""
    names = draw(st.lists(ONE_FIELD, min_size=1, max_size=2)) if draw(st.booleans()) else None
    found = []
    for _ in range(draw(st.integers(1, 25))):
        anything = draw(READINGS)
        readings = anything if names is None else replace(WELL, **{name: getattr(anything, name) for name in names})
        found.append((draw(st.sampled_from([0.0, 0.5, 1.0, 6.0, 31.0, 119.0, 700.0])), readings))
    return found


@dataclass(frozen=True)
class Asked:
    seconds: float
    wall: datetime
    readings: Readings
    decision: Decision
    holds: dict[str, bool]


def live(table: GovernorSettings, week: list[tuple[float, Readings]]) -> list[Asked]:
    governor, seconds, found = Governor(table), 0.0, []
    for passed, readings in week:
        seconds += passed
        wall = MONDAY + timedelta(seconds=seconds)
        decision = governor.update(readings, monotonic=seconds, wall=wall)
        found.append(Asked(seconds, wall, readings, decision, {s.code: s.holds for s in governor.states}))
    return found


def resume_after(table: GovernorSettings, code: str) -> float:
    return float(getattr(table, code).resume_after)


@given(table=governors(), week=weeks())
def test_no_rule_lets_go_before_its_minimum_time_whatever_the_readings(
    table: GovernorSettings, week: list[tuple[float, Readings]]
) -> None:
    asked = live(table, week)
    for code in asked[0].holds:
        took_hold: float | None = None
        well_since: float | None = None
        last_closed = -math.inf  # hours may close and open between two looks, so that they held before it was seen
        for now in asked:
            well = is_open(table, now.wall) if code == "hours" else is_well(table, code, now.readings)
            well_since = now.seconds if well and well_since is None else well_since
            if now.holds[code] and took_hold is None:
                took_hold = now.seconds
            elif not now.holds[code] and took_hold is not None and code == "hours":
                assert now.seconds - last_closed >= resume_after(table, code)
                took_hold = None
            elif not now.holds[code] and took_hold is not None:
                assert well_since is not None
                assert now.seconds - took_hold >= resume_after(table, code)
                assert now.seconds - well_since >= resume_after(table, code)
                took_hold = None
            last_closed = now.seconds if code == "hours" and not well else last_closed
            well_since = well_since if well else None


@given(table=governors(), week=weeks())
def test_a_pause_lasts_at_least_the_shortest_minimum_time_of_what_began_it(
    table: GovernorSettings, week: list[tuple[float, Readings]]
) -> None:
    asked = live(table, week)
    for at, (before, now) in enumerate(pairwise(asked), start=1):
        if before.decision.action is not Action.RUN or now.decision.action is Action.RUN:
            continue
        if "hours" in now.holds and now.holds["hours"] and is_open(table, now.wall):
            continue  # they closed and opened between two looks: the pause began before it was seen
        end = next((later.seconds for later in asked[at:] if later.decision.action is Action.RUN), None)
        shortest = min(resume_after(table, r.code) for r in now.decision.reasons if r.effect != "transfers")
        assert end is None or end - now.seconds >= shortest


def is_bad(table: GovernorSettings, code: str, readings: Readings) -> bool:
    """Say whether a reading is where its rule stops training: an oracle of its own, from the settings alone."""
    if code in SWITCHES:
        return getattr(readings, SWITCHES[code]) is True
    value, stop = getattr(readings, LEVELS[code]), getattr(table, code).stop
    return value is not None and (value >= stop if code in RISING else value <= stop)


def is_open(table: GovernorSettings, wall: datetime) -> bool:
    """Say whether a moment is within the hours."""
    return bool(table.hours.week.minutes[wall.weekday() * 1440 + wall.hour * 60 + wall.minute])


def is_well(table: GovernorSettings, code: str, readings: Readings) -> bool:
    """Say whether a reading is where its rule lets training go on, or missing."""
    if code in SWITCHES:
        return not is_bad(table, code, readings)
    value, resume = getattr(readings, LEVELS[code]), getattr(table, code).resume
    return value is None or (value <= resume if code in RISING else value >= resume)


@given(table=governors(), week=weeks())
def test_training_never_runs_in_a_forbidden_state(table: GovernorSettings, week: list[tuple[float, Readings]]) -> None:
    bad_since: dict[str, float] = {}
    for now in live(table, week):
        for code in (*LEVELS, *SWITCHES):
            rule = getattr(table, code)
            if not is_bad(table, code, now.readings):
                bad_since.pop(code, None)
                continue
            since = bad_since.setdefault(code, now.seconds)
            grace = rule.stop_after if isinstance(rule, Threshold) else 0.0
            if rule.enabled and now.seconds - since >= grace:
                allowed = now.decision.transfers if code == "metered" else now.decision.action is Action.RUN
                assert not allowed, code
        assert is_open(table, now.wall) or now.decision.action is not Action.RUN


@given(table=governors(), week=weeks(), strange=st.lists(st.floats(-9000, 9000), min_size=25, max_size=25))
def test_training_never_runs_outside_hours_nor_shortens_a_minimum_time_however_the_clock_jumps(
    table: GovernorSettings, week: list[tuple[float, Readings]], strange: list[float]
) -> None:
    governor, seconds, took_hold = Governor(table), 0.0, dict[str, float]()
    for (passed, readings), jump in zip(week, strange, strict=False):
        seconds += passed
        wall = MONDAY + timedelta(seconds=seconds + jump)
        decision = governor.update(readings, monotonic=seconds, wall=wall)
        assert is_open(table, wall) or decision.action is not Action.RUN
        for state in governor.states:
            if state.code == "hours" and state.holds:  # they may have closed and opened again between two looks
                took_hold |= {} if is_open(table, wall) else {"hours": seconds}
            elif state.holds:
                took_hold.setdefault(state.code, seconds)
            elif state.code in took_hold:
                assert seconds - took_hold.pop(state.code) >= resume_after(table, state.code)


@given(table=governors(), week=weeks())
def test_training_always_runs_in_the_end_where_all_is_well(
    table: GovernorSettings, week: list[tuple[float, Readings]]
) -> None:
    all_well = replace(WELL, memory_available_percent=100, others_cpu_percent=0, charge_percent=100, temperature_c=20)
    governor = Governor(table)
    seconds = 0.0
    for passed, readings in week:
        seconds += passed
        governor.update(readings, monotonic=seconds, wall=MONDAY + timedelta(seconds=seconds))
    governor.update(all_well, monotonic=seconds, wall=MONDAY + timedelta(seconds=seconds))
    longest = max(rule.resume_after for rule in (getattr(table, code) for code in (*LEVELS, *SWITCHES, "hours")))
    settled = seconds + longest
    opens = table.hours.week
    while True:  # to where hours have been open for their minimum time, at most a week on
        moment = opens.at(MONDAY + timedelta(seconds=settled))
        if moment.open and (
            moment.since is None
            or (MONDAY + timedelta(seconds=settled) - moment.since).total_seconds() >= table.hours.resume_after
        ):
            break
        settled += 1 if moment.open else ((moment.until or MONDAY) - MONDAY).total_seconds() - settled
        assert settled < seconds + longest + 8 * 86_400
    decision = governor.update(all_well, monotonic=settled, wall=MONDAY + timedelta(seconds=settled))
    assert (decision.action, decision.transfers, decision.reasons) == (Action.RUN, True, ())


@given(table=governors(), week=weeks(), between=st.lists(st.floats(0.01, 0.99), min_size=25, max_size=25))
@settings(max_examples=200)
def test_asking_more_often_changes_no_decision(
    table: GovernorSettings, week: list[tuple[float, Readings]], between: list[float]
) -> None:
    seldom = live(table, week)
    often, last = Governor(table), None
    for now, share in zip(seldom, between, strict=False):
        if last is not None:
            for part in (share / 2, share):
                seconds = last.seconds + part * (now.seconds - last.seconds)
                often.update(last.readings, monotonic=seconds, wall=MONDAY + timedelta(seconds=seconds))
        again = often.update(now.readings, monotonic=now.seconds, wall=now.wall)
        assert _rounded(again) == _rounded(now.decision)
        last = now


def _rounded(decision: Decision) -> tuple[object, ...]:
    """Give a decision without the last digits of the seconds that it counts."""
    reasons = [(r.code, r.effect, r.what, None if r.seconds is None else round(r.seconds, 3)) for r in decision.reasons]
    return decision.action, decision.transfers, reasons, decision.unknown
