"""What other programs use: the processor, memory, and the disk."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from agent.device import linux
from agent.device.sensors.sensor import Measured, Plain, SensorFailedError, no_processes

_BUSY = ("user", "nice", "system", "irq", "softirq")


class OthersSensor(Plain):
    """The share of all cores that programs other than Bramble used since the last look.

    What all programs used, less this process, what it has ended, and its workers. A worker that ends is counted as one
    of those that ended, so its last seconds are not others'.

    Args:
        workers: gives the ids of the processes that run now and are Bramble's.
        monotonic: a clock.
    """

    name = "others-cpu"
    period = 5.0
    gives = frozenset({"others_cpu_percent"})

    def __init__(
        self, workers: Callable[[], Iterable[int]] = no_processes, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._workers = workers
        self._monotonic = monotonic
        self._cores = psutil.cpu_count() or 1
        self._last: tuple[float, float, float] | None = None

    def read(self) -> Measured:
        """Compare with the last look."""
        times = psutil.cpu_times()
        busy = sum(float(getattr(times, name, 0.0)) for name in _BUSY)
        now = (self._monotonic(), busy, self._own())
        last, self._last = self._last, now
        if last is None or now[0] <= last[0]:
            return Measured(missing="it is measured from the second look on")
        passed, used, own = (after - before for before, after in zip(last, now, strict=True))
        share = 100 * (used - own) / (passed * self._cores)
        return Measured({"others_cpu_percent": min(100.0, max(0.0, share))})

    def _own(self) -> float:
        """Give the seconds of processor that Bramble has used."""
        mine = os.times()
        seconds = mine.user + mine.system + mine.children_user + mine.children_system
        for pid in self._workers():
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.Error:
                continue
            seconds += times.user + times.system
        return float(seconds)


class PressureSensor(Plain):
    """How much programs wait for memory, and how much is left.

    Pressure stall information: Documentation/accounting/psi.rst of Linux. `some` is the share of time in which at least
    one task waited.

    Args:
        root: where `proc` is.
    """

    name = "memory"
    period = 5.0
    gives = frozenset({"memory_pressure_percent", "memory_available_percent"})

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self) -> Measured:
        """Read two files."""
        values: dict[str, float | bool] = {}
        pressure = re.search(r"^some .*?avg10=(\d+(?:\.\d+)?)", linux.read_text(self._root, "proc/pressure/memory"))
        if pressure:
            values["memory_pressure_percent"] = float(pressure[1])
        text = linux.read_text(self._root, "proc/meminfo")
        total, available = (
            re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE) for key in ("MemTotal", "MemAvailable")
        )
        if total and available and int(total[1]) > 0:
            values["memory_available_percent"] = 100 * int(available[1]) / int(total[1])
        if not values:
            raise SensorFailedError("neither /proc/pressure/memory nor /proc/meminfo can be read")
        missing = "" if pressure else "this kernel keeps no pressure stall information (CONFIG_PSI, or psi=1 at boot)"
        return Measured(values, missing=missing)


class PsutilMemorySensor(Plain):
    """How much memory is left, for systems other than Linux, which keep no pressure stall information."""

    name = "memory"
    period = 5.0
    gives = frozenset({"memory_pressure_percent", "memory_available_percent"})

    def read(self) -> Measured:
        """Ask the operating system."""
        found = psutil.virtual_memory()
        return Measured(
            {"memory_available_percent": 100 * found.available / max(1, found.total)},
            absent=frozenset({"memory_pressure_percent"}),
        )


class DiskSensor(Plain):
    """Free space where Bramble keeps its state.

    Args:
        home: that directory; where it is not there yet, the one above it counts.
    """

    name = "disk"
    period = 30.0
    gives = frozenset({"disk_free_mb"})

    def __init__(self, home: Path) -> None:
        self._home = home

    def read(self) -> Measured:
        """Ask the file system; what is kept for root does not count."""
        try:
            return Measured({"disk_free_mb": shutil.disk_usage(_existing(self._home)).free / 1e6})
        except OSError as cause:
            raise SensorFailedError(f"the disk of {self._home} cannot be asked: {cause.strerror}") from cause


class SpaceSensor(Plain):
    """Space that Bramble's state takes.

    Args:
        home: its directory.
    """

    name = "space"
    period = 900.0
    gives = frozenset({"disk_used_mb"})

    def __init__(self, home: Path) -> None:
        self._home = home

    def read(self) -> Measured:
        """Add up the files; links are not followed, and what goes meanwhile counts nothing."""
        used = 0
        for folder, _folders, names in os.walk(self._home):
            for name in names:
                try:
                    found = os.lstat(os.path.join(folder, name))  # noqa: PTH118 (thousands of files, once an hour)
                except OSError:
                    continue
                used += getattr(found, "st_blocks", -(-found.st_size // 512)) * 512
        return Measured({"disk_used_mb": used / 1e6})


def _existing(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)
