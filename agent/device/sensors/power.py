"""Battery and mains, and what a Raspberry Pi's firmware says about its power supply."""

from __future__ import annotations

from pathlib import Path

import psutil

from agent.device import linux
from agent.device.sensors.sensor import Measured, Plain, SensorFailedError

_SUPPLIES = "sys/class/power_supply"
_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
_UNDERVOLTAGE_BIT = 0x1
_SLOWED_BITS = 0x2 | 0x4 | 0x8  # frequency capped, throttled, soft temperature limit; from bit 16 on is history


class SupplySensor(Plain):
    """Linux' list of power supplies: mains, USB and batteries, but not those of a mouse or a keyboard.

    Args:
        root: where `sys` is.
    """

    name = "supply"
    period = 5.0
    gives = frozenset({"on_battery", "charge_percent"})

    def __init__(self, root: Path) -> None:
        self._folder = root / _SUPPLIES

    def read(self) -> Measured:
        """Read the few files there. A machine without a battery is never on one."""
        try:
            names = sorted(path.name for path in self._folder.iterdir())
        except OSError:
            names = []
        batteries, fed = [], False
        for name in names:
            kind = self._text(name, "type")
            if kind == "Battery" and self._text(name, "scope") != "Device":
                batteries.append(name)
            elif kind in {"Mains", "USB", "Wireless"}:
                fed = fed or self._text(name, "online") not in {"", "0"}
        batteries = [name for name in batteries if self._text(name, "present") != "0"]
        if not batteries:
            return Measured({"on_battery": False}, absent=frozenset({"charge_percent"}))
        # Some machines list no mains: then only what a battery does tells.
        drained = any(self._text(name, "status") == "Discharging" for name in batteries)
        values: dict[str, float | bool] = {"on_battery": not fed and drained}
        charges = [float(text) for name in batteries if (text := self._text(name, "capacity")).isdecimal()]
        if charges:
            values["charge_percent"] = sum(charges) / len(charges)
        return Measured(values, missing="" if charges else "the battery does not say its charge")

    def _text(self, name: str, file: str) -> str:
        return linux.read_text(self._folder, f"{name}/{file}")


class PsutilSupplySensor(Plain):
    """Battery and mains by psutil, for macOS and Windows."""

    name = "supply"
    period = 10.0
    gives = frozenset({"on_battery", "charge_percent"})

    def read(self) -> Measured:
        """Ask the operating system."""
        try:
            found = psutil.sensors_battery()
        except (OSError, RuntimeError, NotImplementedError, AttributeError) as cause:
            raise SensorFailedError(f"the system does not tell of its battery: {cause}") from cause
        if found is None:
            return Measured({"on_battery": False}, absent=frozenset({"charge_percent"}))
        values: dict[str, float | bool] = {"charge_percent": float(found.percent)}
        plugged: bool | None = found.power_plugged
        if plugged is None:
            return Measured(values, missing="the system does not know whether it is plugged in")
        return Measured({**values, "on_battery": not plugged})


class PiSensor(Plain):
    """What a Raspberry Pi's firmware says: the lower bits of `get_throttled`, which are about now.

    Bits as in the firmware's documentation (`vcgencmd get_throttled`) and the driver's (raspberrypi/linux, pull 2397):
    the file has them in hexadecimal.

    Args:
        root: where `sys` is.
    """

    name = "pi-firmware"
    period = 5.0
    gives = frozenset({"undervoltage", "throttled"})

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self) -> Measured:
        """Read one file."""
        text = linux.read_text(self._root, _THROTTLED)
        if not text:
            if "Raspberry Pi" in linux.board(self._root):
                raise SensorFailedError(f"this is a Raspberry Pi, but /{_THROTTLED} says nothing")
            return Measured(absent=self.gives)
        try:
            bits = int(text, 16)
        except ValueError as cause:
            raise SensorFailedError(f"/{_THROTTLED} says {text[:40]!r}, which is no hexadecimal number") from cause
        return Measured({"undervoltage": bool(bits & _UNDERVOLTAGE_BIT), "throttled": bool(bits & _SLOWED_BITS)})
