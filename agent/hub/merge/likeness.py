"""How much each update agrees with the mean of its round, without reading any of them twice.

The mean is known only after the last update, so each update leaves a short random sketch, linear in what was changed:
the mean's sketch is the mean of the sketches, and inner products of sketches estimate those of what they stand for
(Johnson and Lindenstrauss 1984; with random signs: Achlioptas 2003). A vector becomes sums of runs of neighbours with
random signs; a change of a layer's product, its products with a few random vectors on either side, which its factors
give cheaply. About ``NUMBERS`` numbers an update are kept, and a cosine is known to a few hundredths, which is enough
to see who pulls another way. The signs come from fixed seeds, so the same updates give the same cosines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agent.llm.adapter import FloatArray

NUMBERS = 1024
"""In one sketch, about: 4 KB an update, far below what the update itself takes."""


def signs(*shape: int, seed: int) -> FloatArray:
    """Give random signs, float32: the same for the same shape and seed."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return (2 * rng.integers(0, 2, size=shape, dtype=np.int8) - 1).astype(np.float32)


class VectorSketcher:
    """Sketches vectors of one length: sums of runs of neighbours with random signs.

    Args:
        length: of every vector.
    """

    def __init__(self, length: int) -> None:
        self._signs = signs(max(1, math.ceil(length / NUMBERS)), seed=1)
        self._whole = length // len(self._signs)
        self.size = self._whole + 1

    def sketch(self, vector: FloatArray) -> FloatArray:
        """Give the sketch of a vector, shape ``(size,)``."""
        end = self._whole * len(self._signs)
        tail = vector[end:]
        return np.append(vector[:end].reshape(self._whole, -1) @ self._signs, tail @ self._signs[: tail.size])


def probes(layers: int) -> int:
    """Give between how many random vectors on either side the change of a layer is taken, of so many layers."""
    return max(4, math.ceil(math.sqrt(NUMBERS / max(1, layers))))


def cosines(sketches: Sequence[FloatArray], shares: Sequence[float]) -> tuple[float, ...]:
    """Give the cosine of each sketched thing with the mean of all; 0 where one of the two is nothing.

    Args:
        sketches: of each, made by the same sketcher.
        shares: what each counts in the mean.
    """
    if not sketches:
        return ()
    every = np.array(sketches, dtype=np.float64)
    mean = np.asarray(shares) @ every
    lengths = np.linalg.norm(every, axis=1) * np.linalg.norm(mean)
    found = np.divide(every @ mean, lengths, out=np.zeros(len(every)), where=lengths > 0)
    return tuple(np.clip(found, -1.0, 1.0).tolist())
