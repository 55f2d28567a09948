"""How long a link waits before it tries the brokers once more. No clock in here, and chance can be handed in.

The wait is drawn at random from 0 up to a bound that doubles ("full jitter": Brooker, *Exponential Backoff And Jitter*,
2015), so that a fleet that lost its broker at one moment does not come back at one moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable

STEADY_SECONDS = 20.0
"""A connection that held for so long, and for as long as the last bound, begins the bounds anew; shorter ones let them
grow. So two clients that take one id from each other, each for as long as the other waits, come to rest at the longest
bound, and a line that breaks every half minute is still mended at once."""

SUSPICIOUS = 4
"""So many short connections in a row make one ask whether two clients share an id."""

_YIELDING = 60.0


class Backoff:
    """The waits of one link.

    Args:
        first: the bound of the first wait, seconds.
        most: no bound is larger, unless somebody else has our client id.
        draw: a number between two, at random.
    """

    def __init__(self, *, first: float, most: float, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._first = first
        self._most = most
        self._draw = draw
        self._waits = 0
        self._yields = 0
        self._yielding = False
        self._short = 0
        self._bound = 0.0  # of the last wait

    @property
    def suspicious(self) -> bool:
        """Whether connections break so soon and so often that two clients may be taking one id from each other.

        Brokers that say so do it in MQTT 5 only, and mosquitto 2.0.11 does not at all; it looks like a bad line, and
        may be one.
        """
        return self._short >= SUSPICIOUS

    def broke(self, *, after: float, taken_over: bool) -> None:
        """A connection ended.

        Args:
            after: how many seconds it had stood.
            taken_over: whether another client connected with our id.
        """
        self._yielding = taken_over
        if taken_over:
            self._yields += 1
            return
        if after >= self._most * _YIELDING:
            self._yields = 0
        if after >= max(STEADY_SECONDS, self._bound):
            self._waits = self._short = 0
        else:
            self._short += 1

    def wait(self) -> float:
        """Give the seconds to wait before the next attempt.

        After a takeover they are drawn from the upper half of a bound that begins at ``most`` and ends at 60 times
        ``most`` (an hour): two links with one id come to take turns rarely, instead of throwing one another out for
        ever.
        """
        if self._yielding:
            self._yielding = False
            bound = min(self._most * _YIELDING, self._most * 2.0 ** min(self._yields - 1, 30))
            return self._draw(bound / 2, bound)
        self._bound = min(self._most, self._first * 2.0 ** min(self._waits, 30))
        self._waits += 1
        return self._draw(0.0, self._bound)
