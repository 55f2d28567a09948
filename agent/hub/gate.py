"""The gate: whether a candidate becomes the next release, from what devices found on the text they held back.

The rule has two parts. The typical device must not be worse off: the median of the relative changes, weighted by
held-out tokens, is at most ``tolerance``. And no group of devices may be much worse off.

What is a group? Devices do not say what kind of machine or text they have, and if they did, the rule would depend on
what they say. So every group counts, however one draws it: by language, by kind of text, by how well the release does
there. A candidate is rejected where there is any group of a quarter of the devices in which more than half would be
worse by more than ``harm_limit``. That is so exactly where the worst-off quarter is such a group, so this one alone is
looked at. With up to four devices a quarter is a single device; with more, one device that is wrong or lies cannot
stop a release for all the others, who can each still decline a release that is worse on their own text.

This is the worst-case view of fairness over unknown groups of a least size (Duchi and Namkoong 2021, *Learning models
with uniform performance via distributionally robust optimization*), with a majority in place of a mean, which a single
made-up number could move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.governance.charter import RoundRules
from agent.hub.weights import capped_weights

VERDICT_SHARE = 0.4
"""No verdict weighs more than this, where there are three or more: less than half, so that one alone is no median."""

GROUP_SHARE = 4
"""A group is one device in so many, or more."""


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
    """What the gate says of a candidate, and why.

    Attributes:
        median_change: weighted median of the relative changes of loss; negative is better.
        worst_change: the largest one.
        group: how many devices make a group.
        harmed: how many would get worse by more than the charter's limit.
    """

    promote: bool
    reason: str
    median_change: float = 0.0
    worst_change: float = 0.0
    group: int = 0
    harmed: int = 0


def gate(verdicts: Sequence[Judgement], rules: RoundRules) -> GateDecision:
    """Decide on a candidate: the weighted median must not get worse, and no group much worse.

    Verdicts weigh by held-out tokens, as devices state them, but with three or more of them none for more than 40 % of
    all: a single device that lies cannot decide.
    """
    if len(verdicts) < rules.trial_quorum:
        reason = f"only {len(verdicts)} of at least {rules.trial_quorum} verdicts came: nobody knows whether it is good"
        return GateDecision(promote=False, reason=reason)
    ordered = sorted(verdicts, key=lambda verdict: (verdict.change, verdict.device))
    median, worst = _weighted_median(ordered), ordered[-1]
    group = group_size(len(ordered))
    harmed = sum(verdict.change > rules.harm_limit for verdict in ordered)
    reason = f"weighted median of held-out loss {median:+.2%}, worst device {worst.change:+.2%}"
    promote = True
    if median > rules.tolerance:
        promote, reason = False, f"the weighted median of held-out loss would get {median:+.2%} worse"
    elif 2 * harmed > group:
        who = f"device {worst.device[:10]}" if group == 1 else f"{harmed} of {len(ordered)} devices"
        promote = False
        reason = f"{who} would get more than {rules.harm_limit:.0%} worse (the worst of them {worst.change:+.2%})"
    return GateDecision(promote, reason, median, worst.change, group, harmed)


def group_size(devices: int) -> int:
    """Give how many devices make the smallest group that is protected."""
    return -(-devices // GROUP_SHARE)


def _weighted_median(ordered: Sequence[Judgement]) -> float:
    """Give the change at which half of the weight has passed, from the best on."""
    weights = capped_weights([verdict.targets for verdict in ordered], share=VERDICT_SHARE)
    passed = 0.0
    for verdict, weight in zip(ordered, weights, strict=True):
        passed += weight
        if passed >= 0.5 - 1e-9:
            return verdict.change
    return ordered[-1].change
