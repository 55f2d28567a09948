"""How long ago the owner touched this machine, by what X11, macOS and Windows count themselves. Through ctypes."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
from typing import Any

from agent.device.sensors.sensor import Measured, Plain, SensorFailedError

_COMBINED_SESSION = 0
_ANY_INPUT = 0xFFFFFFFF


class _ScreenSaverInfo(ctypes.Structure):
    """`XScreenSaverInfo` of X11/extensions/scrnsaver.h."""

    _fields_ = (
        ("window", ctypes.c_ulong),
        ("state", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("til_or_since", ctypes.c_ulong),
        ("idle", ctypes.c_ulong),
        ("event_mask", ctypes.c_ulong),
    )


class X11Sensor:
    """X's screen saver extension. Under Wayland X sees only the input of its own windows.

    Xlib ends the whole process when its server goes, unless it is told otherwise, which libX11 lets one since 1.7; an
    older one is not used.

    Args:
        display: such as `:0`; none for the environment's.
    """

    name = "x11"
    period = 1.0
    gives = frozenset({"idle_seconds"})

    def __init__(self, display: str | None = None) -> None:
        self._display = os.environ.get("DISPLAY", "") if display is None else display
        self._gone = False
        self._x: Any = None
        self._saver: Any = None
        self._connection: Any = None
        self._info = _ScreenSaverInfo()
        self._handlers: Any = None

    def read(self) -> Measured:
        """Ask the server."""
        if not self._display:
            raise SensorFailedError("there is no DISPLAY here")
        if self._connection is None:
            self._open()
        root = self._x.XDefaultRootWindow(self._connection)
        answered = self._saver.XScreenSaverQueryInfo(self._connection, root, ctypes.byref(self._info))
        if self._gone or not answered:
            self.close()
            raise SensorFailedError(f"the X server {self._display} has ended or has no screen saver extension")
        return Measured({"idle_seconds": self._info.idle / 1000})

    def close(self) -> None:
        """Leave the server."""
        connection, self._connection = self._connection, None
        if connection is not None and not self._gone:
            self._x.XCloseDisplay(connection)

    def _open(self) -> None:
        x, saver = (ctypes.util.find_library(name) for name in ("X11", "Xss"))
        if x is None or saver is None:
            raise SensorFailedError("libX11 and libXss are not both installed")
        self._x, self._saver = ctypes.CDLL(x), ctypes.CDLL(saver)
        if not hasattr(self._x, "XSetIOErrorExitHandler"):
            raise SensorFailedError("libX11 is older than 1.7 and would end this process together with its server")
        self._x.XOpenDisplay.restype = ctypes.c_void_p
        self._x.XDefaultRootWindow.argtypes = [ctypes.c_void_p]
        self._x.XDefaultRootWindow.restype = ctypes.c_ulong
        self._x.XCloseDisplay.argtypes = [ctypes.c_void_p]
        self._saver.XScreenSaverQueryInfo.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.POINTER(_ScreenSaverInfo)]
        connection = self._x.XOpenDisplay(self._display.encode())
        if not connection:
            raise SensorFailedError(f"the X server {self._display} lets nobody in here")
        self._gone = False
        self._connection = connection
        # Two handlers: the first one's default prints and exits, and after it the second one's default exits.
        on_error = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
        on_exit = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
        self._handlers = (on_error(lambda _display: 0), on_exit(self._note_end))
        self._x.XSetIOErrorHandler.argtypes = [on_error]
        self._x.XSetIOErrorHandler(self._handlers[0])
        self._x.XSetIOErrorExitHandler.argtypes = [ctypes.c_void_p, on_exit, ctypes.c_void_p]
        self._x.XSetIOErrorExitHandler(connection, self._handlers[1], None)

    def _note_end(self, _display: int, _data: int) -> None:
        self._gone = True


class MacSensor(Plain):
    """macOS: seconds since the last event of any kind in this login session (Quartz Event Services)."""

    name = "macos"
    period = 1.0
    gives = frozenset({"idle_seconds"})

    def __init__(self) -> None:
        self._ask: Any = None

    def read(self) -> Measured:
        """Ask the window server."""
        if self._ask is None:
            found = ctypes.util.find_library("ApplicationServices")
            if found is None:
                raise SensorFailedError("there is no window server here")
            self._ask = ctypes.CDLL(found).CGEventSourceSecondsSinceLastEventType
            self._ask.argtypes = [ctypes.c_int32, ctypes.c_uint32]
            self._ask.restype = ctypes.c_double
        return Measured({"idle_seconds": max(0.0, float(self._ask(_COMBINED_SESSION, _ANY_INPUT)))})


class _LastInput(ctypes.Structure):
    """`LASTINPUTINFO` of winuser.h."""

    _fields_ = (("size", ctypes.c_uint32), ("tick", ctypes.c_uint32))


class WindowsSensor(Plain):
    """Windows: `GetLastInputInfo` of the session that this process runs in; a service's session has no input."""

    name = "windows"
    period = 1.0
    gives = frozenset({"idle_seconds"})

    def read(self) -> Measured:
        """Ask the system; its counter of milliseconds starts again every 49.7 days, and so does the difference."""
        if platform.system() != "Windows":
            raise SensorFailedError("this is not Windows")
        found = _LastInput(size=ctypes.sizeof(_LastInput))
        system: Any = ctypes.windll  # type: ignore[attr-defined,unused-ignore]
        if not system.user32.GetLastInputInfo(ctypes.byref(found)):
            raise SensorFailedError("this session has no input")
        passed = (system.kernel32.GetTickCount() - found.tick) & 0xFFFFFFFF
        return Measured({"idle_seconds": passed / 1000})
