from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from agent.device.governor import Action, Decision, Governor
from agent.device.latch import Signal
from agent.device.readings import QUANTITIES, Readings
from agent.device.rules import Effect
from agent.thresholds import GovernorSettings

MONDAY = datetime(2026, 3, 2)  # noqa: DTZ001 (the clock on the wall)
WELL = Readings(
    idle_seconds=9000,
    on_battery=False,
    charge_percent=80,
    temperature_c=45,
    undervoltage=False,
    throttled=False,
    others_cpu_percent=3,
    memory_pressure_percent=0,
    memory_available_percent=60,
    disk_free_mb=50_000,
    disk_used_mb=100,
    metered=False,
    bytes_today=0,
)


class Bench:
    """A governor with two clocks that one moves by hand."""

    def __init__(self, *, begins: datetime = MONDAY, **settings: object) -> None:
        self.governor = Governor(GovernorSettings.model_validate(settings))
        self.seconds = 0.0
        self.wall = begins

    def after(self, seconds: float, readings: Readings, *, wall_seconds: float | None = None) -> Decision:
        self.seconds += seconds
        self.wall += timedelta(seconds=seconds if wall_seconds is None else wall_seconds)
        return self.governor.update(readings, monotonic=self.seconds, wall=self.wall)


BAD = {
    "disk": ({"disk_free_mb": 900}, "900 MB free on the disk; training resumes with 2.0 GB free"),
    "battery": (
        {"on_battery": True, "charge_percent": 61},
        "on battery, 61 %; training resumes on mains",
    ),
    "charge": ({"charge_percent": 25}, "battery at 25 %; training resumes at 40 %"),
    "undervoltage": (
        {"undervoltage": True},
        "the power supply is too weak; training resumes when the voltage is right",
    ),
    "throttled": ({"throttled": True}, "the processor holds itself back; training resumes at full speed"),
    "temperature": (
        {"temperature_c": 91, "temperature_zone": "gpu-thermal"},
        "the processor is at 91 °C (gpu-thermal); training resumes at 70 °C",
    ),
    "pressure": ({"memory_pressure_percent": 30}, "programs wait for memory 30 % of the time; training resumes at 2 %"),
    "memory": ({"memory_available_percent": 5}, "5 % of the memory is left; training resumes with 20 % left"),
    "busy": ({"others_cpu_percent": 70}, "other programs use 70 % of the processor; training resumes at 25 %"),
    "owner": ({"idle_seconds": 1}, "you are using this machine; training resumes 3 min 10 s after your last input"),
}


@pytest.mark.parametrize("code", BAD)
def test_each_rule_stops_training_says_why_and_lets_go_after_its_minimum_time(code: str) -> None:
    values, sentence = BAD[code]
    bench = Bench()
    assert bench.after(0, WELL).action is Action.RUN
    rule = getattr(GovernorSettings(), code)
    bad = replace(WELL, **values)  # type: ignore[arg-type]
    bench.after(10, bad)
    stopped = bench.after(getattr(rule, "stop_after", 0), bad)
    assert stopped.action is (Action.LEAVE if code in {"pressure", "memory"} else Action.PAUSE)
    assert [reason.code for reason in stopped.reasons] == [code]
    assert stopped.sentence.startswith(f"waiting: {sentence}")
    waits = bench.after(60, WELL)
    assert waits.action is not Action.RUN
    assert waits.reasons[0].seconds == rule.resume_after
    assert f"training resumes in {'10 min' if rule.resume_after == 600 else ''}" in waits.sentence
    assert bench.after(rule.resume_after - 0.5, WELL).action is not Action.RUN
    assert bench.after(0.5, WELL).action is Action.RUN


def test_the_owners_return_stops_training_at_once_and_a_pause_in_typing_does_not_start_it() -> None:
    bench = Bench()
    bench.after(0, WELL)
    assert bench.after(1, replace(WELL, idle_seconds=0.2)).action is Action.PAUSE
    assert bench.after(100, replace(WELL, idle_seconds=100)).action is Action.PAUSE
    assert bench.after(80, replace(WELL, idle_seconds=180)).action is Action.PAUSE
    assert bench.after(10, replace(WELL, idle_seconds=190)).action is Action.RUN


def test_a_short_peak_of_other_programs_does_not_stop_training() -> None:
    bench = Bench()
    bench.after(0, WELL)
    assert bench.after(5, replace(WELL, others_cpu_percent=100)).action is Action.RUN
    assert bench.after(9, WELL).action is Action.RUN
    bench.after(5, replace(WELL, others_cpu_percent=100))
    assert bench.after(10, replace(WELL, others_cpu_percent=100)).action is Action.PAUSE


def test_a_long_pause_gives_the_memory_back_until_training_runs_again() -> None:
    bench = Bench(leave_after=900)
    bench.after(0, replace(WELL, on_battery=True))
    assert bench.after(899, replace(WELL, on_battery=True)).action is Action.PAUSE
    assert bench.after(1, replace(WELL, on_battery=True)).action is Action.LEAVE
    assert bench.after(59, WELL).action is Action.LEAVE
    assert bench.after(60, WELL).action is Action.RUN
    assert bench.after(1, replace(WELL, on_battery=True)).action is Action.PAUSE


def test_memory_that_was_given_back_is_not_asked_for_while_another_reason_holds() -> None:
    bench = Bench()
    bench.after(0, replace(WELL, memory_pressure_percent=50))
    bench.after(10, replace(WELL, on_battery=True))
    decision = bench.after(600, replace(WELL, on_battery=True))
    assert [reason.code for reason in decision.reasons] == ["battery"]
    assert decision.action is Action.LEAVE


def test_a_metered_network_holds_transfers_and_not_training_unless_the_owner_says_so() -> None:
    metered = replace(WELL, metered=True)
    decision = Bench().after(0, metered)
    assert (decision.action, decision.transfers) == (Action.RUN, False)
    assert decision.sentence == (
        "training may run. Transfers wait: the network is metered; transfers resume on another network"
    )
    strict = Bench(metered={"forbids": "training"}).after(0, metered)
    assert strict.action is Action.PAUSE
    assert strict.transfers is True


def test_the_bytes_of_a_day_hold_transfers_until_midnight() -> None:
    bench = Bench(begins=MONDAY + timedelta(hours=23), limits={"bytes_a_day": 2_000_000})
    assert bench.after(0, replace(WELL, bytes_today=1_999_999)).transfers
    spent = bench.after(10, replace(WELL, bytes_today=2_000_000))
    assert (spent.transfers, spent.action) == (False, Action.RUN)
    assert "2.0 of 2.0 MB a day have travelled; transfers resume after midnight" in spent.sentence
    bench.after(3600, WELL)
    assert bench.after(60, WELL).transfers


def test_brambles_own_space_has_a_limit_where_the_owner_sets_one() -> None:
    bench = Bench(limits={"disk_mb": 3000})
    assert bench.after(0, replace(WELL, disk_used_mb=3000)).reasons[0].code == "disk-limit"
    bench.after(10, replace(WELL, disk_used_mb=2850))
    assert bench.after(60, replace(WELL, disk_used_mb=2850)).action is Action.RUN


def test_hours_begin_and_end_by_the_clock_on_the_wall_and_say_when() -> None:
    bench = Bench(begins=MONDAY + timedelta(hours=6, minutes=59), hours={"open": ["22:00-07:00"]})
    assert bench.after(0, WELL).action is Action.RUN
    closed = bench.after(60, WELL)
    assert closed.sentence == "waiting: outside the hours for training; training resumes at 22:00"
    assert bench.after(15 * 3600, WELL).action is not Action.RUN
    assert bench.after(60, WELL).action is Action.RUN


def test_hours_that_open_on_another_day_name_the_day() -> None:
    bench = Bench(begins=MONDAY, hours={"open": ["sat,sun 00:00-24:00"]})
    assert "training resumes on Saturday at 00:00" in bench.after(0, WELL).sentence


def test_a_clock_that_jumps_opens_hours_but_shortens_no_minimum_time() -> None:
    bench = Bench(hours={"open": ["22:00-07:00"], "resume_after": 60}, begins=MONDAY + timedelta(hours=12))
    bench.after(0, replace(WELL, on_battery=True))
    bench.after(1, WELL, wall_seconds=12 * 3600)
    waits = bench.after(1, WELL)
    assert {reason.code for reason in waits.reasons} == {"hours", "battery"}
    assert bench.after(59, WELL, wall_seconds=-600).action is Action.RUN


def test_a_monotonic_clock_that_goes_back_does_no_harm() -> None:
    governor = Governor(GovernorSettings())
    governor.update(replace(WELL, on_battery=True), monotonic=1000, wall=MONDAY)
    governor.update(WELL, monotonic=500, wall=MONDAY)
    assert governor.update(WELL, monotonic=1059, wall=MONDAY).action is Action.PAUSE
    assert governor.update(WELL, monotonic=1060, wall=MONDAY).action is Action.RUN


def test_a_reading_that_nobody_gives_forbids_nothing_and_is_named() -> None:
    decision = Bench().after(0, Readings(absent=frozenset({"undervoltage", "throttled"})))
    assert decision.action is Action.RUN
    assert set(decision.unknown) == set(QUANTITIES) - {"undervoltage", "throttled", "disk_used_mb", "bytes_today"}


def test_a_reading_that_gets_lost_while_it_stops_training_lets_go_after_the_minimum_time_and_says_so() -> None:
    bench = Bench()
    bench.after(0, replace(WELL, temperature_c=90))
    lost = bench.after(10, replace(WELL, temperature_c=None))
    assert lost.action is Action.PAUSE
    assert "temperature is not known any more; training resumes in 2 min" in lost.sentence
    assert bench.after(120, replace(WELL, temperature_c=None)).action is Action.RUN


def test_what_lies_between_the_levels_at_the_start_waits_until_it_is_well() -> None:
    bench = Bench()
    assert bench.after(0, replace(WELL, temperature_c=80)).reasons[0].code == "temperature"
    bench.after(60, replace(WELL, temperature_c=69))
    assert bench.after(120, replace(WELL, temperature_c=80)).action is Action.RUN


def test_all_reasons_are_given_and_the_owners_presence_comes_last() -> None:
    decision = Bench().after(0, replace(WELL, on_battery=True, charge_percent=10, idle_seconds=0))
    assert [reason.code for reason in decision.reasons] == ["battery", "charge", "owner"]
    assert decision.sentence == "waiting: on battery, 10 %; training resumes on mains (and 2 more reasons)"


def test_a_rule_that_is_switched_off_forbids_nothing() -> None:
    bench = Bench(battery={"enabled": False})
    assert bench.after(0, replace(WELL, on_battery=True)).action is Action.RUN


def test_new_settings_take_effect_at_once_and_keep_what_holds() -> None:
    bench = Bench()
    bench.after(0, replace(WELL, temperature_c=90, others_cpu_percent=90))
    bench.governor.adopt(GovernorSettings.model_validate({"busy": {"enabled": False}, "temperature": {"stop": 95}}))
    kept = bench.after(1, replace(WELL, temperature_c=90))
    assert [reason.code for reason in kept.reasons] == ["temperature"]
    bench.governor.adopt(GovernorSettings.model_validate({"charge": {"stop": 85, "resume": 90}}))
    assert "charge" in {reason.code for reason in bench.after(1, WELL).reasons}


def test_the_state_of_every_rule_can_be_seen() -> None:
    bench = Bench()
    bench.after(0, WELL)
    bench.after(1, replace(WELL, others_cpu_percent=90, on_battery=True, metered=None))
    states = {state.code: state for state in bench.governor.states}
    assert (states["busy"].holds, states["busy"].signal, states["busy"].seconds) == (False, Signal.STOP, 10)
    assert (states["battery"].holds, states["battery"].seconds) == (True, None)
    assert (states["metered"].signal, states["metered"].effect) == (Signal.UNKNOWN, Effect.TRANSFERS)


def test_a_decision_gives_programs_codes_and_people_a_sentence() -> None:
    found = Bench().after(0, replace(WELL, on_battery=True)).as_dict()
    assert found["action"] == "pause"
    assert found["reasons"] == [
        {
            "code": "battery",
            "effect": "pause",
            "what": "on battery, 80 %",
            "resumes": "on mains",
            "seconds": None,
            "sentence": "on battery, 80 %; training resumes on mains",
        }
    ]
