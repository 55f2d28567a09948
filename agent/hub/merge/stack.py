"""The default merge rule: the exact weighted mean of what the devices changed, whatever their ranks.

A device of rank r starts from the first r components ``A_s``, ``B_s`` of the community's ``A``, ``B`` and changes them
by ``dA``, ``dB``. Its change of the layer's weight is, before scaling::

    (B_s + dB)(A_s + dA) - B_s A_s  =  B_s dA  +  dB A_s  +  dB dA

The first two terms are linear, so their weighted sums are two matrices of the community's rank (lower ranks fill the
first rows and columns only); the third is kept as stacked factors. So nothing is averaged that may not be: the mean of
products is not the product of means (Wang et al. 2024, *FLoRA*, section 3).

At the end everything is one product in stacked factors, ``B A + carry + server_lr * mean of the changes``, whose
singular value decomposition gives the best adapter of the community's rank (Eckart and Young 1936). The rest is carried
into the next merge, so over the rounds nothing is lost; only components beyond ``carry_rank`` are dropped, and their
energy is published.

Numbers are float64 inside and float32 outside. The same updates in the same order (see :mod:`agent.hub.merge.rule`)
give the same bytes on the same machine and BLAS; on another the last bits may differ, as in any such library.
"""

from __future__ import annotations

import math

import numpy as np

from agent.errors import AdapterError, MergeError
from agent.hub.merge.carry import carry_from_bytes, carry_to_bytes
from agent.hub.merge.factors import Components, Matrix, Product, Sum, decompose, stack
from agent.hub.merge.rule import Merged, MergeReport
from agent.llm.adapter import Adapter, LoraFactors, ModulePath
from agent.update.delta import Delta, Factors, check_fit, product_norms, start_for_rank
from agent.update.start import fresh_rows

CARRY_RANK = 128
_DEAD = 1e-7
"""Components below this share of the largest one are float32 noise."""
_TOO_LARGE = 1e18
"""A product of two factors below this stays far within float32; training gives nothing near it."""


class StackRule:
    """Exact merge in factor form.

    Args:
        server_lr: what the mean change is multiplied by; 1 is the plain mean.
        carry_rank: components a layer carries into the next merge at most.
    """

    name = "stack"

    def __init__(self, *, server_lr: float = 1.0, carry_rank: int = CARRY_RANK) -> None:
        if not (math.isfinite(server_lr) and server_lr > 0) or carry_rank < 0:
            raise ValueError(f"a server rate of {server_lr} or a carry of rank {carry_rank} makes no sense")
        self._server_lr = server_lr
        self._carry_rank = carry_rank

    def factors(self, round_number: int) -> Factors:  # noqa: ARG002 (a promise of every rule)
        """Both, in every round."""
        return "both"

    def start(self, community: Adapter, carry: bytes = b"") -> StackAccumulator:
        """Begin a merge; see :class:`~agent.hub.merge.rule.MergeRule`."""
        return StackAccumulator(
            community,
            carry_from_bytes(carry, community.shapes),
            server_lr=self._server_lr,
            carry_rank=self._carry_rank,
        )


class StackAccumulator:
    """One merge under way: unnormalised weighted sums, divided by the sum of weights at the end."""

    def __init__(
        self, community: Adapter, carry: dict[ModulePath, Product], *, server_lr: float, carry_rank: int
    ) -> None:
        self._community = community
        self._carry = carry
        self._server_lr = server_lr
        self._carry_rank = carry_rank
        self._starts: dict[int, Adapter] = {}
        self._layers = {name: _Layer(factors) for name, factors in community.modules.items()}
        self._weights: list[float] = []
        self._norms: list[float] = []

    def add(self, delta: Delta, weight: float) -> None:
        """Fold in one update; see :class:`~agent.hub.merge.rule.Accumulator`."""
        if not (math.isfinite(weight) and weight > 0):
            raise MergeError(
                f"an update cannot weigh {weight}", advice="Leave updates out of the merge instead of weighing them 0."
            )
        try:
            start = self._starts.setdefault(delta.rank, start_for_rank(self._community, delta.rank))
            check_fit(start, delta)
        except AdapterError as cause:
            raise MergeError(f"an update does not fit: {cause}", advice=cause.advice) from cause
        if not delta.is_finite:
            raise MergeError("an update holds numbers that are not finite", advice="Refuse it before the merge.")
        self._norms.append(math.sqrt(sum(norm**2 for norm in product_norms(start, delta).values())))
        self._weights.append(weight)
        for name, change in delta.modules.items():
            self._layers[name].add(change, weight)

    def finish(self) -> Merged:
        """Give the next adapter; see :class:`~agent.hub.merge.rule.Accumulator`."""
        if not self._weights:
            raise MergeError("there is no update to merge", advice="Wait for devices, or close the round without one.")
        total = math.fsum(self._weights)
        released = carried = everything = 0.0
        modules: dict[ModulePath, LoraFactors] = {}
        left_over: dict[ModulePath, Product] = {}
        rank = self._community.rank
        for name, layer in self._layers.items():
            parts = layer.parts(self._server_lr / total)
            if name in self._carry:
                parts.append(self._carry[name])
            whole = stack(parts)
            if not (_is_sane(whole.left) and _is_sane(whole.right)):
                raise MergeError(f"the sum for module {name} is too large", advice="Lower the bound on norms.")
            components = decompose(whole)
            modules[name] = self._release(components, name)
            last = min(rank + self._carry_rank, _alive(components))
            left_over[name] = _balanced(components, rank, max(rank, last))
            energy = components.s**2
            everything += float(energy.sum())
            released += float(energy[:rank].sum())
            carried += float(energy[rank : max(rank, last)].sum())
        unit = everything or 1.0
        report = MergeReport(
            updates=len(self._weights),
            weights=tuple(weight / total for weight in self._weights),
            norms=tuple(self._norms),
            released_energy=released / unit if everything else 1.0,
            carried_energy=carried / unit,
            discarded_energy=max(0.0, everything - released - carried) / unit,
        )
        community = self._community
        adapter = Adapter(rank=rank, alpha=community.alpha, modules=modules, base_sha256=community.base_sha256)
        return Merged(adapter=adapter, carry=carry_to_bytes(left_over), report=report)

    def _release(self, components: Components, name: ModulePath) -> LoraFactors:
        """Give the first components as factors that share each singular value evenly.

        A component that is not there gets a fresh row in ``A`` and zeros in ``B``: it changes nothing, but can be
        trained, which one with zeros in both cannot.
        """
        rank = self._community.rank
        alive = min(rank, _alive(components))
        product = _balanced(components, 0, alive)
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
        self._cross = Sum(community.shape)

    def add(self, change: LoraFactors, weight: float) -> None:
        """Fold in one device's ``dA`` and ``dB``."""
        rank = change.a.shape[0]
        a = change.a.astype(np.float64)
        b = change.b.astype(np.float64) * weight
        self._sum_a[:rank] += weight * a
        self._sum_b[:, :rank] += b
        self._cross.add(Product(left=b, right=a))

    def parts(self, rate: float) -> list[Product]:
        """Give products whose sum is the community's, plus ``rate`` times the sum of the changes."""
        linear = Product(
            left=np.hstack([self._b, rate * self._sum_b]), right=np.vstack([self._a + rate * self._sum_a, self._a])
        )
        return [linear, *(Product(left=rate * part.left, right=part.right) for part in self._cross.total())]


def _is_sane(matrix: Matrix) -> bool:
    """Tell whether every number is finite, and small enough for products to be so in float32."""
    return bool((np.abs(matrix) < _TOO_LARGE).all())


def _alive(components: Components) -> int:
    """Count the components that are more than noise."""
    return int(np.count_nonzero(components.s > _DEAD * components.s[0])) if components.s.size else 0


def _balanced(components: Components, first: int, last: int) -> Product:
    """Give components ``first`` to ``last`` as a product in which each factor has the root of the singular value."""
    roots = np.sqrt(components.s[first:last])
    return Product(left=components.u[:, first:last] * roots, right=roots[:, None] * components.vt[first:last])
