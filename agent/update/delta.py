"""What a device learned: the trained factors minus those it started from.

With the factors ``A`` and ``B`` of the start and their changes ``dA`` and ``dB``, the change of the layer's weight is::

    scaling * ((B + dB)(A + dA) - B A)  =  scaling * (B dA + dB (A + dA))

which has rank 2r and is never written out as a dense matrix here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.errors import AdapterError
from agent.llm.adapter import Adapter, LoraFactors, ModulePath

Factors: TypeAlias = Literal["both", "a", "b"]
"""Which factors a device trains; the other one stays as it was at the start."""

_ANOTHER_START = "Train again from the community adapter that this device has now."


@dataclass(frozen=True, slots=True)
class Delta:
    """The change of an adapter's factors.

    Attributes:
        rank: columns of every ``b`` and rows of every ``a``.
        modules: changes ``(dA, dB)`` by module path, float32, in sorted order. A module that was not trained may lack.
        factors: which of them were trained; the change of the other one is zero.
    """

    rank: int
    modules: Mapping[ModulePath, LoraFactors]
    factors: Factors = "both"

    @property
    def norm(self) -> float:
        """The Euclidean norm of all numbers in it, summed in float64."""
        return math.sqrt(sum(_squares(f.a) + _squares(f.b) for f in self.modules.values()))

    @property
    def shapes(self) -> dict[ModulePath, tuple[int, int]]:
        """``(out_features, in_features)`` by module."""
        return {name: factors.shape for name, factors in self.modules.items()}

    @property
    def parameter_count(self) -> int:
        """How many numbers it has."""
        return sum(factors.a.size + factors.b.size for factors in self.modules.values())

    @property
    def is_finite(self) -> bool:
        """Whether it holds neither infinities nor not-a-numbers."""
        return all(bool(np.isfinite(f.a).all() and np.isfinite(f.b).all()) for f in self.modules.values())


def difference(start: Adapter, trained: Adapter, factors: Factors = "both") -> Delta:
    """Give what training changed.

    Args:
        start: where it began.
        trained: where it ended.
        factors: which factors it was to change.

    Raises:
        AdapterError: the two adapters are not of one base, rank, scaling and set of modules, or a factor was changed
            that was frozen.
    """
    same = (
        start.rank == trained.rank
        and math.isclose(start.alpha, trained.alpha, rel_tol=1e-9)
        and start.base_sha256 == trained.base_sha256
        and start.shapes == trained.shapes
    )
    if not same:
        raise AdapterError("the trained adapter is not of the form that it started from", advice=_ANOTHER_START)
    modules = {
        name: LoraFactors(a=after.a - start.modules[name].a, b=after.b - start.modules[name].b)
        for name, after in sorted(trained.modules.items())
    }
    if any((f.a if factors == "b" else f.b).any() for f in modules.values() if factors != "both"):
        raise AdapterError("training changed a factor that was frozen in this round", advice=_ANOTHER_START)
    return Delta(rank=start.rank, modules=modules, factors=factors)


def apply(start: Adapter, delta: Delta) -> Adapter:
    """Give the adapter that lies ``delta`` away from ``start``.

    Raises:
        AdapterError: the delta does not fit the adapter.
    """
    check_fit(start, delta)
    modules = dict(start.modules)
    for name, change in delta.modules.items():
        modules[name] = LoraFactors(a=modules[name].a + change.a, b=modules[name].b + change.b)
    return Adapter(rank=start.rank, alpha=start.alpha, modules=modules, base_sha256=start.base_sha256)


def clip(delta: Delta, max_norm: float) -> Delta:
    """Give the delta scaled down to a norm of at most ``max_norm``; the same object where it is within already.

    Clipping bounds what one device can do to the merge, whatever it trained on (McMahan et al. 2018, *Learning
    differentially private recurrent language models*, section 2.3: flat clipping).
    """
    if not max_norm > 0:
        raise ValueError(f"a norm bound must be positive, not {max_norm}")
    norm = delta.norm
    if norm <= max_norm:
        return delta
    factor = max_norm / norm
    modules = {
        name: LoraFactors(a=(f.a * factor).astype(np.float32), b=(f.b * factor).astype(np.float32))
        for name, f in delta.modules.items()
    }
    return Delta(rank=delta.rank, modules=modules, factors=delta.factors)


def start_for_rank(community: Adapter, rank: int) -> Adapter:
    """Give the adapter that a device of this rank starts from: the first components, with the same scaling.

    The components of a merged adapter are ordered by singular value, so the first ones are its best approximation.

    Raises:
        AdapterError: the community adapter has fewer components.
    """
    if rank == community.rank:
        return community
    if not 1 <= rank < community.rank:
        raise AdapterError(
            f"a device cannot train at rank {rank} in a community whose adapter has rank {community.rank}",
            advice=f"Choose a rank from 1 to {community.rank}.",
        )
    modules = {
        name: LoraFactors(a=factors.a[:rank].copy(), b=np.ascontiguousarray(factors.b[:, :rank]))
        for name, factors in community.modules.items()
    }
    return Adapter(rank=rank, alpha=community.scaling * rank, modules=modules, base_sha256=community.base_sha256)


def product_norms(start: Adapter, delta: Delta) -> dict[ModulePath, float]:
    """Give the Frobenius norm of each layer's weight change, scaling included, computed on the factors.

    Args:
        start: the adapter the device started from, of the delta's rank.
        delta: what it changed.

    Raises:
        AdapterError: the delta does not fit the adapter.
    """
    check_fit(start, delta)
    norms: dict[ModulePath, float] = {}
    for name, change in delta.modules.items():
        a, b = start.modules[name].a.astype(np.float64), start.modules[name].b.astype(np.float64)
        left = np.hstack([b, change.b.astype(np.float64)])
        right = np.vstack([change.a.astype(np.float64), a + change.a])
        norms[name] = start.scaling * factor_norm(left, right)
    return norms


def factor_norm(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Give the Frobenius norm of ``left @ right`` without forming it: the inner product of the two Gram matrices.

    Args:
        left: shape ``(out, k)``.
        right: shape ``(k, in)``.
    """
    return math.sqrt(max(0.0, float(np.sum((left.T @ left) * (right @ right.T)))))


def check_fit(start: Adapter, delta: Delta) -> None:
    """Check that the delta has the adapter's rank, and only modules and shapes that the adapter has.

    Raises:
        AdapterError: it does not.
    """
    shapes = start.shapes
    stray = [name for name, shape in delta.shapes.items() if shapes.get(name) != shape]
    if delta.rank != start.rank or stray:
        what = f"module {stray[0]}" if stray else f"rank {delta.rank} instead of {start.rank}"
        raise AdapterError(f"the change does not fit the adapter: {what}", advice=_ANOTHER_START)


def _squares(values: NDArray[np.float32]) -> float:
    """Sum the squares in float64."""
    flat = values.ravel().astype(np.float64)
    return float(flat @ flat)
