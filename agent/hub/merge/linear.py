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

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from agent.errors import MergeError
from agent.governance.charter import OuterOptimiser
from agent.hub.merge.carry import carry_from_bytes, carry_to_bytes, damaged
from agent.hub.merge.intake import Intake, require_sane
from agent.hub.merge.likeness import VectorSketcher
from agent.hub.merge.outer import PLAIN, Moments, Vector, vector_step
from agent.hub.merge.packed import PackedUpdate, fills
from agent.hub.merge.row import Places, RunningSum
from agent.hub.merge.rule import Merged
from agent.llm.adapter import Adapter, FloatArray
from agent.update.delta import Delta, Factors

_KIND = "linear"


class FedAvgRule:
    """Mean of ``A``, mean of ``B``."""

    name = "fedavg"
    linear = True
    takes: tuple[Factors, ...] = ("both",)

    def factors(self, round_number: int) -> Factors:  # noqa: ARG002 (a promise of every rule)
        """Both, in every round."""
        return "both"

    def start(self, community: Adapter, carry: bytes = b"", *, outer: OuterOptimiser = PLAIN) -> LinearAccumulator:
        """Begin a merge; see :class:`~agent.hub.merge.rule.MergeRule`."""
        return LinearAccumulator(community, carry_from_bytes(_KIND, carry), outer=outer, takes=self.takes)


class FfaRule(FedAvgRule):
    """``A`` stays as it was drawn; mean of ``B``."""

    name = "ffa"
    takes = ("b",)

    def factors(self, round_number: int) -> Factors:  # noqa: ARG002
        """``B``, in every round."""
        return "b"


class AlternateRule(FedAvgRule):
    """``B`` and ``A`` in turn: a late update may bring the one that is not in turn."""

    name = "alternate"
    takes = ("a", "b")

    def factors(self, round_number: int) -> Factors:
        """``B`` in odd rounds, so that the first one learns something; ``A`` in even ones."""
        return "b" if round_number % 2 else "a"


class _Lane:
    """The running sum of the updates that trained the same factors.

    ``row`` is where each comes as one row, times its weight, on its way into the sum.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self.row: FloatArray = np.zeros(places.length, np.float32)
        self.sum = RunningSum(places.length)
        self.sketcher = VectorSketcher(places.length)


class LinearAccumulator:
    """One merge under way: the weighted sum of all updates, those with the same factors in one row."""

    def __init__(
        self,
        community: Adapter,
        carry: Mapping[str, FloatArray],
        *,
        outer: OuterOptimiser,
        takes: tuple[Factors, ...],
    ) -> None:
        self._community = community
        self._outer = outer
        self._intake = Intake(community)
        self._places: dict[Factors, Places] = {
            factors: Places(community.shapes, community.rank, factors) for factors in takes
        }
        self._lanes: dict[Factors, _Lane] = {}
        self._moments = {
            factors: _moments_from(carry, factors, outer, places.length) for factors, places in self._places.items()
        }
        self._unit = 0.0

    def add(self, delta: Delta, weight: float, *, start: Adapter | None = None) -> None:
        """Fold in one update; see :class:`~agent.hub.merge.rule.Accumulator`."""
        lane = self._lane(delta.factors)
        self._intake.check(delta, weight, start)
        lane.places.write(delta, lane.row)
        lane.row *= np.float32(self._relative(weight))
        self._take(lane, weight)

    def add_packed(self, update: PackedUpdate, weight: float, *, start: Adapter | None = None) -> None:
        """Fold in one update as it is packed; see :class:`~agent.hub.merge.packed.TakesPacked`."""
        lane = self._lane(update.layout.factors)
        if not fills(update.layout, lane.places):
            self.add(update.delta(), weight, start=start)
            return
        self._intake.check_start(weight, start)
        update.write(lane.row, self._relative(weight))
        self._take(lane, weight)

    def finish(self) -> Merged:
        """Give the next adapter; see :class:`~agent.hub.merge.rule.Accumulator`."""
        report = self._intake.report()
        total = self._intake.total / self._unit
        moments = dict(self._moments)
        modules = dict(self._community.modules)
        for factors, lane in self._lanes.items():
            step, moments[factors] = vector_step(self._outer, lane.sum.total() / total, moments[factors])
            require_sane(float(step @ step), "the sum of the updates")
            for name, side, view in lane.places.views(step):
                after = (getattr(modules[name], side) + view).astype(np.float32)
                modules[name] = replace(modules[name], **{side: after})
        carry = carry_to_bytes(_KIND, _moments_to(moments, self._outer))
        return Merged(adapter=replace(self._community, modules=modules), carry=carry, report=report)

    def _lane(self, factors: Factors) -> _Lane:
        """Give the sum that updates with these factors go to."""
        if factors not in self._places:
            raise MergeError(
                f"an update that trained {factors} came where {' or '.join(self._places)} is trained",
                advice="Refuse updates whose factors are not the round's.",
            )
        if factors not in self._lanes:
            self._lanes[factors] = _Lane(self._places[factors])
        return self._lanes[factors]

    def _relative(self, weight: float) -> float:
        """Give a weight as a multiple of the first one: it stays within float32 whatever weights are measured in."""
        self._unit = self._unit or weight
        return weight / self._unit

    def _take(self, lane: _Lane, weight: float) -> None:
        """Add the row, which is already weighted."""
        relative = self._relative(weight)
        squared = float(lane.row @ lane.row)
        require_sane(squared, "an update")
        sketch = lane.sketcher.sketch(lane.row) / np.float32(relative)
        self._intake.count(weight, math.sqrt(squared) / relative, self._among_all(lane, sketch))
        lane.sum.add(lane.row)

    def _among_all(self, lane: _Lane, sketch: FloatArray) -> FloatArray:
        """Put a sketch where no update with other factors has its own: what they changed has nothing in common."""
        return np.concatenate(
            [
                sketch if places is lane.places else np.zeros(VectorSketcher.size(places.length), np.float32)
                for places in self._places.values()
            ]
        )


def _moments_from(carry: Mapping[str, FloatArray], factors: Factors, outer: OuterOptimiser, length: int) -> Moments:
    """Read what the optimiser remembers of some factors; nothing where another one wrote the carry."""
    found = [carry.get(f"{outer.name}/{which}/{factors}") for which in ("first", "second")]
    if any(row is not None and row.shape != (length,) for row in found):
        raise damaged(f"the moments of {factors} do not fit the adapter")
    first, second = (None if row is None else row.astype(np.float64) for row in found)
    if second is not None and (second < 0).any():
        raise damaged(f"a second moment of {factors} is negative")
    return Moments(first=first, second=second)


def _moments_to(moments: Mapping[Factors, Moments], outer: OuterOptimiser) -> dict[str, Vector]:
    """Give what the optimiser remembers as tensors under its name."""
    tensors: dict[str, Vector] = {}
    for factors, kept in moments.items():
        for which, row in (("first", kept.first), ("second", kept.second)):
            if row is not None:
                tensors[f"{outer.name}/{which}/{factors}"] = row
    return tensors
