"""The rounds of a hub as a pure state machine: what was and what happened in, what is and what to do out.

::

    open ──(first update)──▶ collecting ──(target, or deadline with quorum)──▶ merging ──▶ trial ──▶ promoted ─┐
      ▲                                                                          │           ├─────▶ rejected ─┤
      │                                                                          └───────────┼─────▶ rejected ─┤
      │                   (an operator goes back to an earlier release, in any phase) ───────┴─▶ rolled-back ──┤
      └─────────────────────────────────────────── next round ◀────────────────────────────────────────────────┘

No clock, disk or socket. The hub persists the state after every step, so that it can be killed between any two
instructions and goes on where it was: every step may be repeated, and each follows from what is stored alone.

In synchronous mode (Bonawitz et al. 2019, *Towards federated learning at scale*, section 2.2) a round is full when its
target of fresh updates is in; in asynchronous mode when its buffer is, whatever the updates started from (Nguyen et
al. 2022, *Federated learning with buffered asynchronous aggregation*, algorithm 1). A buffer that never fills is merged
at its deadline, if it has a quorum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from agent.governance.charter import RoundRules

Phase: TypeAlias = Literal["open", "collecting", "merging", "trial", "promoted", "rejected", "rolled-back", "closed"]
Act: TypeAlias = Literal["merge", "decide", "next"]
"""What the hub has to do where no further state follows from waiting alone."""

TAKING: frozenset[Phase] = frozenset({"open", "collecting"})
"""Phases in which the round itself takes updates."""

OVER: frozenset[Phase] = frozenset({"promoted", "rejected", "rolled-back"})
"""Phases in which the round has an outcome and the next one is to be opened."""

MAX_TRIAL_EXTENSIONS = 3
MAX_WIDENINGS = 20
"""A draw doubles with each deadline that passed without a quorum; after so many, everybody is drawn."""

FOLLOWERS: dict[Phase, frozenset[Phase]] = {
    "open": frozenset({"collecting", "rolled-back"}),
    "collecting": frozenset({"merging", "rolled-back"}),
    "merging": frozenset({"trial", "rejected", "rolled-back"}),
    "trial": frozenset({"promoted", "rejected", "rolled-back"}),
    "promoted": frozenset({"open", "closed", "rolled-back"}),
    "rejected": frozenset({"open", "closed", "rolled-back"}),
    "rolled-back": frozenset({"open", "closed", "rolled-back"}),
    "closed": frozenset(),
}
"""Which phase may come after which."""


@dataclass(frozen=True, slots=True)
class RoundState:
    """Where the hub is.

    Attributes:
        number: of the round, from 1.
        deadline: Unix time, seconds, when the phase is looked at again.
        extended: how often this phase's deadline was moved for want of a quorum.
        draw: devices whose lot is below it take part (:mod:`agent.federation.draw`); None for everybody.
        drawn: how many those were; 0 where nobody was left out.
    """

    number: int
    phase: Phase
    deadline: float
    extended: int = 0
    draw: int | None = None
    drawn: int = 0


@dataclass(frozen=True, slots=True)
class Tally:
    """What has come in for the current round.

    Attributes:
        fresh: updates made for this round that count in its merge.
        late: updates made for earlier rounds that count in its merge; never two of one device.
        verdicts: devices that judged the candidate.
        unheard: devices whose update is in the candidate and that have not judged it.
    """

    fresh: int = 0
    late: int = 0
    verdicts: int = 0
    unheard: int = 0


def begin(number: int, rules: RoundRules, now: float, *, last_round: int | None) -> RoundState:
    """Open a round, or close the community when there are to be no more."""
    if last_round is not None and number > last_round:
        return RoundState(number=last_round, phase="closed", deadline=now)
    return RoundState(number=number, phase="open", deadline=now + rules.collect_seconds)


def after_merge(state: RoundState, rules: RoundRules, now: float) -> RoundState:
    """The candidate exists: let devices try it."""
    return RoundState(number=state.number, phase="trial", deadline=now + rules.trial_seconds)


def ended(state: RoundState, phase: Literal["promoted", "rejected", "rolled-back"]) -> RoundState:
    """The round has its outcome."""
    return RoundState(number=state.number, phase=phase, deadline=state.deadline)


def step(state: RoundState, tally: Tally, rules: RoundRules, now: float) -> RoundState | Act:
    """Say what follows, given what has come in and what the clock shows.

    Returns:
        The next state; the same one where there is nothing to do but wait; or what the hub has to do now.
    """
    if state.phase == "closed":
        return state
    if state.phase in OVER:
        return "next"
    if state.phase == "merging":
        return "merge"
    if state.phase == "trial":
        return _trial(state, tally, rules, now)
    return _collection(state, tally, rules, now)


def _collection(state: RoundState, tally: Tally, rules: RoundRules, now: float) -> RoundState:
    total = tally.fresh + tally.late
    if state.phase == "open" and total:
        return replace(state, phase="collecting")
    if total >= rules.quorum and (is_full(state, tally, rules) or now >= state.deadline):
        return replace(state, phase="merging")
    if now >= state.deadline:
        return replace(state, deadline=now + rules.collect_seconds, extended=state.extended + 1)
    return _within(state, rules.collect_seconds, now)


def is_full(state: RoundState, tally: Tally, rules: RoundRules) -> bool:
    """Say whether a round has what it waits for.

    A synchronous round waits for its target of fresh updates, or for everybody who was drawn: late ones are merged with
    them, but must not fill the round before anybody had time to train for it.
    """
    if rules.mode == "asynchronous":
        return tally.fresh + tally.late >= rules.buffer
    return tally.fresh >= (min(rules.target, state.drawn) if state.draw is not None else rules.target)


def _trial(state: RoundState, tally: Tally, rules: RoundRules, now: float) -> RoundState | Act:
    heard = tally.verdicts >= rules.trial_quorum
    if heard and not tally.unheard:
        return "decide"  # everybody whose update is in it has spoken: there is nothing to wait for
    if now < state.deadline:
        return _within(state, rules.trial_seconds, now)
    if heard or state.extended >= MAX_TRIAL_EXTENSIONS:
        return "decide"
    return replace(state, deadline=now + rules.trial_seconds, extended=state.extended + 1)


def _within(state: RoundState, seconds: float, now: float) -> RoundState:
    """Bring a deadline back that lies further ahead than the phase is long: the clock was set back."""
    return replace(state, deadline=now + seconds) if state.deadline > now + 2 * seconds else state


def wanted_in(state: RoundState, rules: RoundRules) -> int | None:
    """Say how many devices a round draws; None where everybody takes part.

    Doubled with every deadline that passed without a quorum: whoever was drawn stays drawn, and devices that are away
    cost time only where they were needed. A margin from the start would let devices train in every round for nothing.
    """
    if rules.wanted is None or rules.mode == "asynchronous" or state.extended > MAX_WIDENINGS:
        return None
    return max(rules.wanted, rules.quorum) << state.extended
