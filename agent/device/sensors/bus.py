"""Questions over D-Bus, to NetworkManager, systemd-logind and desktops. Only here: jeepney."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from agent.device.sensors.sensor import SensorFailedError

TIMEOUT_SECONDS = 0.5
"""How long an answer may take: the caller waits for it."""

_PROPERTIES = "org.freedesktop.DBus.Properties"


class Bus:
    """A connection that is made when it is first needed, and again after a failure.

    Args:
        address: `SYSTEM`, `SESSION`, or a D-Bus address.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: Any = None

    def get(self, name: str, path: str, interface: str, prop: str) -> Any:
        """Give a property.

        Raises:
            SensorFailedError: nobody answers, or there is none.
        """
        asked = (interface, prop)
        ((_kind, value),) = self.call(name, path, _PROPERTIES, "Get", signature="ss", values=asked)
        return value

    def get_all(self, name: str, path: str, interface: str) -> dict[str, Any]:
        """Give all properties of an interface.

        Raises:
            SensorFailedError: nobody answers, or there is no such object.
        """
        (found,) = self.call(name, path, _PROPERTIES, "GetAll", signature="s", values=(interface,))
        return {key: value for key, (_kind, value) in found.items()}

    def call(
        self, name: str, path: str, interface: str, method: str, *, signature: str = "", values: tuple[Any, ...] = ()
    ) -> tuple[Any, ...]:
        """Call a method and give what it returns.

        Raises:
            SensorFailedError: nobody answers, or it refuses.
        """
        from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call  # noqa: PLC0415 (only where used)

        connection = self._open()
        message = new_method_call(DBusAddress(path, name, interface), method, signature or None, values)
        try:
            reply = connection.send_and_get_reply(message, timeout=TIMEOUT_SECONDS)
        except Exception as cause:
            self.close()
            raise SensorFailedError(
                f"{name} does not answer on the bus: {str(cause) or type(cause).__name__}"
            ) from cause
        if reply.header.message_type is MessageType.error:
            error = reply.header.fields.get(HeaderFields.error_name, "an error")
            if error == "org.freedesktop.DBus.Error.ServiceUnknown":
                raise SensorFailedError(f"{name} is not running")
            raise SensorFailedError(f"{name} answers {method} with {error}")
        return tuple(reply.body)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _open(self) -> Any:
        if self._connection is None:
            try:
                from jeepney.io.blocking import open_dbus_connection  # noqa: PLC0415 (only where it is used)

                self._connection = open_dbus_connection(self._address, auth_timeout=TIMEOUT_SECONDS)
            except Exception as cause:
                raise SensorFailedError(f"the {self._address.lower()} bus cannot be reached: {cause}") from cause
        return self._connection


def session_bus(root: Path, uid: int) -> str:
    """Give the address of a user's session bus where systemd puts it; nothing where there is none."""
    path = root / f"run/user/{uid}/bus"
    return f"unix:path={path}" if path.exists() else ""
