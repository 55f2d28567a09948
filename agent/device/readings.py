"""What sensors say at one moment, as plain numbers; in a recording, one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from agent.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Readings. None means that nobody knows, or that this machine has no such thing (then `absent` names it).

    Attributes:
        idle_seconds: since the owner's last input.
        on_battery: whether the battery feeds the machine.
        charge_percent: of the battery.
        temperature_c: of the hottest sensor, °C.
        undervoltage: the Pi's firmware sees too little voltage now.
        throttled: the Pi's firmware holds the processor back now.
        others_cpu_percent: of all cores, used by programs that are not Bramble's.
        memory_pressure_percent: of the last ten seconds, in which some program waited for memory.
        memory_available_percent: of all memory.
        disk_free_mb: where Bramble keeps its state, MB.
        disk_used_mb: by Bramble's state, MB.
        metered: whether the network costs by the byte.
        bytes_today: that travelled since midnight, both ways.
        temperature_zone: which sensor is the hottest, for the sentence.
        absent: names of readings that this machine cannot have: no battery, no Raspberry Pi.
    """

    idle_seconds: float | None = None
    on_battery: bool | None = None
    charge_percent: float | None = None
    temperature_c: float | None = None
    undervoltage: bool | None = None
    throttled: bool | None = None
    others_cpu_percent: float | None = None
    memory_pressure_percent: float | None = None
    memory_available_percent: float | None = None
    disk_free_mb: float | None = None
    disk_used_mb: float | None = None
    metered: bool | None = None
    bytes_today: float | None = None
    temperature_zone: str = ""
    absent: frozenset[str] = field(default_factory=frozenset)


QUANTITIES: tuple[str, ...] = tuple(
    item.name for item in fields(Readings) if item.name not in ("temperature_zone", "absent")
)
"""Names of all readings that a sensor can give."""

FLAGS = frozenset({"on_battery", "undervoltage", "throttled", "metered"})
"""Those that are true or false."""

UNITS = frozenset({"seconds", "percent", "c", "mb"})
"""What a reading's name may end with; a word for a person leaves it out."""


def spoken_name(reading: str) -> str:
    """Give a reading's name as words: `memory pressure` for `memory_pressure_percent`."""
    return " ".join(word for word in reading.split("_") if word not in UNITS)


Value = float | bool | None


def checked(name: str, value: object) -> Value:
    """Give a reading as what it should be, and None for what is no reading.

    A number that is not finite says nothing, and neither does one below zero, a temperature apart.
    """
    if name in FLAGS:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    number = float(value)
    usable = math.isfinite(number) and (number >= 0 or name == "temperature_c")
    return number if usable else None


def of_values(values: Mapping[str, object], *, absent: Iterable[str] = (), zone: str = "") -> Readings:
    """Put readings together; what a value should not be becomes None."""
    known: dict[str, Value] = {name: checked(name, values[name]) for name in QUANTITIES if name in values}
    return Readings(**known, temperature_zone=zone, absent=frozenset(absent) & frozenset(QUANTITIES))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One line of a recording.

    Attributes:
        at: the local clock, with its distance from UTC or without one.
        readings: what the sensors said.
    """

    at: datetime
    readings: Readings

    @property
    def wall(self) -> datetime:
        """What the clock on the wall showed."""
        return self.at.replace(tzinfo=None)

    @property
    def seconds(self) -> float:
        """Seconds that pass evenly, over changes to and from summer time too where the distance from UTC is given."""
        aware = self.at if self.at.tzinfo else self.at.replace(tzinfo=UTC)
        return aware.timestamp()

    def to_line(self) -> str:
        """Give it as a line of JSON, without what is not known."""
        values = {name: getattr(self.readings, name) for name in QUANTITIES}
        line: dict[str, object] = {"at": self.at.isoformat()}
        line |= {name: value for name, value in values.items() if value is not None}
        if self.readings.temperature_zone:
            line["temperature_zone"] = self.readings.temperature_zone
        if self.readings.absent:
            line["absent"] = sorted(self.readings.absent)
        return json.dumps(line, separators=(",", ":"))


def read_recording(lines: Iterable[str], *, name: str) -> Iterator[Recorded]:
    """Give what was recorded, line by line; blank lines and names of readings that are unknown here are passed over.

    Raises:
        SettingsError: a line is no JSON object with a time, or goes back in time.
    """
    before = -math.inf
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        recorded = _recorded(line, f"line {number} of {name}")
        if recorded.seconds < before:
            raise SettingsError(
                f"line {number} of {name} is from before the line above it", advice="Sort the recording by time."
            )
        before = recorded.seconds
        yield recorded


def _recorded(line: str, what: str) -> Recorded:
    advice = 'A line is a JSON object such as {"at": "2026-03-02T08:00:00", "idle_seconds": 3.5}.'
    try:
        values = json.loads(line)
        at = datetime.fromisoformat(values["at"])
    except (ValueError, TypeError, KeyError, RecursionError) as cause:
        raise SettingsError(f"{what} is no reading with a time: {cause}", advice=advice) from cause
    absent = values.get("absent", [])
    zone = values.get("temperature_zone", "")
    if not isinstance(absent, list) or not isinstance(zone, str):
        raise SettingsError(f"{what}: absent is a list of names and temperature_zone a name", advice=advice)
    return Recorded(at=at, readings=of_values(values, absent=[str(part) for part in absent], zone=zone))
