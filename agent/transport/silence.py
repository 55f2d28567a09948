"""Noticing that a broker no longer acknowledges, although the line stands and pings are answered. No clock, no socket.

TCP loses nothing, but a broker, a bridge or a gateway may: a publish that was lost there is never acknowledged, and it
is sent again only over a new connection (MQTT 5.0 section 4.4). Acknowledgements come in the order of the publishes
(section 4.6), so it is enough to look at the oldest: what is behind it may be slow because of it, it itself may not. On
a slow line its time begins anew with every acknowledgement of one before it.
"""

from __future__ import annotations


class Silence:
    """Watches the publishes in flight of one link.

    Args:
        patience: seconds that the oldest publish may wait. Long enough for one packet on the slowest line.
    """

    def __init__(self, *, patience: float) -> None:
        self._patience = patience
        self._waiting: dict[int, None] = {}
        self._since = 0.0  # when the oldest became the oldest, or the connection began

    def sent(self, mid: int, now: float) -> None:
        """A publish was handed to the broker."""
        if not self._waiting:
            self._since = now
        self._waiting[mid] = None

    def acknowledged(self, mid: int, now: float) -> None:
        """A publish was taken or refused."""
        oldest = next(iter(self._waiting), None)
        self._waiting.pop(mid, None)
        if mid == oldest:
            self._since = now

    def connected(self, now: float) -> None:
        """A new connection stands, over which everything is sent again."""
        self._since = now

    def left(self, now: float) -> float | None:
        """Give how many seconds of patience are left, 0 where it has ended; None where nothing is waited for."""
        return max(0.0, self._since + self._patience - now) if self._waiting else None
