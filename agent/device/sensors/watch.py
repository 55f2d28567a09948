"""All sensors of a machine, each asked as often as is worth it, and what they said last with its age."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from agent.device.readings import QUANTITIES, Readings, checked, of_values
from agent.device.sensors.bus import Bus, session_bus
from agent.device.sensors.heat import HeatSensor
from agent.device.sensors.load import DiskSensor, OthersSensor, PressureSensor, PsutilMemorySensor, SpaceSensor
from agent.device.sensors.network import MeteredSensor
from agent.device.sensors.owner import LoginSensor, MutterSensor, TerminalSensor
from agent.device.sensors.power import PiSensor, PsutilSupplySensor, SupplySensor
from agent.device.sensors.screens import MacSensor, WindowsSensor, X11Sensor
from agent.device.sensors.sensor import Measured, Place, Sensor, SensorFailedError, plug_ins

RETRY_SECONDS = 60.0
"""How long a sensor that failed is left alone, where its own period is shorter."""

_LEAST_COUNTS = frozenset({"idle_seconds", "charge_percent", "memory_available_percent", "disk_free_mb"})


@dataclass(frozen=True, slots=True)
class Report:
    """What one sensor said last.

    Attributes:
        name: the sensor's.
        period: how often it is asked, seconds.
        age: how long ago it was asked, seconds.
        values: what it said.
        absent: what it says that this machine cannot have.
        trouble: why it failed, or why something is missing; empty where all is well.
        failed: whether it said nothing at all.
        cost: how long it took, seconds.
    """

    name: str
    period: float
    age: float
    values: dict[str, float | bool]
    absent: tuple[str, ...]
    trouble: str
    failed: bool
    cost: float


class _Asked:
    """One sensor with what it said last."""

    def __init__(self, sensor: Sensor) -> None:
        self.sensor = sensor
        self.at: float | None = None
        self.again = 0.0
        self.said = Measured()
        self.trouble = ""
        self.failed = False
        self.cost = 0.0

    def ask(self, now: float, clock: Callable[[], float]) -> None:
        """Ask; whatever a plug-in raises is its failure, and what it said before is forgotten."""
        begun = clock()
        try:
            self.said = self.sensor.read()
            self.failed, self.trouble = False, self.said.missing
        except SensorFailedError as cause:
            self.said, self.failed, self.trouble = Measured(), True, str(cause)
        except Exception as cause:  # noqa: BLE001 (others' code may raise anything, and is not to stop the daemon)
            self.said, self.failed, self.trouble = Measured(), True, f"{type(cause).__name__}: {cause}"
        self.cost = clock() - begun
        self.at = now
        self.again = now + (max(self.sensor.period, RETRY_SECONDS) if self.failed else self.sensor.period)


class Watch:
    """Asks sensors when their time has come, and puts together what they say.

    Of several that give the same reading the one that forbids more counts: the latest input, the highest temperature.

    Args:
        sensors: what to ask.
        monotonic: a clock.
    """

    def __init__(self, sensors: Sequence[Sensor], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._asked = [_Asked(sensor) for sensor in sensors]
        self._monotonic = monotonic

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for asked in self._asked:
            asked.sensor.close()

    def read(self) -> Readings:
        """Ask the sensors that are due, and give what all said last."""
        now = self._monotonic()
        values: dict[str, float | bool] = {}
        absent: set[str] = set()
        zone = ""
        for asked in self._asked:
            if asked.at is None or now >= asked.again:
                asked.ask(now, self._monotonic)
            absent |= asked.said.absent
            for name, value in asked.said.values.items():
                usable = checked(name, value) if name in QUANTITIES else None
                if usable is None or (name in values and not _forbids_more(name, usable, values[name])):
                    continue
                values[name] = usable
                zone = asked.said.zone if name == "temperature_c" else zone
        return of_values(values, absent=absent - set(values), zone=zone)

    def refreshed(self) -> Readings:
        """Ask all sensors but those that failed, due or not, and give what they say."""
        for asked in self._asked:
            asked.again = asked.again if asked.failed else 0.0
        return self.read()

    @property
    def reports(self) -> tuple[Report, ...]:
        """What each sensor said last."""
        now = self._monotonic()
        return tuple(
            Report(
                name=asked.sensor.name,
                period=asked.sensor.period,
                age=now - (now if asked.at is None else asked.at),
                values=dict(asked.said.values),
                absent=tuple(sorted(asked.said.absent)),
                trouble=asked.trouble,
                failed=asked.failed,
                cost=asked.cost,
            )
            for asked in self._asked
        )


def _forbids_more(name: str, one: float | bool, other: float | bool) -> bool:  # noqa: FBT001 (a reading may be a flag)
    return one < other if name in _LEAST_COUNTS else one > other


def sensors_of(place: Place, *, more: Sequence[Sensor] = ()) -> list[Sensor]:
    """Give the sensors that fit this system, then those of installed packages.

    Args:
        place: where they look.
        more: what the program itself knows, such as the bytes that travelled today.
    """
    built_in: list[Sensor] = [OthersSensor(place.workers), DiskSensor(place.home)]
    built_in += [SpaceSensor(place.home)] if place.space else []
    system = platform.system()
    if system == "Linux":
        built_in += _of_linux(place)
    else:
        built_in += [PsutilSupplySensor(), PsutilMemorySensor()]
        built_in += [MacSensor()] if system == "Darwin" else []
        built_in += [WindowsSensor()] if system == "Windows" else []
    built_in += more
    return [*built_in, *plug_ins(place, taken={sensor.name for sensor in built_in})]


def _of_linux(place: Place) -> list[Sensor]:
    """Give Linux' sensors; desktops are asked where there is a session of this user's."""
    found: list[Sensor] = [
        TerminalSensor(place.root),
        LoginSensor(Bus("SYSTEM")),
        SupplySensor(place.root),
        HeatSensor(place.root, place.zones),
        PiSensor(place.root),
        PressureSensor(place.root),
        MeteredSensor(Bus("SYSTEM")),
    ]
    session = session_bus(place.root, os.getuid())
    if session:
        found.append(MutterSensor(Bus(session)))
    if os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        found.append(X11Sensor())
    return found
