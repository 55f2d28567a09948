"""How long ago the owner touched this machine, by terminals and desktops of Linux.

Nothing here opens an input device: a background program that reads keyboards would be one that can read passwords. The
sources tell when something was typed, never what. Several are asked, and the latest input of all counts.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.device.sensors.bus import Bus
from agent.device.sensors.sensor import Measured, Plain, SensorFailedError

_LIST_SECONDS = 30.0
_LOGIND, _LOGIND_PATH = "org.freedesktop.login1", "/org/freedesktop/login1"
_MUTTER, _MUTTER_PATH = "org.gnome.Mutter.IdleMonitor", "/org/gnome/Mutter/IdleMonitor/Core"
_GRAPHICAL = frozenset({"x11", "wayland", "mir"})


class TerminalSensor(Plain):
    """Terminals: consoles, windows and SSH sessions. Their files' access times are those of input.

    The kernel changes such a time at most every eight seconds, so that nobody learns the rhythm of what is typed
    (`tty_update_time` in Linux' tty_io.c); so it is the change that counts as input, at the moment it is seen.

    Args:
        root: where `dev` is.
        monotonic: a clock.
        wall: the clock that files' times are of, seconds since 1970.
    """

    name = "terminals"
    period = 1.0
    gives = frozenset({"idle_seconds"})

    def __init__(
        self,
        root: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._folder = root / "dev"
        self._monotonic = monotonic
        self._wall = wall
        self._names: list[str] = []
        self._listed = -_LIST_SECONDS
        self._seen: dict[str, float] = {}
        self._input: float | None = None

    def read(self) -> Measured:
        """Look at the times of some dozens of files."""
        now = self._monotonic()
        if now - self._listed >= _LIST_SECONDS:
            self._names, self._listed = self._list(), now
        times: dict[str, float] = {}
        for name in self._names:
            try:
                times[name] = os.stat(name).st_atime  # noqa: PTH116 (dozens, every second)
            except OSError:
                continue
        if not times:
            return Measured(missing="there is no terminal here")
        if self._input is None:
            self._input = now - max(0.0, self._wall() - max(times.values()))
        elif times.items() - self._seen.items():
            self._input = now
        self._seen = times
        return Measured({"idle_seconds": now - self._input})

    def _list(self) -> list[str]:
        """Give the terminals' files: the consoles of the keys F1 to F12, and windows. A serial line is no person."""
        found = []
        for folder, pattern in ((self._folder, r"tty([1-9]|1[0-2])"), (self._folder / "pts", r"\d+")):
            try:
                names = os.listdir(folder)  # noqa: PTH208 (names are all that is needed)
            except OSError:
                continue
            found += [str(folder / name) for name in sorted(names) if re.fullmatch(pattern, name)]
        return found


class LoginSensor:
    """systemd-logind's hints of graphical sessions, which desktops set (`IdleHint` in org.freedesktop.login1).

    A desktop says that its session is idle after some minutes, and takes it back at the first input. Where none ever
    said so (`IdleSinceHint` is 0) its silence means nothing, or such a machine would never count as left.

    Args:
        bus: the system bus.
        monotonic: a clock.
        wall: the clock that logind's times are of, seconds since 1970.
    """

    name = "logind"
    period = 1.0
    gives = frozenset({"idle_seconds"})

    def __init__(
        self,
        bus: Bus,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._monotonic = monotonic
        self._wall = wall
        self._sessions: list[str] = []
        self._listed = -_LIST_SECONDS

    def read(self) -> Measured:
        """Ask for each graphical session of a person; which there are is asked twice a minute."""
        now = self._monotonic()
        if now - self._listed >= _LIST_SECONDS:
            self._sessions, self._listed = self._list(), now
        idle = [seconds for path in self._sessions if (seconds := self._idle(path)) is not None]
        if idle:
            return Measured({"idle_seconds": min(idle)})
        return Measured(
            missing="no desktop tells logind when it is idle" if self._sessions else "nobody has a desktop here"
        )

    def close(self) -> None:
        """Leave the bus."""
        self._bus.close()

    def _list(self) -> list[str]:
        (sessions,) = self._bus.call(_LOGIND, _LOGIND_PATH, f"{_LOGIND}.Manager", "ListSessions")
        return [path for *_rest, path in sessions if self._is_desktop(self._of(path))]

    def _of(self, path: str) -> dict[str, Any]:
        return self._bus.get_all(_LOGIND, path, f"{_LOGIND}.Session")

    @staticmethod
    def _is_desktop(session: dict[str, Any]) -> bool:
        return session.get("Class") == "user" and session.get("Type") in _GRAPHICAL

    def _idle(self, path: str) -> float | None:
        try:
            session = self._of(path)
        except SensorFailedError:
            self._listed = -_LIST_SECONDS  # it has ended
            return None
        since = float(session.get("IdleSinceHint", 0)) / 1e6
        if session.get("IdleHint"):
            return max(0.0, self._wall() - since)
        return 0.0 if since else None


class MutterSensor:
    """GNOME's own count of milliseconds since the last input, where Bramble runs in the owner's session.

    Args:
        bus: the session bus.
    """

    name = "gnome"
    period = 1.0
    gives = frozenset({"idle_seconds"})

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def read(self) -> Measured:
        """Ask GNOME's shell."""
        (milliseconds,) = self._bus.call(_MUTTER, _MUTTER_PATH, _MUTTER, "GetIdletime")
        return Measured({"idle_seconds": float(milliseconds) / 1000})

    def close(self) -> None:
        """Leave the bus."""
        self._bus.close()
