from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.governor import Action
from agent.device.readings import QUANTITIES, Readings, Recorded, read_recording
from agent.device.replay import replay
from agent.device.replay_plot import draw
from agent.errors import SettingsError
from agent.thresholds import GovernorSettings
from tests.device.test_governor import MONDAY, WELL
from tools.governor_week import week


def recording(*lines: tuple[float, Readings]) -> list[Recorded]:
    return [Recorded(MONDAY + timedelta(seconds=seconds), readings) for seconds, readings in lines]


def test_a_replay_says_what_would_have_run_when_and_why() -> None:
    found = replay(
        recording((0, WELL), (100, replace(WELL, on_battery=True)), (400, WELL), (1000, WELL)), GovernorSettings()
    )
    assert [(s.begins - MONDAY, s.seconds, s.action, s.codes) for s in found.stretches] == [
        (timedelta(0), 100, Action.RUN, ()),
        (timedelta(seconds=100), 360, Action.PAUSE, ("battery",)),
        (timedelta(seconds=460), 540, Action.RUN, ()),
    ]
    assert found.stretches[1].sentence == "waiting: on battery, 80 %; training resumes on mains"
    assert found.by_action == {"run": 640, "pause": 360}
    assert (found.by_reason, found.starts, found.seconds) == ({"battery": 360}, 2, 1000)


def test_a_gap_is_a_machine_that_was_off_and_no_minimum_time_passes_in_it() -> None:
    battery = replace(WELL, on_battery=True)
    found = replay(recording((0, battery), (10, WELL), (3610, WELL), (3650, WELL), (3680, WELL)), GovernorSettings())
    assert [(s.seconds, s.action) for s in found.stretches] == [
        (10, Action.PAUSE),
        (3600, None),
        (60, Action.PAUSE),
        (10, Action.RUN),
    ]


def test_readings_that_were_missing_are_counted() -> None:
    found = replay(recording((0, replace(WELL, metered=None)), (30, WELL), (120, WELL)), GovernorSettings())
    assert found.unknown == {"metered": 0.25}


def test_an_empty_recording_is_refused() -> None:
    with pytest.raises(SettingsError, match="empty"):
        replay([], GovernorSettings())
    with pytest.raises(SettingsError, match="single moment"):
        replay(recording((0, WELL), (0, WELL)), GovernorSettings())


values = {
    name: st.none()
    | (st.booleans() if name in {"on_battery", "undervoltage", "throttled", "metered"} else st.floats(0, 1e9))
    for name in QUANTITIES
}


@given(
    readings=st.builds(
        Readings, **values, temperature_zone=st.text(), absent=st.frozensets(st.sampled_from(QUANTITIES))
    ),
    at=st.datetimes(timezones=st.sampled_from([None, UTC, timezone(timedelta(hours=2))])),
)
def test_a_line_holds_what_was_recorded(readings: Readings, at: datetime) -> None:
    recorded = Recorded(at, readings)
    assert list(read_recording([recorded.to_line(), "\n"], name="x")) == [recorded]


def test_hours_that_the_clock_goes_back_in_autumn_are_lived_through_once() -> None:
    summer, winter = timezone(timedelta(hours=2)), timezone(timedelta(hours=1))
    lines = [
        Recorded(datetime(2026, 10, 25, 2, 50, tzinfo=summer), WELL).to_line(),
        Recorded(datetime(2026, 10, 25, 2, 5, tzinfo=winter), WELL).to_line(),
    ]
    found = replay(read_recording(lines, name="x"), GovernorSettings())
    assert found.seconds == 15 * 60


@pytest.mark.parametrize(
    "line",
    [
        *("nonsense", "[]", "3", '{"idle_seconds": 3}', '{"at": "soon"}', '{"at": 3}', "[" * 100_000),
        *('{"at": "2026-03-02", "absent": 3}', '{"at": "2026-03-02", "temperature_zone": []}'),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str) -> None:
    good = '{"at": "2026-03-01T00:00:00"}'
    with pytest.raises(SettingsError, match=r"line 2 of week\.jsonl"):
        list(read_recording([good, line], name="week.jsonl"))


def test_a_line_from_before_the_one_above_is_refused_and_odd_values_are_unknown() -> None:
    with pytest.raises(SettingsError, match="line 2 of x is from before"):
        list(read_recording(['{"at": "2026-03-02"}', '{"at": "2026-03-01"}'], name="x"))
    odd = {
        "at": "2026-03-02",
        "idle_seconds": "3",
        "charge_percent": -1,
        "metered": 1,
        "temperature_c": True,
        "wind": 3,
    }
    assert next(read_recording([json.dumps(odd)], name="x")).readings == Readings()


def test_the_synthetic_week_stays_the_same_and_is_replayed_and_drawn(tmp_path: Path) -> None:
    assert list(week(1)) == list(week(1)) != list(week(2))
    found = replay(week(1), GovernorSettings())
    assert found.seconds == pytest.approx(7 * 86_400, abs=60)
    assert 0.4 < found.by_action["run"] / found.seconds < 0.7
    assert {"owner", "battery", "busy", "temperature", "disk", "metered", "charge", "pressure"} == set(found.by_reason)
    assert all(s.begins + timedelta(seconds=s.seconds) <= MONDAY + timedelta(days=7) for s in found.stretches)
    draw(found, tmp_path / "week.png")
    assert (tmp_path / "week.png").read_bytes().startswith(b"\x89PNG")
