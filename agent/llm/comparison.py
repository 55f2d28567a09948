"""What two adapters do to the same base, compared in factor form: the dense matrices are never written out.

An adapter changes a layer by ``P = scaling * B @ A``. With the thin QR factors of ``B`` and of ``A`` transposed, the
singular values of ``P`` are those of ``R_B @ R_A.T``, a square of the rank (Golub and Van Loan, *Matrix Computations*,
section 5.4.5); the difference of two products is the product of their factors stacked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from agent.errors import AdapterError
from agent.llm.adapter import Adapter, LoraFactors, ModulePath

Matrix = NDArray[np.float64]

MOST_ENERGY = 0.99
"""The share of the energy that :attr:`Strength.components` hold."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How strongly one adapter changes one layer, or the whole base.

    Attributes:
        norm: Frobenius norm of the product.
        effective_rank: exponential of the entropy of the singular values' shares (Roy and Vetterli 2007); 0 for no
            change.
        components: how many singular values hold 99 % of the energy.
    """

    norm: float
    effective_rank: float
    components: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two adapters on one layer, or on the whole base.

    Attributes:
        a: the first.
        b: the second.
        cosine: of the angle between their products as vectors; None where one changes nothing.
        difference: norm of ``b``'s product minus ``a``'s.
        relative_difference: that over the norm of ``a``; None where ``a`` changes nothing.
    """

    a: Strength
    b: Strength
    cosine: float | None
    difference: float
    relative_difference: float | None


@dataclass(frozen=True, slots=True)
class AdapterComparison:
    """Two adapters of one base.

    Attributes:
        layers: by module, in the order of the model.
        total: all layers as one; effective rank and components are their means over the layers that change.
    """

    layers: Mapping[ModulePath, Comparison]
    total: Comparison

    def as_dict(self) -> dict[str, object]:
        """Give it for programs."""
        return {"layers": {name: asdict(row) for name, row in self.layers.items()}, "total": asdict(self.total)}


def compare_adapters(first: Adapter, second: Adapter) -> AdapterComparison:
    """Compare two adapters, whatever their ranks and the layers that they change.

    Raises:
        AdapterError: they belong to different bases.
    """
    if first.base_sha256 != second.base_sha256:
        raise AdapterError(
            f"these adapters belong to different bases: {first.base_sha256[:16]}… and {second.base_sha256[:16]}…",
            advice="Compare adapters of one base: a product changes what it is added to, and means nothing elsewhere.",
        )
    layers: dict[ModulePath, Comparison] = {}
    inner = 0.0
    for name in sorted(first.modules.keys() | second.modules.keys(), key=_place):
        a, b = _scaled(first, name), _scaled(second, name)
        if a is not None and b is not None and a.shape != b.shape:
            raise AdapterError(
                f"{name} has shape {a.shape} in one adapter and {b.shape} in the other",
                advice="One of the files is damaged or was made for another base.",
            )
        product = _inner(a, b)
        inner += product
        layers[name] = _compared(_strength(a), _strength(b), product, _distance(a, b))
    rows = layers.values()
    total = _compared(
        _together(row.a for row in rows),
        _together(row.b for row in rows),
        inner,
        math.hypot(*(row.difference for row in rows)),
    )
    return AdapterComparison(layers=layers, total=total)


def strength(adapter: Adapter) -> Strength:
    """Give the strength of an adapter over all of its layers."""
    return _together(_strength(_scaled(adapter, name)) for name in adapter.modules)


@dataclass(frozen=True, slots=True)
class _Product:
    """``left @ right`` in float64: ``(out, rank)`` and ``(rank, in)``."""

    left: Matrix
    right: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        return (self.left.shape[0], self.right.shape[1])


def _scaled(adapter: Adapter, name: ModulePath) -> _Product | None:
    factors: LoraFactors | None = adapter.modules.get(name)
    if factors is None:
        return None
    return _Product(left=adapter.scaling * factors.b.astype(np.float64), right=factors.a.astype(np.float64))


def _singular_values(product: _Product) -> Matrix:
    _, left = np.linalg.qr(product.left)
    _, right = np.linalg.qr(product.right.T)
    values: Matrix = np.linalg.svd(left @ right.T, compute_uv=False)
    return values


def _strength(product: _Product | None) -> Strength:
    values = np.zeros(1) if product is None else _singular_values(product)
    norm = float(np.linalg.norm(values))
    if norm == 0.0:
        return Strength(0.0, 0.0, 0)
    shares = values[values > 0] / values.sum()
    energy = np.cumsum(values**2) / (norm * norm)
    return Strength(
        norm=norm,
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
        components=int(np.searchsorted(energy, MOST_ENERGY) + 1),
    )


def _inner(a: _Product | None, b: _Product | None) -> float:
    """Give the sum of the products' elementwise product, ``trace(P_a.T @ P_b)``."""
    if a is None or b is None:
        return 0.0
    return float(((a.left.T @ b.left) * (a.right @ b.right.T)).sum())


def _distance(a: _Product | None, b: _Product | None) -> float:
    """Give the norm of the difference, without subtracting two large numbers."""
    one, other = a or b, b if a is not None else None
    assert one is not None
    if other is None:
        return float(np.linalg.norm(_singular_values(one)))
    stacked = _Product(left=np.hstack([one.left, -other.left]), right=np.vstack([one.right, other.right]))
    return float(np.linalg.norm(_singular_values(stacked)))


def _compared(a: Strength, b: Strength, inner: float, difference: float) -> Comparison:
    both = a.norm * b.norm
    return Comparison(
        a=a,
        b=b,
        cosine=max(-1.0, min(1.0, inner / both)) if both else None,
        difference=difference,
        relative_difference=difference / a.norm if a.norm else None,
    )


def _together(strengths: Iterable[Strength]) -> Strength:
    rows = [row for row in strengths if row.norm]
    if not rows:
        return Strength(0.0, 0.0, 0)
    return Strength(
        norm=math.hypot(*(row.norm for row in rows)),
        effective_rank=sum(row.effective_rank for row in rows) / len(rows),
        components=round(sum(row.components for row in rows) / len(rows)),
    )


def _place(name: ModulePath) -> tuple[tuple[int, str], ...]:
    """Sort layer 10 after layer 9."""
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in name.split("."))
