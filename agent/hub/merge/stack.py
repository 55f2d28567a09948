"""The default merge rule: the exact weighted mean of what the devices changed, whatever their ranks.

A device of rank r starts from the first r components ``A_s``, ``B_s`` of the community's ``A``, ``B`` and changes them
by ``dA``, ``dB``. Its change of the layer's weight is, before scaling::

    (B_s + dB)(A_s + dA) - B_s A_s  =  B_s dA  +  dB A_s  +  dB dA

The first two terms are linear, so their weighted sums are two matrices of the community's rank (lower ranks fill the
first rows and columns only); the third is kept as stacked factors. So nothing is averaged that may not be: the mean of
products is not the product of means (Wang et al. 2024, *FLoRA*, section 3).

An update that started from an older release is held against that one: ``B_s``, ``A_s`` are then its factors, and the
same three terms are its exact change, which is added to the community's product of today.

At the end everything is one sum, ``B A + carry + the outer optimiser's step``, whose largest components are the best
adapter of the community's rank (Eckart and Young 1936). The rest is carried into the next merge, so over the rounds
nothing is lost; only components beyond ``carry_rank`` are dropped, and their energy is published.

The third term is by far the most work: ``2 * out * in * rank`` operations for each layer and update. So it is done in
float32, many updates in one matrix product (:class:`~agent.hub.merge.factors.CrossSum` bounds the error), and the
linear terms in float32 and float64 (:class:`~agent.hub.merge.row.RunningSum`). The same updates in the same order (see
:mod:`agent.hub.merge.rule`) give the same bytes on the same machine and BLAS; on another the last bits may differ, as
in any such library.

The report's norms are those of the weights' changes, scaling included; cosines are estimates
(:mod:`agent.hub.merge.likeness`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.governance.charter import OuterOptimiser
from agent.hub.merge.carry import carry_from_bytes, carry_to_bytes, damaged, products_from_tensors, products_to_tensors
from agent.hub.merge.factors import Combination, Components, Product, combine
from agent.hub.merge.intake import Intake, WeightedRow, require_sane
from agent.hub.merge.layers import LayerGroup
from agent.hub.merge.likeness import probes
from agent.hub.merge.outer import PLAIN, ProductMoments, product_step
from agent.hub.merge.packed import PackedUpdate
from agent.hub.merge.row import RunningSum
from agent.hub.merge.rule import Merged, MergeReport
from agent.llm.adapter import Adapter, FloatArray, LoraFactors, ModulePath
from agent.update.delta import Delta, Factors
from agent.update.start import fresh_rows

CARRY_RANK = 32
MOMENTUM_RANK = 32
_DEAD = 1e-6
"""Components below this share of the largest one are float32 noise."""
_RESIDUAL, _FIRST, _SECOND = "residual/", "first/", "second"


class StackRule:
    """Exact merge in factor form.

    Args:
        carry_rank: components of what could not be released that a layer carries into the next merge, at most.
        momentum_rank: components of an outer optimiser's momentum that a layer carries, at most.
    """

    name = "stack"
    linear = False

    def __init__(self, *, carry_rank: int = CARRY_RANK, momentum_rank: int = MOMENTUM_RANK) -> None:
        if carry_rank < 0 or momentum_rank < 1:
            raise ValueError(f"a carry of rank {carry_rank}, or momentum of rank {momentum_rank}, makes no sense")
        self._carry_rank = carry_rank
        self._momentum_rank = momentum_rank

    def factors(self, round_number: int) -> Factors:  # noqa: ARG002 (a promise of every rule)
        """Both, in every round."""
        return "both"

    def start(self, community: Adapter, carry: bytes = b"", *, outer: OuterOptimiser = PLAIN) -> StackAccumulator:
        """Begin a merge; see :class:`~agent.hub.merge.rule.MergeRule`."""
        tensors = carry_from_bytes(self.name, carry)
        return StackAccumulator(
            community, tensors, outer=outer, carry_rank=self._carry_rank, momentum_rank=self._momentum_rank
        )


class StackAccumulator:
    """One merge under way: weighted sums, divided by the sum of weights at the end."""

    def __init__(
        self,
        community: Adapter,
        carry: Mapping[str, FloatArray],
        *,
        outer: OuterOptimiser,
        carry_rank: int,
        momentum_rank: int,
    ) -> None:
        self._community = community
        self._outer = outer
        self._carry_rank = carry_rank
        self._momentum_rank = momentum_rank
        self._residual = products_from_tensors(carry, community.shapes, _RESIDUAL)
        self._moments = _moments_from(carry, community, outer)
        self._intake = Intake(community, ("both",))
        self._places = self._intake.places["both"]
        self._sum = RunningSum(self._places.length)
        self._groups = [
            LayerGroup(names, community, probes=probes(len(community.modules)), seed=index)
            for index, names in enumerate(_kinds(community))
        ]

    def add(self, delta: Delta, weight: float, *, start: Adapter | None = None) -> None:
        """Fold in one update; see :class:`~agent.hub.merge.rule.Accumulator`."""
        self._fold(self._intake.read(delta, weight, start), weight, start)

    def add_packed(self, update: PackedUpdate, weight: float, *, start: Adapter | None = None) -> None:
        """Fold in one update as it is packed; see :class:`~agent.hub.merge.packed.TakesPacked`."""
        self._fold(self._intake.read(update, weight, start), weight, start)

    def finish(self) -> Merged:
        """Give the next adapter; see :class:`~agent.hub.merge.rule.Accumulator`."""
        report = self._intake.report()
        rate = 1 / self._intake.total
        sums = {(name, side): view for name, side, view in self._places.views(self._sum.total())}
        layers: dict[ModulePath, _Layer] = {}
        for group in self._groups:
            for index, name in enumerate(group.names):
                change = group.change(index, sums[name, "a"], sums[name, "b"]).scaled(rate)
                layers[name] = self._layer(name, group.product(index), change)
        modules = {name: layers[name].released for name in self._community.modules}
        tensors = products_to_tensors({name: layer.residual for name, layer in layers.items()}, _RESIDUAL)
        moments = {name: layers[name].moments for name in self._community.modules}
        return Merged(
            adapter=replace(self._community, modules=modules),
            carry=carry_to_bytes(StackRule.name, tensors | _moments_to(moments, self._outer)),
            report=_with_energies(report, list(layers.values())),
        )

    def _fold(self, row: WeightedRow, weight: float, start: Adapter | None) -> None:
        """Add a row to the sums of all layers."""
        squared, sketches = 0.0, []
        for group in self._groups:
            a, b = (self._places.stacked(row.numbers, group.names, side) for side in ("a", "b"))
            if start is None:
                found = group.add(a, b, weight=row.weight, rank=row.rank)
            else:
                found = group.add_late(a, b, weight=row.weight, rank=row.rank, start=start)
            squared += found[0]
            sketches.append(found[1])
        if start is None:
            self._sum.add(row.numbers)
        self._intake.count(weight, self._community.scaling * math.sqrt(squared), np.concatenate(sketches))

    def _layer(self, name: ModulePath, product: Product, change: Combination) -> _Layer:
        """Give what becomes of one layer."""
        step, moments = product_step(
            self._outer, change, self._moments[name], scaling=self._community.scaling, rank=self._momentum_rank
        )
        whole = combine(product).plus(step)
        if name in self._residual:
            whole = whole.plus(combine(self._residual[name]))
        rank = self._community.rank
        components = whole.components(rank + self._carry_rank)
        require_sane(components.energy, f"the sum for module {name}")
        last = max(rank, _alive(components))
        return _Layer(
            released=self._release(components, name),
            residual=components.between(rank, last),
            moments=moments,
            energy=components.energy,
            released_energy=float(np.sum(components.s[:rank] ** 2)),
            carried_energy=float(np.sum(components.s[rank:last] ** 2)),
        )

    def _release(self, components: Components, name: ModulePath) -> LoraFactors:
        """Give the first components as factors that share each singular value evenly.

        A component that is not there gets a fresh row in ``A`` and zeros in ``B``: it changes nothing, but can be
        trained, which one with zeros in both cannot.
        """
        rank = self._community.rank
        alive = min(rank, _alive(components))
        product = components.between(0, alive)
        out, in_ = self._community.shapes[name]
        a = fresh_rows(rank, in_, seed=0, key=f"{self._community.base_sha256}/{name}")
        a[:alive] = product.right
        b = np.zeros((out, rank))
        b[:, :alive] = product.left
        return LoraFactors(a=a.astype(np.float32), b=b.astype(np.float32))


@dataclass(frozen=True, slots=True)
class _Layer:
    """What became of one layer; energies are squared Frobenius norms."""

    released: LoraFactors
    residual: Product
    moments: ProductMoments
    energy: float
    released_energy: float
    carried_energy: float


def _kinds(community: Adapter) -> list[list[ModulePath]]:
    """Give the modules of each kind: of one name within their block, and of one shape."""
    kinds: dict[tuple[str, tuple[int, int]], list[ModulePath]] = {}
    for name, shape in community.shapes.items():
        kinds.setdefault((name.rsplit(".", 1)[-1], shape), []).append(name)
    return list(kinds.values())


def _with_energies(report: MergeReport, layers: list[_Layer]) -> MergeReport:
    everything = sum(layer.energy for layer in layers)
    if not everything:
        return report
    released = sum(layer.released_energy for layer in layers) / everything
    carried = sum(layer.carried_energy for layer in layers) / everything
    return replace(
        report, released_energy=released, carried_energy=carried, discarded_energy=max(0.0, 1.0 - released - carried)
    )


def _moments_from(
    carry: Mapping[str, FloatArray], community: Adapter, outer: OuterOptimiser
) -> dict[ModulePath, ProductMoments]:
    """Read what the optimiser remembers; nothing where another one wrote the carry."""
    first = products_from_tensors(carry, community.shapes, f"{outer.name}/{_FIRST}")
    second = carry.get(f"{outer.name}/{_SECOND}")
    if second is not None and (second.shape != (len(community.modules),) or (second < 0).any()):
        raise damaged(f"{_SECOND} does not fit the adapter")
    return {
        name: ProductMoments(first=first.get(name), second=None if second is None else float(second[index]))
        for index, name in enumerate(community.modules)
    }


def _moments_to(moments: Mapping[ModulePath, ProductMoments], outer: OuterOptimiser) -> dict[str, NDArray[np.floating]]:
    """Give what the optimiser remembers as tensors under its name."""
    first = {name: kept.first for name, kept in moments.items() if kept.first is not None}
    tensors = products_to_tensors(first, f"{outer.name}/{_FIRST}")
    second = [kept.second for kept in moments.values() if kept.second is not None]
    if second:
        tensors[f"{outer.name}/{_SECOND}"] = np.array(second)
    return tensors


def _alive(components: Components) -> int:
    """Count the components that are more than noise."""
    return int(np.count_nonzero(components.s > _DEAD * components.s[0])) if components.s.size else 0
