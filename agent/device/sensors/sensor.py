"""What a sensor is, and which there are: the built-in ones, and plug-ins by the entry point group `bramble.sensors`.

`agent.testing.check_sensor` tells whether one behaves. A plug-in is a callable that takes a :class:`Place` and gives a
:class:`Sensor`::

    [project.entry-points."bramble.sensors"]
    aquarium = "my_package:WaterTemperature"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

ENTRY_POINTS = "bramble.sensors"


class SensorFailedError(Exception):
    """A sensor cannot say anything now; its argument is the reason, for a person."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a sensor says at one moment.

    Attributes:
        values: readings by their names in :class:`~agent.device.readings.Readings`.
        absent: those of its readings that this machine cannot have.
        zone: which of several parts a temperature is of.
        missing: why a reading of its is in neither of them.
    """

    values: Mapping[str, float | bool] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    zone: str = ""
    missing: str = ""


@runtime_checkable
class Sensor(Protocol):
    """Something that can be asked. Where it is asked every second, an answer takes microseconds, not milliseconds."""

    @property
    def name(self) -> str:
        """The entry point's name."""
        ...

    @property
    def period(self) -> float:
        """How often it is worth asking, seconds."""
        ...

    @property
    def gives(self) -> frozenset[str]:
        """Names of the readings that it can give."""
        ...

    def read(self) -> Measured:
        """Look now.

        Raises:
            SensorFailedError: it cannot say anything.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds; it is not asked again."""
        ...


class Plain:
    """A sensor that holds nothing."""

    def close(self) -> None:
        """Do nothing."""


def no_processes() -> Iterable[int]:
    """Give none."""
    return ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where sensors look.

    Attributes:
        home: directory of Bramble's state, whose disk and size are looked at.
        root: where `proc`, `sys` and `dev` are; a recording's folder in tests.
        zones: names of the temperature sensors that count; none for those that are known to be a processor's.
        space: whether the size of `home` is wanted, which takes a look at each of its files.
        workers: gives the ids of the worker processes that run now: what they use is Bramble's, not others'.
    """

    home: Path
    root: Path = Path("/")
    zones: tuple[str, ...] = ()
    space: bool = False
    workers: Callable[[], Iterable[int]] = no_processes


class Given(Plain):
    """A reading that the program itself knows, such as `bytes_today`.

    Args:
        reading: its name.
        get: gives its value.
    """

    period = 1.0

    def __init__(self, reading: str, get: Callable[[], float | bool]) -> None:
        self.name = reading.replace("_", "-")
        self.gives = frozenset({reading})
        self._get = get

    def read(self) -> Measured:
        """Give it."""
        return Measured({reading: self._get() for reading in self.gives})


class Broken(Plain):
    """What stands for a plug-in that does not load, so that this can be seen and nothing else fails."""

    period = 3600.0
    gives: frozenset[str] = frozenset()

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        self._why = why

    def read(self) -> Measured:
        """Say why it does not load."""
        raise SensorFailedError(self._why)


def plug_ins(place: Place, *, taken: Iterable[str]) -> list[Sensor]:
    """Give the sensors of installed packages, in order of name, but for names that are taken."""
    entries = sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)
    return [_load(entry, place) for entry in entries if entry.name not in taken]


def _load(entry: EntryPoint, place: Place) -> Sensor:
    try:
        sensor = entry.load()(place)
    except Exception as cause:  # noqa: BLE001 (others' code may raise anything, and is not to stop the daemon)
        return Broken(entry.name, f"the plug-in {entry.value} does not load: {cause}; update or uninstall its package")
    if not isinstance(sensor, Sensor):
        return Broken(entry.name, f"{entry.value} is no sensor; its author can run agent.testing.check_sensor")
    return sensor
