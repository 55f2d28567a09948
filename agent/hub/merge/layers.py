"""The running sums of ``stack``, for layers of one kind at once: one operation of NumPy instead of one a layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.hub.merge.factors import Combination, CrossSum, Product, combine
from agent.hub.merge.likeness import signs
from agent.llm.adapter import Adapter, FloatArray, ModulePath

Stacked = NDArray[np.float32]
"""Factors of several layers, shape ``(layers, rank, in)`` or ``(layers, out, rank)``."""


class Start:
    """What updates of some layers started from, and what comes of it again and again.

    Args:
        a: shape ``(layers, rank, in)``.
        b: shape ``(layers, out, rank)``.
        probes: random vectors on the left of each layer, ``(layers, probes, out)``, and on its right.
    """

    def __init__(self, a: Stacked, b: Stacked, probes: tuple[Stacked, Stacked]) -> None:
        self.a, self.b = a, b
        self._probes = probes
        self._probed_b, self._probed_a = probes[0] @ b, a @ probes[1]
        self._gram_a, self._gram_b = a @ _turned(a), _turned(b) @ b

    def measure(self, a: Stacked, b: Stacked, weight: float) -> tuple[float, FloatArray]:
        """Give the squared norm and a sketch of ``B dA + dB (A + dA)``, all layers together.

        Args:
            a: ``dA`` times the weight.
            b: ``dB`` times the weight.
            weight: what to divide by.
        """
        share = np.float32(1 / weight)
        probed_a = a @ self._probes[1]
        sketch = self._probed_b @ probed_a
        sketch += (self._probes[0] @ b) @ (self._probed_a + share * probed_a)
        own, with_start = a @ _turned(a), a @ _turned(self.a)
        squared = np.vdot(self._gram_b, own)
        squared += 2 * np.vdot(_turned(self.b) @ b, with_start + share * own)
        mixed = share * (with_start + _turned(with_start)) + self._gram_a
        squared += np.vdot(_turned(b) @ b, mixed + share**2 * own)
        return max(0.0, float(squared)) / weight**2, (share * sketch).reshape(-1)


class LayerGroup:
    """Layers of one shape, each with the exact sum of how its product changed.

    What is linear in ``dA`` and ``dB`` is summed elsewhere, number by number; what is not is summed here.

    Args:
        names: of the layers.
        community: the adapter that is merged into.
        probes: random vectors on either side of a layer.
        seed: what these are drawn from.
    """

    def __init__(self, names: Sequence[ModulePath], community: Adapter, *, probes: int, seed: int) -> None:
        self.names = tuple(names)
        out, in_ = community.shapes[self.names[0]]
        self._probes = (
            signs(len(self.names), probes, out, seed=2 * seed),
            signs(len(self.names), in_, probes, seed=2 * seed + 1),
        )
        self._start = self._start_of(community)
        self._cross = CrossSum(len(self.names), (out, in_), 2 * community.rank)

    def add(self, a: Stacked, b: Stacked, *, weight: float, rank: int) -> tuple[float, FloatArray]:
        """Fold in one update from the community's adapter.

        Args:
            a: ``dA`` times the weight, shape ``(layers, community's rank, in)``.
            b: ``dB`` times the weight.
            weight: the update's.
            rank: components above this one are zero.

        Returns:
            The squared Frobenius norm of its change of the products, and a sketch of that, both without the weight.
        """
        left, right = self._cross.room(rank)
        np.copyto(left, b[:, :, :rank])
        np.multiply(a[:, :rank], np.float32(1 / weight), out=right)
        return self._start.measure(a, b, weight)

    def add_late(self, a: Stacked, b: Stacked, *, weight: float, rank: int, start: Adapter) -> tuple[float, FloatArray]:
        """Fold in one update from an older release, linear terms and all; as :meth:`add`."""
        began = self._start_of(start)
        left, right = self._cross.room(2 * rank)
        np.copyto(left[:, :, :rank], began.b[:, :, :rank])
        np.copyto(left[:, :, rank:], b[:, :, :rank])
        np.copyto(right[:, :rank], a[:, :rank])
        np.multiply(a[:, :rank], np.float32(1 / weight), out=right[:, rank:])
        right[:, rank:] += began.a[:, :rank]
        return began.measure(a, b, weight)

    def product(self, index: int) -> Product:
        """Give what the community has released for a layer."""
        return Product(left=self._start.b[index], right=self._start.a[index])

    def change(self, index: int, sum_a: NDArray[np.float64], sum_b: NDArray[np.float64]) -> Combination:
        """Give the weighted sum of all changes of a layer.

        Args:
            index: of the layer.
            sum_a: the weighted sum of ``dA`` of all updates from the community's adapter.
            sum_b: the weighted sum of ``dB`` of them.
        """
        now = self.product(index)
        linear = combine(Product(left=now.left, right=sum_a), Product(left=sum_b, right=now.right))
        return linear.plus(self._cross.total(index))

    def _start_of(self, adapter: Adapter) -> Start:
        factors = [adapter.modules[name] for name in self.names]
        return Start(np.stack([f.a for f in factors]), np.stack([f.b for f in factors]), self._probes)


def _turned(matrices: Stacked) -> Stacked:
    """Transpose each matrix."""
    return matrices.transpose(0, 2, 1)
