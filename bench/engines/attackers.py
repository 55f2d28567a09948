"""What hostile devices send instead of what they learned: pure functions from honest updates to one row of numbers.

- ``sign-flipped``: each its own update with every sign turned.
- ``scaled``: each its own update, 50 times as large.
- ``a-little-is-enough`` (Baruch et al. 2019): all the same, the mean of the honest updates less ``z``
  standard deviations in every coordinate. They know all honest updates and the hub's rule, and take the ``z`` that
  leads the merge furthest from the honest mean (Shejwalkar and Houmansadr 2021). The ``z`` of Baruch et al., the
  largest that keeps the attackers among the nearer half, is 0 for two of ten.
- ``random``: each its own direction.
- ``not-a-number``: each its own update, with a step that is not a number written into its bytes.

Where there is a bound on norms they stay just within it: whoever is refused has no influence at all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from agent.update import streams

Rows = NDArray[np.float64]
Row = NDArray[np.float64]
Displacement = Callable[[Row], float]

ATTACKS = ("none", "sign-flipped", "scaled", "a-little-is-enough", "random", "not-a-number")
TRAINED = frozenset({"none", "sign-flipped", "scaled", "not-a-number"})
"""Attacks that begin with what the hostile device has learned itself."""
SCALE = 50.0
_LITTLE = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
_WITHIN = 0.98
"""Of the bound, so that rounding in the compression leads nobody beyond it."""


def flipped(own: Row) -> Row:
    """Give an update with every sign turned."""
    return -own


def scaled(own: Row, bound: float | None) -> Row:
    """Give a much larger update, within a bound if there is one."""
    return within(SCALE * own, bound)


def little(honest: Rows, bound: float | None, displacement: Displacement) -> Row:
    """Give what lies a few standard deviations from the honest mean, as many as lead the merge away most.

    Args:
        honest: one row an honest device.
        bound: on norms.
        displacement: how far a merge ends from the honest mean when every hostile device sends this row.
    """
    mean, deviation = honest.mean(axis=0), honest.std(axis=0, ddof=1)
    candidates = [within(mean - z * deviation, bound) for z in _LITTLE]
    return max(candidates, key=displacement)


def random(like: Row, bound: float | None, rng: np.random.Generator) -> Row:
    """Give a random direction, as long as a bound allows or, without one, fifty times as long as an honest update."""
    drawn = rng.standard_normal(like.size)
    length = SCALE * float(np.linalg.norm(like)) if bound is None else _WITHIN * bound
    return drawn * (length / float(np.linalg.norm(drawn)))


def within(row: Row, bound: float | None) -> Row:
    """Give a row that is no longer than a bound, if there is one."""
    norm = float(np.linalg.norm(row))
    return row if bound is None or norm <= _WITHIN * bound else row * (_WITHIN * bound / norm)


def poisoned(data: bytes, sizes: Sequence[int]) -> bytes:
    """Give an update in blockwise codes whose largest step is not a number; everything else in it is in order.

    Args:
        data: as a device encodes it.
        sizes: of its streams, before the lossless coder.
    """
    begin = 4 + int.from_bytes(data[:4], "big")
    steps, *others = streams.split(memoryview(data)[begin:], sizes)
    return data[:begin] + streams.join([struct.pack("<f", float("nan")) + bytes(steps[4:]), *map(bytes, others)])
