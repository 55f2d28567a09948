"""What time the hub believes it is: a device's messages never say a later one.

A hub refuses what comes from the future, and devices have bad clocks: a battery that died, a month that was mistyped.
So a device takes the hub's word, from the newest message that is certainly the hub's, and counts on from there. Its own
clock decides only where it is behind: the past is never refused, and a machine that boots in 1970 takes part as others
do. Nothing that a device decides depends on what time it is; counters and sequences tell old from new.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class HubClock:
    """Follows the hub's clock.

    Args:
        wall: Unix time in seconds, as this machine believes.
        monotonic: seconds that only grow.
    """

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._heard: tuple[int, float] | None = None  # the hub's time in milliseconds, and when it was heard

    def heard(self, milliseconds: int) -> None:
        """The hub said this time, in a message that was not heard before."""
        self._heard = (milliseconds, self._monotonic())

    @property
    def is_set(self) -> bool:
        """Whether the hub was heard since the start."""
        return self._heard is not None

    def stamp(self) -> int:
        """Give the time that a message to the hub says: milliseconds since 1970."""
        own = max(0, int(self._wall() * 1000))
        return own if self._heard is None else min(own, self._now())

    @property
    def ahead_seconds(self) -> float:
        """How far this machine's clock is ahead of the hub's; negative where it is behind, 0 where nobody knows."""
        return 0.0 if self._heard is None else self._wall() - self._now() / 1000

    def _now(self) -> int:
        assert self._heard is not None
        said, when = self._heard
        return said + int((self._monotonic() - when) * 1000)
