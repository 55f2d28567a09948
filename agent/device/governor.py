"""The governor: whether training may run now, why not, and when again. No clock, no sensor and no process in here.

Readings and times go in, a decision comes out. Between two updates the last readings count as still so, and what is due
in between happens at its own time: asking more often changes no decision.

Minimum times are measured by a monotonic clock, hours by the clock on the wall; where that one jumps, no other does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from agent.device.latch import Latch, Signal
from agent.device.readings import Readings, spoken_name
from agent.device.rules import Effect, Rule, rules_of, spoken
from agent.thresholds import GovernorSettings, Spending

_STEPPED_DAYS = 8
"""A clock on the wall that went on by more has been set, and nobody lived through the hours between."""


class Action(StrEnum):
    """What training does now."""

    RUN = "run"
    PAUSE = "pause"
    """The worker is stopped and stays in memory."""
    LEAVE = "leave"
    """The worker keeps a checkpoint and gives its memory back."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something waits.

    Attributes:
        code: the rule's name in the settings.
        effect: what it forbids.
        what: what is so, for a person.
        resumes: when that ends, for a person; goes after "training resumes".
        seconds: until it ends, where only time has to pass; else none.
    """

    code: str
    effect: Effect
    what: str
    resumes: str
    seconds: float | None = None

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        work = "transfers resume" if self.effect is Effect.TRANSFERS else "training resumes"
        return f"{self.what}; {work} {self.resumes}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What may be done now.

    Attributes:
        action: what training does.
        transfers: whether updates and adapters may travel; small messages always may.
        reasons: every rule that holds, the one to show first.
        unknown: readings that rules look at and nobody gives; they forbid nothing.
        limits: what training may spend where it runs.
    """

    action: Action
    transfers: bool
    reasons: tuple[Reason, ...]
    unknown: tuple[str, ...]
    limits: Spending

    @property
    def sentence(self) -> str:
        """The state and its reason, for an owner."""
        training = [reason for reason in self.reasons if reason.effect is not Effect.TRANSFERS]
        transfers = [reason for reason in self.reasons if reason.effect is Effect.TRANSFERS]
        said = f"waiting: {training[0].sentence}{_more(training)}" if training else "training may run"
        return f"{said}. Transfers wait: {transfers[0].sentence}{_more(transfers)}" if transfers else said

    def as_dict(self) -> dict[str, object]:
        """Give it as plain values, for programs."""
        return {
            "action": str(self.action),
            "transfers": self.transfers,
            "sentence": self.sentence,
            "reasons": [
                {
                    "code": reason.code,
                    "effect": str(reason.effect),
                    "what": reason.what,
                    "resumes": reason.resumes,
                    "seconds": reason.seconds,
                    "sentence": reason.sentence,
                }
                for reason in self.reasons
            ],
            "unknown": list(self.unknown),
            "limits": self.limits.model_dump(),
        }


@dataclass(frozen=True, slots=True)
class RuleState:
    """How one rule stands.

    Attributes:
        code: its name in the settings.
        effect: what it forbids where it holds.
        holds: whether it does.
        signal: what its reading says.
        seconds: until it changes if the reading stays as it is; none if it does not.
    """

    code: str
    effect: Effect
    holds: bool
    signal: Signal
    seconds: float | None


@dataclass(frozen=True, slots=True)
class _Asked:
    """The last update."""

    readings: Readings
    monotonic: float
    wall: datetime


class Governor:
    """Remembers what holds, and decides.

    Args:
        settings: thresholds and limits.
    """

    def __init__(self, settings: GovernorSettings) -> None:
        self._settings = settings
        self._rules: tuple[Rule, ...] = ()
        self._latches: dict[str, Latch] = {}
        self._last: _Asked | None = None
        self._waiting_since: float | None = None
        self._left = False
        self.adopt(settings)

    def adopt(self, settings: GovernorSettings) -> None:
        """Go on with other settings. What holds does so until it has been well for as long as these say."""
        self._settings = settings
        self._rules = rules_of(settings)
        self._week = settings.hours.week
        latches: dict[str, Latch] = {}
        for rule in self._rules:
            latch = self._latches.get(rule.code) or Latch(stop_after=0.0, resume_after=0.0)
            latch.stop_after, latch.resume_after = rule.stop_after, rule.switch.resume_after
            latches[rule.code] = latch
        self._latches = latches

    def update(self, readings: Readings, *, monotonic: float, wall: datetime) -> Decision:
        """Decide.

        Args:
            readings: what the sensors say now.
            monotonic: seconds of a clock that never goes back.
            wall: the local clock, without its distance from UTC.
        """
        last = self._last
        if last is not None:
            monotonic = max(monotonic, last.monotonic)
            for edge in self._edges(last, monotonic, wall):
                self._pass_time(edge.monotonic)
                self._feed(edge)
            self._pass_time(monotonic)
        self._last = _Asked(readings, monotonic, wall)
        self._feed(self._last)
        return self._decide(self._last)

    @property
    def states(self) -> tuple[RuleState, ...]:
        """How each rule stands since the last update, in their order."""
        now = self._last.monotonic if self._last else 0.0
        return tuple(
            RuleState(
                code=rule.code,
                effect=rule.effect,
                holds=latch.held,
                signal=latch.signal or Signal.UNKNOWN,
                seconds=None if latch.due is None else latch.due - now,
            )
            for rule, latch in self._pairs()
        )

    def _pairs(self) -> Iterator[tuple[Rule, Latch]]:
        return ((rule, self._latches[rule.code]) for rule in self._rules)

    def _edges(self, last: _Asked, monotonic: float, wall: datetime) -> Iterator[_Asked]:
        """Give the moments since the last update at which hours began or ended, with the readings of then.

        None is later than now by the monotonic clock, so a clock on the wall that jumps shortens no minimum time.
        """
        if "hours" not in self._latches or wall - last.wall > timedelta(days=_STEPPED_DAYS):
            return
        edge = self._week.at(last.wall).until
        while edge is not None and edge < wall:
            at = last.monotonic + (edge - last.wall) / timedelta(seconds=1)
            yield _Asked(last.readings, min(at, monotonic), edge)
            edge = self._week.at(edge).until

    def _pass_time(self, until: float) -> None:
        """Let happen what is due, each at its own time."""
        while True:
            due = [(latch.due, latch) for latch in self._latches.values() if latch.due is not None]
            at = min((at for at, _ in due), default=until + 1)
            if at > until:
                return
            for _, latch in [pair for pair in due if pair[0] == at]:
                latch.change()
            self._settle(at)

    def _feed(self, now: _Asked) -> None:
        for rule, latch in self._pairs():
            latch.feed(rule.signal(now.readings, now.wall), now.monotonic)
        self._settle(now.monotonic)

    def _settle(self, at: float) -> None:
        """Note since when training waits, and that its memory was given back, which it stays until training runs."""
        held = {rule.effect for rule, latch in self._pairs() if latch.held} - {Effect.TRANSFERS}
        if not held:
            self._waiting_since, self._left = None, False
            return
        if self._waiting_since is None:
            self._waiting_since = at
        self._left = self._left or Effect.LEAVE in held

    def _decide(self, now: _Asked) -> Decision:
        holding = [(rule, latch) for rule, latch in self._pairs() if latch.held]
        reasons = tuple(_reason(rule, latch, now) for rule, latch in holding)
        action = Action.RUN
        if self._waiting_since is not None:
            long = now.monotonic - self._waiting_since >= self._settings.leave_after
            action = Action.LEAVE if self._left or long else Action.PAUSE
        return Decision(
            action=action,
            transfers=all(rule.effect is not Effect.TRANSFERS for rule, _ in holding),
            reasons=reasons,
            unknown=tuple(rule.reading for rule, latch in self._pairs() if latch.signal is Signal.UNKNOWN),
            limits=self._settings.limits,
        )


def _reason(rule: Rule, latch: Latch, now: _Asked) -> Reason:
    """Say why a rule holds, by what its reading says now."""
    if latch.well_since is None:
        return Reason(rule.code, rule.effect, rule.bad(now.readings), rule.resume(now.wall))
    seconds = max(0.0, latch.well_since + latch.resume_after - now.monotonic)
    known = latch.signal is Signal.WELL
    what = rule.well(now.readings) if known else f"{spoken_name(rule.reading)} is not known any more"
    return Reason(rule.code, rule.effect, what, f"in {spoken(seconds)}", seconds)


def _more(reasons: list[Reason]) -> str:
    """Say how many reasons there are beside the first."""
    others = len(reasons) - 1
    return "" if not others else f" (and {others} more reason{'s' if others > 1 else ''})"
