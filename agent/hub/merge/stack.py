"""The default merge rule: the exact weighted mean of what the devices changed, whatever their ranks.

A device of rank r starts from the first r components ``A_s``, ``B_s`` of the community's ``A``, ``B`` and changes them
by ``dA``, ``dB``. Its change of the layer's weight is, before scaling::

    (B_s + dB)(A_s + dA) - B_s A_s  =  B_s dA  +  dB A_s  +  dB dA

The first two terms are linear, so their weighted sums are two matrices of the community's rank (lower ranks fill the
first rows and columns only); the third is kept as stacked factors. So nothing is averaged that may not be: the mean of
products is not the product of means (Wang et al. 2024, *FLoRA*, section 3).

An update that started from an older release is held against that one: ``B_s``, ``A_s`` are then its factors, and the
same three terms are its exact change, which is added to the community's product of today.

At the end everything is one product in stacked factors, ``B A + carry + the outer optimiser's step``, whose singular
value decomposition gives the best adapter of the community's rank (Eckart and Young 1936). The rest is carried into
the next merge, so over the rounds nothing is lost; only components beyond ``carry_rank`` are dropped, and their energy
is published.

Numbers are float64 inside and float32 outside. The same updates in the same order (see :mod:`agent.hub.merge.rule`)
give the same bytes on the same machine and BLAS; on another the last bits may differ, as in any such library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from agent.governance.charter import OuterOptimiser
from agent.hub.merge.carry import carry_from_bytes, carry_to_bytes, damaged, products_from_tensors, products_to_tensors
from agent.hub.merge.factors import Components, Matrix, Product, Sum, balanced, decompose, stack, sum_of_squares
from agent.hub.merge.intake import Intake, require_sane
from agent.hub.merge.likeness import ProductSketcher
from agent.hub.merge.outer import PLAIN, ProductMoments, product_step
from agent.hub.merge.rule import Merged
from agent.llm.adapter import Adapter, FloatArray, LoraFactors, ModulePath
from agent.update.delta import Delta, Factors
from agent.update.start import fresh_rows

CARRY_RANK = 128
MOMENTUM_RANK = 32
_DEAD = 1e-7
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
    """One merge under way: unnormalised weighted sums, divided by the sum of weights at the end."""

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
        self._intake = Intake(community)
        self._residual = products_from_tensors(carry, community.shapes, _RESIDUAL)
        self._moments = _moments_from(carry, community, outer)
        self._sketcher = ProductSketcher(community.shapes)
        self._layers = {name: _Layer(factors) for name, factors in community.modules.items()}

    def add(self, delta: Delta, weight: float, *, start: Adapter | None = None) -> None:
        """Fold in one update; see :class:`~agent.hub.merge.rule.Accumulator`."""
        own = self._intake.check(delta, weight, start)
        require_sane(delta.norm**2, "an update")
        changes = {name: _change(own.modules[name], change) for name, change in delta.modules.items()}
        norm = self._community.scaling * math.sqrt(sum(sum_of_squares([change]) for change in changes.values()))
        sketch = self._sketcher.sketch({name: [change] for name, change in changes.items()})
        self._intake.count(weight, norm, sketch)
        for name, change in delta.modules.items():
            self._layers[name].add(change, weight, None if start is None else own.modules[name])

    def finish(self) -> Merged:
        """Give the next adapter; see :class:`~agent.hub.merge.rule.Accumulator`."""
        report = self._intake.report()
        total = self._intake.total
        released = carried = everything = 0.0
        modules: dict[ModulePath, LoraFactors] = {}
        left_over: dict[ModulePath, Product] = {}
        moments: dict[ModulePath, ProductMoments] = {}
        community = self._community
        rank = community.rank
        for name, layer in self._layers.items():
            step, moments[name] = product_step(
                self._outer,
                layer.change(1 / total),
                self._moments.get(name, ProductMoments()),
                scaling=community.scaling,
                rank=self._momentum_rank,
            )
            parts = [layer.product, *step]
            if name in self._residual:
                parts.append(self._residual[name])
            whole = stack(parts)
            require_sane(float(np.sum(whole.left**2) + np.sum(whole.right**2)), f"the sum for module {name}")
            components = decompose(whole)
            modules[name] = self._release(components, name)
            last = min(rank + self._carry_rank, _alive(components))
            left_over[name] = balanced(components, rank, max(rank, last))
            energy = components.s**2
            everything += float(energy.sum())
            released += float(energy[:rank].sum())
            carried += float(energy[rank : max(rank, last)].sum())
        unit = everything or 1.0
        report = replace(
            report,
            released_energy=released / unit if everything else 1.0,
            carried_energy=carried / unit,
            discarded_energy=max(0.0, everything - released - carried) / unit,
        )
        adapter = replace(community, modules=modules)
        tensors = products_to_tensors(left_over, _RESIDUAL) | _moments_to(moments, self._outer)
        return Merged(adapter=adapter, carry=carry_to_bytes(StackRule.name, tensors), report=report)

    def _release(self, components: Components, name: ModulePath) -> LoraFactors:
        """Give the first components as factors that share each singular value evenly.

        A component that is not there gets a fresh row in ``A`` and zeros in ``B``: it changes nothing, but can be
        trained, which one with zeros in both cannot.
        """
        rank = self._community.rank
        alive = min(rank, _alive(components))
        product = balanced(components, 0, alive)
        out, in_ = product.shape
        a = fresh_rows(rank, in_, seed=0, key=f"{self._community.base_sha256}/{name}")
        a[:alive] = product.right
        b = np.zeros((out, rank))
        b[:, :alive] = product.left
        return LoraFactors(a=a.astype(np.float32), b=b.astype(np.float32))


class _Layer:
    """The running sums of one layer."""

    def __init__(self, community: LoraFactors) -> None:
        self._a = community.a.astype(np.float64)
        self._b = community.b.astype(np.float64)
        self._sum_a = np.zeros_like(self._a)
        self._sum_b = np.zeros_like(self._b)
        self._rest = Sum(community.shape)

    @property
    def product(self) -> Product:
        """What the community has released."""
        return Product(left=self._b, right=self._a)

    def add(self, change: LoraFactors, weight: float, start: LoraFactors | None) -> None:
        """Fold in one device's ``dA`` and ``dB``, from the community's adapter or from an older one."""
        rank = change.a.shape[0]
        a = change.a.astype(np.float64)
        b = change.b.astype(np.float64) * weight
        if start is None:
            self._sum_a[:rank] += weight * a
            self._sum_b[:, :rank] += b
            self._rest.add(Product(left=b, right=a))
        else:
            left, right = np.hstack([weight * start.b, b]), np.vstack([a, start.a + a])
            self._rest.add(Product(left=left, right=right))

    def change(self, rate: float) -> list[Product]:
        """Give products whose sum is ``rate`` times the sum of the changes."""
        linear = Product(left=rate * np.hstack([self._b, self._sum_b]), right=np.vstack([self._sum_a, self._a]))
        return [linear, *(part.scaled(rate) for part in self._rest.total())]


def _change(start: LoraFactors, change: LoraFactors) -> Product:
    """Give a device's change of a layer's product, before scaling: ``B dA + dB (A + dA)``."""
    a = change.a.astype(np.float64)
    return Product(
        left=np.hstack([start.b.astype(np.float64), change.b.astype(np.float64)]), right=np.vstack([a, start.a + a])
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
        name: ProductMoments(
            first=[first[name]] if name in first else [], second=None if second is None else float(second[index])
        )
        for index, name in enumerate(community.modules)
    }


def _moments_to(moments: Mapping[ModulePath, ProductMoments], outer: OuterOptimiser) -> dict[str, Matrix]:
    """Give what the optimiser remembers as tensors under its name."""
    first = {name: stack(kept.first) for name, kept in moments.items() if kept.first}
    tensors = products_to_tensors(first, f"{outer.name}/{_FIRST}")
    second = [kept.second for kept in moments.values() if kept.second is not None]
    if second:
        tensors[f"{outer.name}/{_SECOND}"] = np.array(second)
    return tensors


def _alive(components: Components) -> int:
    """Count the components that are more than noise."""
    return int(np.count_nonzero(components.s > _DEAD * components.s[0])) if components.s.size else 0
