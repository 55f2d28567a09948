"""The linear rules: the weighted mean of what was sent, number by number.

``fedavg`` takes the mean of ``A`` and the mean of ``B`` (McMahan et al. 2017, *Communication-efficient learning*, on
LoRA's factors). The mean of products is not the product of means, so it is the inexact baseline everyone knows. Devices
of lower rank fill the first rows and columns; the others count as unchanged (zero-padding: Cho et al. 2024, *HetLoRA*,
section 3.2, without its pruning).

``ffa`` freezes ``A`` where it was drawn, and averages ``B`` alone (Sun et al. 2024, *Improving LoRA in
privacy-preserving federated learning*, FFA-LoRA). ``alternate`` trains ``B`` in odd rounds and ``A`` in even ones
(Chen et al. 2024, *RoLoRA*). Both are exact: with one factor fixed, the product is linear in the other.

What is sent is only added up, so these rules also work for a hub that sees nothing but sums; and the basis of the
factors never changes, so outer optimisers keep their moments number by number (:mod:`agent.hub.merge.outer`). An update
that is late is added as any other: its numbers mean the same as today's.

The report's norms and cosines are those of the numbers sent; cosines are estimates (:mod:`agent.hub.merge.likeness`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from agent.errors import MergeError
from agent.governance.charter import OuterOptimiser
from agent.hub.merge.carry import carry_from_bytes, carry_to_bytes, damaged
from agent.hub.merge.intake import Intake, is_sane
from agent.hub.merge.layout import SIDES, Layout, Side
from agent.hub.merge.likeness import VectorSketcher
from agent.hub.merge.outer import PLAIN, Moments, Vector, vector_step
from agent.hub.merge.rule import Merged
from agent.llm.adapter import Adapter, FloatArray
from agent.update.delta import Delta, Factors

_KIND = "linear"


class FedAvgRule:
    """Mean of ``A``, mean of ``B``."""

    name = "fedavg"
    linear = True
    takes: frozenset[Factors] = frozenset({"both", "a", "b"})

    def factors(self, round_number: int) -> Factors:  # noqa: ARG002 (a promise of every rule)
        """Both, in every round."""
        return "both"

    def start(self, community: Adapter, carry: bytes = b"", *, outer: OuterOptimiser = PLAIN) -> LinearAccumulator:
        """Begin a merge; see :class:`~agent.hub.merge.rule.MergeRule`."""
        return LinearAccumulator(community, carry_from_bytes(_KIND, carry), outer=outer, takes=self.takes)


class FfaRule(FedAvgRule):
    """``A`` stays as it was drawn; mean of ``B``."""

    name = "ffa"
    takes: frozenset[Factors] = frozenset({"b"})

    def factors(self, round_number: int) -> Factors:  # noqa: ARG002
        """``B``, in every round."""
        return "b"


class AlternateRule(FedAvgRule):
    """``B`` and ``A`` in turn: a late update may bring the one that is not in turn."""

    name = "alternate"
    takes: frozenset[Factors] = frozenset({"a", "b"})

    def factors(self, round_number: int) -> Factors:
        """``B`` in odd rounds, so that the first one learns something; ``A`` in even ones."""
        return "b" if round_number % 2 else "a"


class LinearAccumulator:
    """One merge under way: the weighted sum of all updates as one vector."""

    def __init__(
        self, community: Adapter, carry: Mapping[str, FloatArray], *, outer: OuterOptimiser, takes: frozenset[Factors]
    ) -> None:
        self._community = community
        self._outer = outer
        self._takes = takes
        self._intake = Intake(community)
        self._layout = Layout(community.shapes, community.rank)
        self._sketcher = VectorSketcher(self._layout.length)
        self._sum: Vector = np.zeros(self._layout.length)
        self._trained: set[Factors] = set()
        self._moments = {side: _moments_from(carry, side, outer, self._layout) for side in SIDES}

    def add(self, delta: Delta, weight: float, *, start: Adapter | None = None) -> None:
        """Fold in one update; see :class:`~agent.hub.merge.rule.Accumulator`."""
        if delta.factors not in self._takes:
            raise MergeError(
                f"an update that trained {delta.factors} came where {' or '.join(sorted(self._takes))} is trained",
                advice="Refuse updates whose factors are not the round's.",
            )
        self._intake.check(delta, weight, start)
        vector = self._layout.vector(delta.modules)
        self._intake.count(weight, float(np.linalg.norm(vector.astype(np.float64))), self._sketcher.sketch(vector))
        self._sum += weight * vector
        self._trained.add(delta.factors)

    def finish(self) -> Merged:
        """Give the next adapter; see :class:`~agent.hub.merge.rule.Accumulator`."""
        report = self._intake.report()
        mean = self._sum / self._intake.total
        step = np.zeros_like(mean)
        moments = dict(self._moments)
        for side in SIDES:
            if self._trained & {"both", side}:
                here = self._layout.side(side)
                step[here], moments[side] = vector_step(self._outer, mean[here], self._moments[side])
        if not is_sane(step):
            raise MergeError("the sum of the updates is too large", advice="Lower the bound on norms.")
        after = (self._layout.vector(self._community.modules) + step).astype(np.float32)
        modules = self._layout.modules(after)
        carry = carry_to_bytes(_KIND, _moments_to(moments, self._outer))
        return Merged(adapter=replace(self._community, modules=modules), carry=carry, report=report)


def _moments_from(carry: Mapping[str, FloatArray], side: Side, outer: OuterOptimiser, layout: Layout) -> Moments:
    """Read what the optimiser remembers of one factor; nothing where another one wrote the carry."""
    size = int(np.count_nonzero(layout.side(side)))
    found = [carry.get(f"{outer.name}/{which}/{side}") for which in ("first", "second")]
    if any(vector is not None and vector.shape != (size,) for vector in found):
        raise damaged(f"the moments of {side} do not fit the adapter")
    first, second = (None if vector is None else vector.astype(np.float64) for vector in found)
    if second is not None and (second < 0).any():
        raise damaged(f"a second moment of {side} is negative")
    return Moments(first=first, second=second)


def _moments_to(moments: Mapping[Side, Moments], outer: OuterOptimiser) -> dict[str, Vector]:
    """Give what the optimiser remembers as tensors under its name."""
    tensors: dict[str, Vector] = {}
    for side, kept in moments.items():
        for which, vector in (("first", kept.first), ("second", kept.second)):
            if vector is not None:
                tensors[f"{outer.name}/{which}/{side}"] = vector
    return tensors
