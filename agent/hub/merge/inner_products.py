"""Inner products of the updates of a merge, from which robust rules know who is near whom.

For a linear rule an update is its row of numbers. For any other an update is what it changes of the layers' weights:
with the factors ``B_s``, ``A_s`` that it started from, ``L = [B_s, dB]`` and ``R = [dA; A_s + dA]``, the change of a
layer is ``L R``, and the inner product of two changes is that of two small matrices::

    <L_i R_i, L_j R_j>  =  sum over all entries of  (L_i^T L_j) * (R_i R_j^T)

so no matrix of a layer's size is ever made. All is computed in float32 and summed over slices or layers in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.hub.merge.spool import Spool
from agent.llm.adapter import Adapter, FloatArray, ModulePath

_AT_ONCE = 1 << 22
"""Numbers of a block of inner products of single components: 16 MiB."""


def row_products(spool: Spool) -> NDArray[np.float64]:
    """Give the inner product of each two rows; ``count^2 * length / 2`` multiplications."""
    gram = np.zeros((spool.count, spool.count))
    for _, rows in spool.slices():
        gram += rows @ rows.T
    return gram


def change_products(spool: Spool, starts: Sequence[Adapter]) -> NDArray[np.float64]:
    """Give the inner product of each two changes of the weights, without the adapter's scaling.

    That takes ``(2 * rank * count)^2 * (out + in) / 2`` multiplications a layer.

    Args:
        spool: ``dA`` and ``dB`` of each update, zero beyond its rank.
        starts: what each update started from.
    """
    gram = np.zeros((spool.count, spool.count))
    for name in spool.places.shapes:
        gram += _of_layer(*_factors(spool, starts, name))
    return gram


def _factors(spool: Spool, starts: Sequence[Adapter], name: ModulePath) -> tuple[FloatArray, FloatArray]:
    """Give ``L`` of a layer, shape ``(count, 2 * rank, out)``, and ``R``, shape ``(count, 2 * rank, in)``."""
    rows = range(spool.count)
    a, b = spool.factors(name, "a", rows), spool.factors(name, "b", rows)
    first_a = np.stack([start.modules[name].a for start in starts])
    first_b = np.stack([start.modules[name].b for start in starts])
    left = np.concatenate([first_b, b], axis=2).transpose(0, 2, 1)
    return left, np.concatenate([a, first_a + a], axis=1)


def _of_layer(left: FloatArray, right: FloatArray) -> NDArray[np.float64]:
    count, inner, _ = left.shape
    lefts = np.ascontiguousarray(left).reshape(count * inner, -1)
    rights = right.reshape(count * inner, -1)
    gram = np.zeros((count, count))
    step = max(1, _AT_ONCE // (inner * inner * count))
    for first in range(0, count, step):
        some = slice(first * inner, (first + step) * inner)
        entries = (lefts[some] @ lefts.T) * (rights[some] @ rights.T)
        blocks = entries.reshape(-1, inner, count, inner)
        gram[first : first + step] = blocks.sum(axis=(1, 3), dtype=np.float64)
    return (gram + gram.T) / 2
