from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from agent.device.sensors import sensor as sensor_module
from agent.device.sensors.sensor import Given, Measured, Place, Plain, Sensor, SensorFailedError
from agent.device.sensors.watch import RETRY_SECONDS, Watch, sensors_of
from agent.testing import BrokenPromiseError, check_sensor


class Scripted(Plain):
    """A sensor that says what a test wants."""

    def __init__(self, said: Measured | Exception, *, name: str = "scripted", period: float = 5.0) -> None:
        self.name, self.period, self.said, self.asked, self.closed = name, period, said, 0, False
        self.gives = frozenset(said.values) | said.absent if isinstance(said, Measured) else frozenset({"metered"})

    def read(self) -> Measured:
        self.asked += 1
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    def close(self) -> None:
        self.closed = True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_sensor_is_asked_once_a_period_and_its_last_words_stand_until_then() -> None:
    clock, sensor = Clock(), Scripted(Measured({"temperature_c": 50.0}, zone="cpu"))
    watch = Watch([sensor], monotonic=clock)
    for clock.now in (0, 1, 4.9):
        assert (watch.read().temperature_c, watch.read().temperature_zone) == (50, "cpu")
    assert sensor.asked == 1
    assert watch.reports[0].age == 4.9
    clock.now = 5
    watch.read()
    assert sensor.asked == 2


def test_a_sensor_that_fails_is_seen_left_alone_for_a_while_and_its_old_words_are_forgotten() -> None:
    clock, sensor = Clock(), Scripted(Measured({"metered": True}))
    watch = Watch([sensor], monotonic=clock)
    assert watch.read().metered is True
    sensor.said, clock.now = SensorFailedError("the wire is cut"), 5
    assert watch.read().metered is None
    assert (watch.reports[0].failed, watch.reports[0].trouble) == (True, "the wire is cut")
    sensor.said, clock.now = Measured({"metered": False}), 5 + RETRY_SECONDS - 1
    assert watch.read().metered is None
    clock.now += 1
    assert watch.read().metered is False
    assert not watch.reports[0].failed


def test_anything_that_a_plug_in_raises_is_its_own_failure() -> None:
    watch = Watch([Scripted(ZeroDivisionError("oh")), Scripted(Measured({"on_battery": False}))])
    assert watch.read().on_battery is False
    assert watch.reports[0].trouble == "ZeroDivisionError: oh"


def test_of_several_the_one_counts_that_forbids_more() -> None:
    many = [
        Measured({"idle_seconds": 500.0, "temperature_c": 40.0, "metered": False}, zone="a"),
        Measured({"idle_seconds": 3.0, "temperature_c": 60.0, "metered": True}, zone="b"),
        Measured({"idle_seconds": 90.0, "temperature_c": 50.0}, absent=frozenset({"metered"}), zone="c"),
    ]
    found = Watch([Scripted(said) for said in many]).read()
    assert (found.idle_seconds, found.temperature_c, found.temperature_zone, found.metered) == (3, 60, "b", True)
    assert not found.absent


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "warm", True])
def test_what_is_no_reading_is_not_known(value: float) -> None:
    assert Watch([Scripted(Measured({"charge_percent": value, "colour": 1.0}))]).read().charge_percent is None


def test_all_sensors_are_closed_in_the_end() -> None:
    sensors = [Scripted(Measured()), Scripted(Measured())]
    with Watch(sensors):
        pass
    assert all(sensor.closed for sensor in sensors)


def test_what_the_program_knows_itself_is_a_sensor_too() -> None:
    check_sensor(Given("bytes_today", lambda: 12.0))
    assert Watch([Given("bytes_today", lambda: 12.0)]).read().bytes_today == 12


def test_this_machines_sensors_all_keep_their_promises(tmp_path: Path) -> None:
    sensors = sensors_of(Place(home=tmp_path, space=True))
    assert len({sensor.name for sensor in sensors}) == len(sensors)
    for sensor in sensors:
        check_sensor(sensor)
    gives = {reading for sensor in sensors for reading in sensor.gives}
    assert {"idle_seconds", "on_battery", "others_cpu_percent", "memory_available_percent", "disk_free_mb"} <= gives


def aquarium(place: Place) -> Scripted:
    assert place.home
    return Scripted(Measured({"temperature_c": 24.0}, zone="aquarium"), name="aquarium")


def refuses(place: Place) -> Sensor:
    raise OSError(f"no driver in {place.root}")


def test_plug_ins_are_found_by_their_entry_points_and_one_that_does_not_load_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = sensor_module.ENTRY_POINTS
    here = "tests.device.sensors.test_watch"
    entries = [
        EntryPoint(name, f"{here}:{value}", group) for name, value in (("aquarium", "aquarium"), ("x", "refuses"))
    ]
    entries += [EntryPoint("disk", f"{here}:refuses", group), EntryPoint("y", f"{here}:Clock.now.__gt__", group)]
    monkeypatch.setattr(sensor_module, "entry_points", lambda **_: entries)
    watch = Watch(sensors_of(Place(home=tmp_path)))
    watch.read()
    reports = {report.name: report for report in watch.reports}
    assert reports["aquarium"].values == {"temperature_c": 24}
    assert "no driver in /" in reports["x"].trouble
    assert "no sensor" in reports["y"].trouble
    assert not reports["disk"].failed


class Liar(Scripted):
    gives = frozenset({"metered"})


@pytest.mark.parametrize(
    ("sensor", "promise"),
    [
        (Scripted(Measured({"wind": 3.0})), "readings that there are"),
        (Scripted(Measured({"charge_percent": -3.0})), "not below zero"),
        (Scripted(ValueError("oh")), "SensorFailedError alone"),
        (Scripted(SensorFailedError("")), "says why"),
        (Scripted(Measured({"metered": True}, absent=frozenset({"metered"}))), "absent has no value"),
        (Scripted(Measured({"metered": True}), period=0.1), "once a second"),
        (object(), "a sensor has"),
    ],
)
def test_the_kit_names_the_promise_that_is_broken(sensor: Sensor, promise: str) -> None:
    with pytest.raises(BrokenPromiseError, match=promise):
        check_sensor(sensor)


def test_the_kit_wants_what_was_promised_or_a_reason() -> None:
    sensor = Scripted(Measured({"metered": True}))
    sensor.said = Measured()
    with pytest.raises(BrokenPromiseError, match="what is missing has a reason"):
        check_sensor(sensor)
    sensor.said = Measured({"on_battery": True})
    with pytest.raises(BrokenPromiseError, match="gives what it says"):
        check_sensor(sensor)
