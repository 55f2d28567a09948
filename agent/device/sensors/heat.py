"""How hot the processor is: Linux' thermal zones, a Jetson's among them, and its sensors of hardware monitoring."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from agent.device import linux
from agent.device.sensors.sensor import Measured, Plain, SensorFailedError

PROCESSORS = (
    "*cpu*",
    "*gpu*",
    "*pkg*",
    "soc*",
    "tj*",
    "cv*",
    "ao-therm*",
    "pll-therm*",
    "coretemp*",
    "k10temp*",
    "zenpower*",
)
"""Zones that are a processor's, in small letters. A Jetson's `PMIC-Die` always says 100 °C; Wi-Fi is no processor."""

_BELIEVED = range(-20, 131)
_LOOK_AGAIN = 60


class HeatSensor(Plain):
    """The hottest of the processor's sensors.

    A zone that cannot be read is passed over: the GPU's of a Jetson Orin is asleep while nothing uses it.

    Args:
        root: where `sys` is.
        zones: names of the zones that count, with `*` for any letters.
    """

    name = "heat"
    period = 5.0
    gives = frozenset({"temperature_c"})

    def __init__(self, root: Path, zones: tuple[str, ...] = ()) -> None:
        self._root = root
        self._zones = tuple(zone.lower() for zone in zones) or PROCESSORS
        self._chosen = bool(zones)
        self._files: list[tuple[str, Path]] = []
        self._reads = 0

    def read(self) -> Measured:
        """Read the chosen zones; which there are is looked up every few minutes."""
        if self._reads % _LOOK_AGAIN == 0 or not self._files:
            self._files = self._find()
        self._reads += 1
        found = [(degrees, name) for name, path in self._files if (degrees := _degrees(path)) is not None]
        if found:
            hottest, zone = max(found)
            return Measured({"temperature_c": hottest}, zone=zone)
        if self._chosen:
            raise SensorFailedError(f"no temperature sensor is called {' or '.join(self._zones)}")
        if self._files:
            raise SensorFailedError(f"none of {', '.join(name for name, _ in self._files)} can be read")
        return Measured(missing="this machine has no temperature sensor that is known to be a processor's")

    def _find(self) -> list[tuple[str, Path]]:
        """Give the zones that count with their files."""
        zones = _folders(self._root / "sys/class/thermal", "thermal_zone*")
        found = [(linux.read_text(zone, "type"), zone / "temp") for zone in zones]
        for chip in _folders(self._root / "sys/class/hwmon", "hwmon*"):
            name = linux.read_text(chip, "name")
            found += [(name, path) for path in sorted(chip.glob("temp*_input"))]
        return [(name, path) for name, path in found if any(fnmatch(name.lower(), zone) for zone in self._zones)]


def _folders(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _degrees(path: Path) -> float | None:
    """Give a file's temperature in °C; none where it cannot be read or be true."""
    text = linux.read_text(path.parent, path.name)
    try:
        degrees = int(text) / 1000
    except ValueError:
        return None
    return degrees if int(degrees) in _BELIEVED else None
