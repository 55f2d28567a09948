"""One rule's memory: whether it stops training, and since when. Time comes in as numbers; there is no clock in here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Signal(StrEnum):
    """What a reading says to a rule."""

    STOP = "stop"
    """At or beyond the level at which training stops."""
    BETWEEN = "between"
    """Between the two levels: whatever was, stays."""
    WELL = "well"
    """At or beyond the level from which training may go on."""
    UNKNOWN = "unknown"
    """Nobody knows. That forbids nothing."""
    ABSENT = "absent"
    """This machine has no such thing."""


@dataclass(slots=True)
class Latch:
    """Holds from the moment at which things are bad until they have been well for long enough.

    The first signal is taken carefully: what then lies between the levels holds, so that starting again is no way
    around a minimum time. A reading that gets lost counts as well, and so lets go after the same time as one.

    Attributes:
        stop_after: how long it must be bad before it holds, seconds.
        resume_after: how long it must be well before it lets go, seconds.
        held: whether it holds.
        signal: the last signal; none before the first.
        bad_since: since when it has been bad without holding yet.
        well_since: since when it has been well while it holds.
    """

    stop_after: float
    resume_after: float
    held: bool = False
    signal: Signal | None = None
    bad_since: float | None = None
    well_since: float | None = None

    def feed(self, signal: Signal, at: float) -> None:
        """Take in what is so from this moment on, in seconds of a clock that never goes back."""
        first, self.signal = self.signal is None, signal
        if signal in (Signal.STOP, Signal.BETWEEN):
            self.well_since = None
            if first or (signal is Signal.STOP and not self.held and self.stop_after <= 0):
                self._hold()
            elif signal is Signal.STOP and not self.held:
                self.bad_since = at if self.bad_since is None else self.bad_since
            else:
                self.bad_since = None
        else:
            self.bad_since = None
            if self.held and self.well_since is None:
                self.well_since = at

    @property
    def due(self) -> float | None:
        """When it changes by itself if the signal stays as it is; none if it does not."""
        if self.held:
            return None if self.well_since is None else self.well_since + self.resume_after
        return None if self.bad_since is None else self.bad_since + self.stop_after

    def change(self) -> None:
        """Do what is due."""
        if self.held:
            self.held = False
            self.well_since = None
        else:
            self._hold()

    def _hold(self) -> None:
        self.held = True
        self.bad_since = None
