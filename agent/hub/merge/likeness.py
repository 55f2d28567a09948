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
from agent.update.codes import TILE

NUMBERS = 1024
"""In one sketch, about: 4 KB an update, far below what the update itself takes."""


def signs(*shape: int, seed: int) -> FloatArray:
    """Give random signs, float32: the same for the same shape and seed."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return (2 * rng.integers(0, 2, size=shape, dtype=np.int8) - 1).astype(np.float32)


class VectorSketcher:
    """Sketches vectors of one length: sums of runs of neighbours with random signs.

    A run is a few tiles of 256 numbers. The signs within a tile are the same for all tiles, and each tile has a sign of
    its own, so whatever passes over the numbers once can bring the sums of tiles along (:mod:`agent.update.codes`).

    Args:
        length: of every vector.
    """

    def __init__(self, length: int) -> None:
        tiles = max(1, math.ceil(length / TILE))
        self._together = max(1, math.ceil(tiles / NUMBERS))
        self._across = signs(tiles, seed=2)
        self.within = signs(TILE, seed=1).astype(np.int16)
        self._within = self.within.astype(np.float32)
        self.size = math.ceil(tiles / self._together)

    def sketch(self, vector: FloatArray) -> FloatArray:
        """Give the sketch of a vector, shape ``(size,)``."""
        whole = vector.size // TILE
        sums = np.zeros(len(self._across), np.float32)
        sums[:whole] = vector[: whole * TILE].reshape(whole, TILE) @ self._within
        rest = vector[whole * TILE :]
        sums[whole:] = rest @ self._within[: rest.size]
        return self.of_tiles(sums)

    def of_tiles(self, tiles: FloatArray) -> FloatArray:
        """Give the sketch of a vector whose sum of numbers times ``within`` is known for each tile.

        Args:
            tiles: of the vector; more than it has are left out.
        """
        runs = np.zeros((self.size, self._together), np.float32)
        runs.reshape(-1)[: len(self._across)] = tiles[: len(self._across)] * self._across
        sums: FloatArray = runs.sum(axis=1)
        return sums


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
