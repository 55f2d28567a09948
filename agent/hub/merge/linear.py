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

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from agent.governance.charter import OuterOptimiser
from agent.hub.merge.carry import carry_from_bytes, carry_to_bytes, damaged
from agent.hub.merge.intake import Intake, WeightedCodes, WeightedRow, require_sane
from agent.hub.merge.likeness import VectorSketcher
from agent.hub.merge.outer import PLAIN, Moments, Vector, vector_step
from agent.hub.merge.packed import PackedUpdate
from agent.hub.merge.row import Places, RunningSum
from agent.hub.merge.rule import Merged
from agent.llm.adapter import Adapter, FloatArray
from agent.update.delta import Delta, Factors

TOGETHER = 8
"""Packed updates that are added at once: a sum of float32 then goes through memory once for all of them."""

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


class LinearAccumulator:
    """One merge under way: the weighted sum of all updates, those with the same factors in one row."""

    def __init__(
        self,
        community: Adapter,
        carry: Mapping[str, FloatArray],
        *,
        outer: OuterOptimiser,
        takes: Sequence[Factors],
    ) -> None:
        self._community = community
        self._outer = outer
        self._intake = Intake(community, takes)
        self._sums: dict[Factors, RunningSum] = {}
        self._waiting: list[WeightedCodes] = []
        self._sketchers = {factors: VectorSketcher(places.length) for factors, places in self._intake.places.items()}
        self._moments = {
            factors: _moments_from(carry, factors, outer, places.length)
            for factors, places in self._intake.places.items()
        }

    def add(self, delta: Delta, weight: float, *, start: Adapter | None = None) -> None:
        """Fold in one update; see :class:`~agent.hub.merge.rule.Accumulator`."""
        self._fold(self._intake.read(delta, weight, start), weight)

    def add_packed(self, update: PackedUpdate, weight: float, *, start: Adapter | None = None) -> None:
        """Fold in one update as it is packed, a few together; see :class:`~agent.hub.merge.packed.TakesPacked`."""
        found = self._intake.codes(update, weight, start)
        if found is None:
            self._fold(self._intake.read(update, weight, start), weight)
            return
        if self._waiting and _kind(self._waiting[0]) != _kind(found):
            self._fold_waiting()
        self._waiting.append(found)
        if len(self._waiting) == TOGETHER:
            self._fold_waiting()

    def finish(self) -> Merged:
        """Give the next adapter; see :class:`~agent.hub.merge.rule.Accumulator`."""
        self._fold_waiting()
        report = self._intake.report()
        moments = dict(self._moments)
        modules = dict(self._community.modules)
        for factors, running in self._sums.items():
            places = self._intake.places[factors]
            after = places.row(self._community)
            moments[factors] = self._step(running, moments[factors], after)
            for name, side, view in places.views(after):
                modules[name] = replace(modules[name], **{side: view})
        carry = carry_to_bytes(_KIND, _moments_to(moments, self._outer))
        return Merged(adapter=replace(self._community, modules=modules), carry=carry, report=report)

    def _step(self, running: RunningSum, before: Moments, row: FloatArray) -> Moments:
        """Take the optimiser's step along a sum, from a row of the community's numbers; give what it remembers."""
        moments: list[Moments] = []
        squares = 0.0
        for columns, numbers in running.blocks():
            step, after = vector_step(self._outer, numbers / self._intake.total, before.part(columns))
            with np.errstate(over="ignore", invalid="ignore"):  # it is looked at below
                squares += float(step @ step)
                np.add(row[columns], step, out=row[columns], casting="same_kind")  # in float64, rounded once
            moments.append(after)
        require_sane(squares, "the sum of the updates")
        return Moments.joined(moments)

    def _fold(self, row: WeightedRow, weight: float) -> None:
        """Add a row, after what came before it."""
        self._fold_waiting()
        factors = row.places.factors
        self._count(factors, weight, row.weight, row.norm, self._sketchers[factors].sketch(row.numbers))
        self._sum(row.places).add(row.numbers)

    def _fold_waiting(self) -> None:
        """Add what waits, all of one kind."""
        batch, self._waiting = self._waiting, []
        if not batch:
            return
        places = batch[0].places
        sketcher = self._sketchers[places.factors]
        added = self._sum(places).add_codes([each.codes for each in batch], sketcher.within)
        for each, found in zip(batch, added, strict=True):
            norm = self._intake.norm(found.squares, each.weight)
            self._count(places.factors, each.given, each.weight, norm, sketcher.of_tiles(found.tiles))

    def _sum(self, places: Places) -> RunningSum:
        if places.factors not in self._sums:
            self._sums[places.factors] = RunningSum(places.length)
        return self._sums[places.factors]

    def _count(self, factors: Factors, weight: float, relative: float, norm: float, sketch: FloatArray) -> None:
        """Count an update. What others with other factors changed has nothing in common: their sketches lie beside."""
        sketches = [np.zeros(sketcher.size, np.float32) for sketcher in self._sketchers.values()]
        sketches[list(self._sketchers).index(factors)] = sketch
        self._intake.count(weight, norm, np.concatenate(sketches) / np.float32(relative))


def _kind(waiting: WeightedCodes) -> tuple[Factors, int]:
    """Tell what can be added together."""
    return waiting.places.factors, waiting.codes.bits


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
