"""A token bucket: how much of something may come, in a burst and for ever. No clock of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """Lets ``burst`` through at once and ``rate`` a second from then on (RFC 2697 section 3, with one bucket).

    Attributes:
        burst: what fits into it.
        rate: what flows in, a second.
        left: what is in it at ``at``; full at first.
        at: monotonic seconds.
    """

    burst: float
    rate: float
    left: float = -1.0
    at: float = 0.0

    def __post_init__(self) -> None:
        if self.left < 0:
            self.left = self.burst

    def holds(self, cost: float, now: float) -> bool:
        """Say whether so much is in it now. A clock that went back adds nothing."""
        self.left = min(self.burst, self.left + max(0.0, now - self.at) * self.rate)
        self.at = now
        return self.left >= cost

    def take(self, cost: float, now: float) -> bool:
        """Take so much out of it, or nothing and say so."""
        if not self.holds(cost, now):
            return False
        self.left -= cost
        return True
