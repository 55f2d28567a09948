"""Rotary positions: the order of rows in rotary layers, and how fast each pair of them turns.

llama.cpp rotates neighbouring pairs of rows of ``q`` and ``k`` of ``llama`` models, transformers rotates row ``i`` with
row ``i + half`` (Su et al. 2021, *RoFormer*; both compute the same). The converter to GGUF therefore permutes the rows
of each head. All other architectures are stored, and rotated by llama.cpp, in halves.

Frequencies are llama.cpp's: linear scaling (Chen et al. 2023), YaRN (Peng et al. 2023) with its published constants,
and divisors of single frequencies that a file carries (Llama 3, LongRoPE).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

ScalingKind: TypeAlias = Literal["none", "linear", "yarn", "longrope"]
FloatArray: TypeAlias = NDArray[np.float32]

MAX_STRETCH = 65_536.0
"""More than any frequency is divided by; nothing is divided by less than its reciprocal."""

_CONTEXT_STEP = 256  # llama.cpp rounds the context that it is asked for up to a multiple of this
_BETA_FAST = 32.0  # YaRN: a pair that turns this often within the original context keeps its frequency
_BETA_SLOW = 1.0  # YaRN: a pair that turns this often is slowed by the whole factor


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """How positions turn the heads of one layer.

    Attributes:
        dimensions: how many values of a head are turned, from its first; even.
        frequencies: float64, shape ``(dimensions // 2,)``: radians a position, for each pair.
        magnitude: cosine and sine are multiplied by this.
    """

    dimensions: int
    frequencies: NDArray[np.float64]
    magnitude: float


@dataclass(frozen=True, slots=True)
class RotaryScaling:
    """What a file says about its rotary positions.

    Attributes:
        dimensions: how many values of a head are turned; even.
        base: of the geometric row of frequencies; above 1.
        kind: how positions beyond the original context are reached.
        factor: how many times longer than the original the context is meant to be; 1 for no scaling.
        original_context: tokens that the model saw before it was stretched.
        magnitude: an own factor for cosine and sine; 1 for none.
    """

    dimensions: int
    base: float
    kind: ScalingKind = "none"
    factor: float = 1.0
    original_context: int = 0
    magnitude: float = 1.0

    def unscaled(self, base: float) -> RotaryScaling:
        """Give the rotary of a layer with another base, whose positions are not scaled."""
        return replace(self, base=base, factor=1.0)

    def is_long(self, context: int) -> bool:
        """Say whether llama.cpp, opened for ``context`` tokens, takes the factors of a stretched context."""
        return -(-context // _CONTEXT_STEP) * _CONTEXT_STEP > self.original_context

    def rotary(self, factors: FloatArray | None = None) -> Rotary:
        """Give the frequencies, each divided by its factor where the file has some; float32, ``(dimensions // 2,)``."""
        pairs = np.arange(self.dimensions // 2, dtype=np.float64)
        frequencies = self.base ** (-2.0 * pairs / self.dimensions)
        if factors is not None:
            frequencies = frequencies / factors
        if self.kind != "yarn":
            return Rotary(self.dimensions, frequencies / self.factor, self.magnitude)
        kept = self._kept(pairs)
        magnitude = self.magnitude * (1.0 + 0.1 * math.log(self.factor))
        return Rotary(self.dimensions, frequencies * ((1.0 - kept) / self.factor + kept), magnitude)

    def _kept(self, pairs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Say how far each pair keeps its frequency under YaRN: 1 for all of it, 0 for none."""

        def pair_that_turns(times: float) -> float:
            turns = math.log(self.original_context / (times * 2.0 * math.pi))
            return self.dimensions * turns / (2.0 * math.log(self.base))

        low = max(0.0, math.floor(pair_that_turns(_BETA_FAST)))
        high = min(self.dimensions - 1.0, math.ceil(pair_that_turns(_BETA_SLOW)))
        ramp: NDArray[np.float64] = np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
        return 1.0 - ramp


def stored_order(rows: int, heads: int) -> NDArray[np.int64]:
    """Say for each row of the GGUF which row of the transformers weight it is: ``gguf = hf[stored_order]``."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def model_order(rows: int, heads: int) -> NDArray[np.int64]:
    """Say for each row of the transformers weight which row of the GGUF it is: ``hf = gguf[model_order]``."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
