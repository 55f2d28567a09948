"""Replays a recording of readings through the governor: what would have run when, and why not.

The readings are what they were: a machine that trains would have been hotter and had less memory than a recording made
without training shows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from agent.device.governor import Action, Decision, Governor
from agent.device.readings import Recorded
from agent.errors import SettingsError
from agent.thresholds import GovernorSettings

OFF_SECONDS = 600.0
"""A longer gap between two lines means that the machine slept or was off; its monotonic clock stood still."""

STEP_SECONDS = 10.0
"""How often the governor is asked between two lines, so that a change is seen close to its time."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A time in which the decision stayed the same.

    Attributes:
        begins: its first moment, by the clock on the wall.
        seconds: how long it lasted.
        action: what training did; none while the machine was off.
        transfers: whether updates and adapters could travel.
        codes: rules that held, the one to show first.
        sentence: what the owner would have read at its beginning.
    """

    begins: datetime
    seconds: float
    action: Action | None
    transfers: bool
    codes: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a recording.

    Attributes:
        stretches: without gaps, from the first line to the last.
        unknown: for each reading that rules looked at and that was missing, the share of the time in which it was.
    """

    stretches: tuple[Stretch, ...]
    unknown: dict[str, float]

    @property
    def seconds(self) -> float:
        """How long the recording is."""
        return sum(stretch.seconds for stretch in self.stretches)

    @property
    def by_action(self) -> dict[str, float]:
        """Seconds of each action; `off` where there was none."""
        return _sums((str(stretch.action or "off"), stretch.seconds) for stretch in self.stretches)

    @property
    def by_reason(self) -> dict[str, float]:
        """Seconds for which each rule held, beside others or alone, longest first."""
        found = _sums((code, stretch.seconds) for stretch in self.stretches for code in stretch.codes)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def starts(self) -> int:
        """How often training began or went on."""
        runs = [stretch.action is Action.RUN for stretch in self.stretches]
        return sum(run and not before for before, run in zip([False, *runs[:-1]], runs, strict=True))

    def as_dict(self) -> dict[str, object]:
        """Give it as plain values, for programs."""
        return {
            "seconds": self.seconds,
            "seconds_by_action": self.by_action,
            "seconds_by_reason": self.by_reason,
            "starts": self.starts,
            "unknown": self.unknown,
            "stretches": [
                {
                    "begins": stretch.begins.isoformat(),
                    "seconds": stretch.seconds,
                    "action": str(stretch.action or "off"),
                    "transfers": stretch.transfers,
                    "codes": list(stretch.codes),
                    "sentence": stretch.sentence,
                }
                for stretch in self.stretches
            ],
        }


def replay(recording: Iterable[Recorded], settings: GovernorSettings) -> Replayed:
    """Replay a recording.

    Raises:
        SettingsError: it is empty, or no time passes in it.
    """
    tape = _Tape(Governor(settings))
    for recorded in recording:
        tape.take(recorded)
    return tape.end()


class _Tape:
    """The governor's decisions so far, put together where they did not change."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor
        self._monotonic = 0.0
        self._last: Recorded | None = None
        self._stretches: list[Stretch] = []
        self._unknown: defaultdict[str, float] = defaultdict(float)
        self._missing: tuple[str, ...] = ()
        self._awake = 0.0

    def take(self, recorded: Recorded) -> None:
        """Live until the next line, then take it in."""
        if self._last is not None:
            self._live(self._last, recorded.seconds - self._last.seconds)
        self._last = recorded
        self._note(self._decide(recorded, recorded.wall), recorded.wall)

    def end(self) -> Replayed:
        """Give all of it."""
        if self._last is None:
            raise SettingsError("the recording is empty", advice="Make one with bramble governor record FILE.")
        stretches = tuple(item for item in self._stretches if item.seconds > 0)
        if not stretches:
            raise SettingsError("the recording holds a single moment", advice="Let it grow: a line a minute will do.")
        unknown = {name: seconds / self._awake for name, seconds in self._unknown.items()} if self._awake else {}
        return Replayed(stretches, unknown)

    def _live(self, last: Recorded, gap: float) -> None:
        if gap > OFF_SECONDS:
            off = Stretch(last.wall, gap, action=None, transfers=False, codes=(), sentence="the machine was off")
            self._stretches.append(off)
            return
        begun = self._monotonic
        for number in range(1, math.ceil(gap / STEP_SECONDS)):
            self._lengthen(begun + number * STEP_SECONDS - self._monotonic)
            wall = last.wall + timedelta(seconds=self._monotonic - begun)
            self._note(self._decide(last, wall), wall)
        self._lengthen(begun + gap - self._monotonic)

    def _decide(self, recorded: Recorded, wall: datetime) -> Decision:
        return self._governor.update(recorded.readings, monotonic=self._monotonic, wall=wall)

    def _lengthen(self, seconds: float) -> None:
        """Let time pass in the stretch that is under way."""
        self._monotonic += seconds
        last = self._stretches[-1]
        self._stretches[-1] = Stretch(
            last.begins, last.seconds + seconds, last.action, last.transfers, last.codes, last.sentence
        )
        self._awake += seconds
        for name in self._missing:
            self._unknown[name] += seconds

    def _note(self, decision: Decision, wall: datetime) -> None:
        self._missing = decision.unknown
        codes = tuple(reason.code for reason in decision.reasons)
        now = Stretch(wall, 0.0, decision.action, decision.transfers, codes, decision.sentence)
        last = self._stretches[-1] if self._stretches else None
        if last is None or (last.action, last.transfers, last.codes) != (now.action, now.transfers, now.codes):
            self._stretches.append(now)


def _sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, seconds in pairs:
        found[name] = found.get(name, 0.0) + seconds
    return found
