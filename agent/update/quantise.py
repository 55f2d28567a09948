"""Blockwise codes for numbers: small integers times a step that each block of 512 numbers has for itself.

A step is a share of the largest one, in sixteenths of an octave: a byte a block, whatever the tensors' magnitudes, and
no byte that a decoder would have to refuse. Steps are rounded upwards, so no code overflows.

Numbers become codes by stochastic rounding, up or down with the odds that keep the expectation exact (Alistarh et al.
2017, *QSGD*, section 3.1), so that the errors of many devices cancel in their mean; or by rounding to the nearest, with
half the squared error, where what is lost is kept and sent later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.llm.adapter import FloatArray

BLOCK = 512
MAX_MAGNITUDE = 1e30
"""Beyond this a number is refused: no training gives it, and products with it would overflow."""
MIN_STEP = 1e-30
"""The smallest largest step: arithmetic with it stays among normal float32 numbers."""

_OCTAVE = 16


def _shares() -> FloatArray:
    """Give 2 ^ (-i / 16) for each byte, by square roots: these round alike on every machine, powers need not."""
    root = math.sqrt(math.sqrt(math.sqrt(math.sqrt(0.5))))
    shares = [1.0]
    for index in range(1, 256):
        shares.append(shares[index - _OCTAVE] / 2 if index >= _OCTAVE else shares[-1] * root)
    return np.array(shares, np.float32)


SHARES = _shares()
"""What a block's byte stands for, as a share of the largest step; float32, descending from 1."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Numbers in codes.

    Attributes:
        step: the largest step, from ``MIN_STEP`` to ``MAX_MAGNITUDE``.
        shares: uint8, one a block: index into ``SHARES``.
        codes: int8, shape ``(blocks, 512)``; the last block is filled up with zeros.
    """

    step: np.float32
    shares: NDArray[np.uint8]
    codes: NDArray[np.int8]

    def steps(self, weight: float = 1.0) -> FloatArray:
        """Give each block's step times a weight; float32, shape ``(blocks, 1)``."""
        return steps_of(self.step, self.shares, weight)[:, None]


def steps_of(step: np.float32, shares: NDArray[np.uint8], weight: float) -> FloatArray:
    """Give each block's step times a weight; float32, shape ``(blocks,)``."""
    return SHARES[shares] * np.float32(float(step) * weight)


def block_count(size: int) -> int:
    """Give how many blocks so many numbers take."""
    return -(-size // BLOCK)


def quantise(flat: FloatArray, *, top: int, coarseness: float = 0.0, rng: np.random.Generator | None = None) -> Blocks:
    """Give the codes of finite float32 numbers.

    Args:
        flat: one dimension, any length.
        top: largest code; a block's step is its largest magnitude over this at least.
        coarseness: a block's step is its root mean square times this at least. For a given root mean square, normally
            distributed numbers take the most bits, so this bounds what an entropy coder needs, whatever the numbers:
            0.5 * log2(2 * pi * e) - log2(coarseness) bits a number, and a little for the rounding.
        rng: decides stochastic rounding; rounds to the nearest if None.

    Raises:
        ValueError: a number is larger than ``MAX_MAGNITUDE``.
    """
    count = block_count(flat.size)
    padded = np.zeros((count, BLOCK), np.float32)
    padded.reshape(-1)[: flat.size] = flat
    peaks = np.abs(padded).max(axis=1, initial=0.0)
    if (peaks > MAX_MAGNITUDE).any():
        raise ValueError("a number is too large to be quantised")
    wanted = peaks.astype(np.float64) / top
    if coarseness:
        wanted = np.maximum(wanted, coarseness * np.sqrt(np.mean(padded.astype(np.float64) ** 2, axis=1)))
    step = np.float32(max(float(wanted.max(initial=0.0)), MIN_STEP))
    shares = _shares_above(wanted / float(step))
    scaled = padded / (SHARES[shares] * step)[:, None]
    if rng is None:
        codes = np.rint(scaled)
    else:
        codes = np.floor(scaled)
        codes += rng.random(scaled.shape, np.float32) < scaled - codes
    return Blocks(step=step, shares=shares, codes=np.clip(codes, -top, top).astype(np.int8))


def _shares_above(wanted: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Give for each block the smallest share that is not below what it wants."""
    ascending = SHARES[::-1].astype(np.float64)
    found = np.searchsorted(ascending, wanted, side="left")
    return (len(SHARES) - 1 - np.minimum(found, len(SHARES) - 1)).astype(np.uint8)


def dequantise(blocks: Blocks, size: int) -> FloatArray:
    """Give the first ``size`` numbers, float32."""
    row = np.empty(size, np.float32)
    write(blocks, row, 1.0)
    return row


def write(blocks: Blocks, row: FloatArray, weight: float) -> None:
    """Write ``weight`` times the numbers over a row.

    Codes become float32 first and are multiplied then: NumPy does both at once through a buffer, which is slower.

    Args:
        blocks: of as many numbers as ``row`` has.
        row: float32, one dimension, contiguous.
        weight: what to multiply by.
    """
    steps = blocks.steps(weight)
    whole = row.size // BLOCK
    rows = row[: whole * BLOCK].reshape(whole, BLOCK)
    np.copyto(rows, blocks.codes[:whole])
    rows *= steps[:whole]
    rest = row[whole * BLOCK :]
    if rest.size:
        np.multiply(blocks.codes[whole, : rest.size], steps[whole], out=rest)
