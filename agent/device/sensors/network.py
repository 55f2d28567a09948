"""Whether the network costs by the byte."""

from __future__ import annotations

from agent.device.sensors.bus import Bus
from agent.device.sensors.sensor import Measured, SensorFailedError

_NAME, _PATH = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"
_YES = frozenset({1, 3})
_NO = frozenset({2, 4})


class MeteredSensor:
    """NetworkManager's `Metered`: said by the owner (1 yes, 2 no), or guessed (3 yes, 4 no), as `NMMetered` has it.

    Args:
        bus: the system bus.
    """

    name = "network"
    period = 15.0
    gives = frozenset({"metered"})

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def read(self) -> Measured:
        """Ask NetworkManager."""
        try:
            value = self._bus.get(_NAME, _PATH, _NAME, "Metered")
        except SensorFailedError as cause:
            raise SensorFailedError(f"only NetworkManager tells whether a network is metered: {cause}") from cause
        if value in _YES | _NO:
            return Measured({"metered": value in _YES})
        return Measured(missing="NetworkManager does not know whether this network is metered")

    def close(self) -> None:
        """Leave the bus."""
        self._bus.close()
