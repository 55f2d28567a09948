"""Robust aggregation: what to make of many vectors when up to ``hostile`` of them may be anything at all.

Everything here is a function of numbers that are there already; :mod:`agent.hub.merge.defence` reads the updates.

**Weights from inner products.** Nearest-neighbour mixing, multi-Krum and the geometric median look at nothing but
distances, and give a weighted mean. Distances follow from inner products, so these rules take the Gram matrix of the
updates, ``gram[i, j] = <x_i, x_j>``, and give each update a coefficient. The updates may be rows of numbers or changes
of whole weight matrices in factor form: whatever has inner products.

**Order statistics.** The trimmed mean and the median sort each coordinate for itself, so they need the numbers. They
work on any slice of the coordinates.

Sources: Blanchard et al. 2017, *Machine learning with adversaries* (Krum, multi-Krum); Yin et al. 2018,
*Byzantine-robust distributed learning* (trimmed mean, median); Pillutla et al. 2022, *Robust aggregation for federated
learning* (the smoothed Weiszfeld algorithm); Allouah et al. 2023, *Fixing by mixing* (nearest-neighbour mixing, and
multi-Krum with ``n - f`` neighbours, as here). ``byzfl``, of the last one's authors, is the oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.llm.adapter import FloatArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_WEISZFELD_STEPS = 100
_SETTLED = 1e-9
"""The geometric median is found when no weight changes by more than this in a step."""
_SMOOTHING = 1e-3
"""Distances below this share of the largest norm count as that: so an update in the very middle gets no infinite
weight."""


def upper_median(values: Sequence[float]) -> float:
    """Give the middle value, of two the larger one.

    While fewer than half of the values are hostile it lies between two honest ones; and of two values, neither limits
    the other.
    """
    return sorted(values)[len(values) // 2]


def clip_scales(norms: Sequence[float], multiple: float) -> list[float]:
    """Give what each update is multiplied by so that no norm is above a multiple of the median one; 1 leaves it be."""
    bound = multiple * upper_median(norms)
    return [1.0 if norm <= bound else bound / norm for norm in norms]


def nearest_neighbour_mixing(gram: Matrix, hostile: int) -> Matrix:
    """Give the matrix whose row ``i`` averages the ``n - hostile`` updates nearest to ``i``, itself among them.

    Of equally near ones the first count.
    """
    count = len(gram)
    nearest = np.argsort(_squared_distances(gram), axis=1, kind="stable")[:, : count - hostile]
    mixing = np.zeros((count, count))
    np.put_along_axis(mixing, nearest, 1.0 / (count - hostile), axis=1)
    return mixing


def multi_krum(gram: Matrix, weights: Sequence[float], hostile: int) -> Vector:
    """Give the coefficients of the weighted mean of the ``n - hostile`` updates that have the nearest neighbours.

    An update's score is the sum of its squared distances to the ``n - hostile - 1`` other updates nearest to it; of
    equal scores the first count.
    """
    kept = len(gram) - hostile
    scores = np.sort(_squared_distances(gram), axis=1)[:, 1:kept].sum(axis=1)
    chosen = np.argsort(scores, kind="stable")[:kept]
    found = np.zeros(len(gram))
    found[chosen] = np.asarray(weights, dtype=np.float64)[chosen]
    found /= found.sum()
    return found


def geometric_median(
    gram: Matrix, weights: Sequence[float], *, steps: int = _WEISZFELD_STEPS, smoothing: float | None = None
) -> Vector:
    """Give the coefficients of the point with the least weighted sum of distances, by the smoothed Weiszfeld algorithm.

    It begins at zero, which for updates is the release that stands.

    Args:
        gram: inner products.
        weights: positive.
        steps: at most.
        smoothing: distances below it count as it; a thousandth of the largest norm if not given.
    """
    given = np.asarray(weights, dtype=np.float64)
    squares = np.diag(gram)
    if smoothing is None:
        smoothing = _SMOOTHING * float(np.sqrt(max(squares.max(), 0.0))) or 1.0
    found = np.zeros(len(gram))
    for _ in range(steps):
        projected = gram @ found
        distances = np.sqrt(np.maximum(squares - 2 * projected + found @ projected, 0.0))
        after = given / np.maximum(distances, smoothing)
        after /= after.sum()
        settled = bool(np.abs(after - found).max() < _SETTLED)
        found = after
        if settled:
            break
    return found


def trimmed_mean(rows: FloatArray | Matrix, hostile: int) -> tuple[Vector, Vector]:
    """Give the mean of each column without its ``hostile`` smallest and largest numbers.

    Args:
        rows: one an update.
        hostile: less than half of the rows.

    Returns:
        The means, and of each row how many of its numbers lie within what was kept: of equal ones at its edge, all do.
    """
    kept = np.sort(rows, axis=0)[hostile : len(rows) - hostile]
    means: Vector = kept.mean(axis=0, dtype=np.float64)
    within = (rows >= kept[0]) & (rows <= kept[-1])
    return means, within.sum(axis=1, dtype=np.float64)


def median(rows: FloatArray | Matrix) -> tuple[Vector, Vector]:
    """Give the median of each column, of an even number of rows the mean of both middle ones: all trimmed but these."""
    return trimmed_mean(rows, (len(rows) - 1) // 2)


def _squared_distances(gram: Matrix) -> Matrix:
    """Give the squared distance of each two updates; exactly 0 of each to itself."""
    squares = np.diag(gram)
    found: Matrix = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(found, 0.0)
    return found
