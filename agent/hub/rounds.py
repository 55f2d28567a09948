"""The rounds of a hub as a pure state machine: what was and what happened in, what is and what to do out.

::

    open ──(target reached, or deadline with quorum)──▶ merging ──▶ trial ──▶ promoted ─┐
      ▲                                                              └──────▶ rejected ─┤
      └────────────────────────────── next round ◀───────────────────────────────────────┘

No clock, disk or socket. The hub persists the state after every step, so that it can be killed between any two
instructions and goes on where it was: every step may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from agent.governance.charter import RoundRules
from agent.hub.weights import capped_weights

Phase: TypeAlias = Literal["open", "merging", "trial", "closed"]


@dataclass(frozen=True, slots=True)
class RoundState:
    """Where the hub is.

    Attributes:
        number: of the round, from 1.
        deadline: Unix time, seconds, when the phase is looked at again.
        extended: how often this phase's deadline was moved for want of a quorum.
    """

    number: int
    phase: Phase
    deadline: float
    extended: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """One device's verdict on a candidate.

    Attributes:
        before: mean held-out loss with the current release, nats a token.
        after: the same with the candidate.
        targets: tokens predicted; the weight of this verdict.
    """

    device: str
    before: float
    after: float
    targets: int

    @property
    def change(self) -> float:
        """Relative change of the loss; negative is better."""
        return (self.after - self.before) / max(self.before, 1e-9)


@dataclass(frozen=True, slots=True)
class GateDecision:
    """What the gate says of a candidate, and why."""

    promote: bool
    reason: str
    median_change: float
    worst_change: float


MAX_TRIAL_EXTENSIONS = 3
VERDICT_SHARE = 0.4
"""No verdict weighs more than this, where there are three or more: less than half, so that one alone is no median."""


def begin(number: int, rules: RoundRules, now: float, *, last_round: int | None) -> RoundState:
    """Open a round, or close the community when there are to be no more."""
    if last_round is not None and number > last_round:
        return RoundState(number=last_round, phase="closed", deadline=now)
    return RoundState(number=number, phase="open", deadline=now + rules.collect_seconds)


def after_update(state: RoundState, accepted: int, rules: RoundRules) -> RoundState:
    """An update was counted: merge at once when the target is reached."""
    if state.phase == "open" and accepted >= rules.target:
        return replace(state, phase="merging")
    return state


def after_deadline(
    state: RoundState, *, accepted: int, verdicts: int, rules: RoundRules, now: float
) -> RoundState | Literal["decide"]:
    """The clock moved: merge with a quorum, ask the gate, or wait longer.

    Returns:
        The next state, or ``"decide"`` when the trial is over and the gate must speak.
    """
    if now < state.deadline or state.phase in {"merging", "closed"}:
        return state
    if state.phase == "open":
        if accepted >= rules.quorum:
            return replace(state, phase="merging")
        return replace(state, deadline=now + rules.collect_seconds, extended=state.extended + 1)
    if verdicts >= rules.trial_quorum or state.extended >= MAX_TRIAL_EXTENSIONS:
        return "decide"
    return replace(state, deadline=now + rules.trial_seconds, extended=state.extended + 1)


def after_merge(state: RoundState, rules: RoundRules, now: float) -> RoundState:
    """The candidate exists: let devices try it."""
    return RoundState(number=state.number, phase="trial", deadline=now + rules.trial_seconds)


def trial_complete(participants: Sequence[str], verdicts: Mapping[str, Judgement], rules: RoundRules) -> bool:
    """Say whether everybody whose update is in the candidate has judged it, so that there is nothing to wait for."""
    return len(verdicts) >= rules.trial_quorum and all(device in verdicts for device in participants)


def gate(verdicts: Sequence[Judgement], rules: RoundRules) -> GateDecision:
    """Decide on a candidate: the weighted median must not get worse, and nobody much worse.

    Verdicts weigh by held-out tokens, as devices state them, but with three or more of them none for more than 40 % of
    all: a single device that lies cannot decide.
    """
    if len(verdicts) < rules.trial_quorum:
        reason = f"only {len(verdicts)} of at least {rules.trial_quorum} verdicts came: nobody knows whether it is good"
        return GateDecision(promote=False, reason=reason, median_change=0.0, worst_change=0.0)
    ordered = sorted(verdicts, key=lambda verdict: (verdict.change, verdict.device))
    weights = capped_weights([verdict.targets for verdict in ordered], share=VERDICT_SHARE)
    passed, median = 0.0, ordered[-1].change
    for verdict, weight in zip(ordered, weights, strict=True):
        passed += weight
        if passed >= 0.5 - 1e-9:
            median = verdict.change
            break
    worst = ordered[-1]
    if median > rules.tolerance:
        reason = f"the weighted median of held-out loss would get {median:+.2%} worse"
        return GateDecision(promote=False, reason=reason, median_change=median, worst_change=worst.change)
    if worst.change > rules.harm_limit:
        reason = f"device {worst.device[:10]} would get {worst.change:+.2%} worse, more than {rules.harm_limit:.0%}"
        return GateDecision(promote=False, reason=reason, median_change=median, worst_change=worst.change)
    return GateDecision(
        promote=True,
        reason=f"weighted median of held-out loss {median:+.2%}, worst device {worst.change:+.2%}",
        median_change=median,
        worst_change=worst.change,
    )
