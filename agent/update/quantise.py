"""Blockwise int8 with stochastic rounding: a quarter of the bytes, and no bias.

Numbers are taken in blocks of 64. A block has one scale, its largest magnitude over 127, and each number becomes an
int8 code that is rounded up or down at random with the odds that keep its expectation exact (Alistarh et al. 2017,
*QSGD*, section 3.1), so that the errors of many devices cancel in their mean.

A scale is a float16 share of its tensor's float32 peak, always rounded upwards so that no code overflows; the share
keeps tensors of very different magnitude out of each other's way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from agent.llm.adapter import FloatArray

BLOCK = 64
MAX_MAGNITUDE = 1e30
"""Beyond this a tensor is refused: no training gives it, and products with it would overflow."""

_TOP = 127


@dataclass(frozen=True, slots=True)
class Int8Blocks:
    """Several tensors, quantised one after another; each begins a block of its own.

    Attributes:
        peaks: float32, the largest magnitude of each tensor.
        shares: float16 in [0, 1], one a block: its scale's share of the tensor's peak.
        codes: int8 in [-127, 127], shape ``(blocks, 64)``; the last block of a tensor is filled up with zeros.
    """

    peaks: FloatArray
    shares: NDArray[np.float16]
    codes: NDArray[np.int8]


def block_counts(sizes: Sequence[int]) -> list[int]:
    """Give how many blocks each tensor of so many numbers takes."""
    return [-(-size // BLOCK) for size in sizes]


def quantise(tensors: Sequence[FloatArray], rng: np.random.Generator) -> Int8Blocks:
    """Quantise tensors of finite float32.

    Args:
        tensors: any shapes, none empty.
        rng: decides the rounding; the same state gives the same codes.

    Raises:
        ValueError: a number is larger than ``MAX_MAGNITUDE``.
    """
    blocks = block_counts([tensor.size for tensor in tensors])
    flat = np.zeros((sum(blocks), BLOCK), np.float32)
    for tensor, (start, _) in zip(tensors, pairwise(np.cumsum([0, *blocks]).tolist()), strict=True):
        flat.reshape(-1)[start * BLOCK : start * BLOCK + tensor.size] = tensor.reshape(-1)
    highest = np.abs(flat).max(axis=1, initial=0.0)
    firsts = np.cumsum([0, *blocks])[:-1]
    peaks = np.maximum.reduceat(highest, firsts) if len(firsts) else np.empty(0, np.float32)
    if (peaks > MAX_MAGNITUDE).any():
        raise ValueError("a number is too large to be quantised")
    shares = _shares(highest, np.repeat(peaks, blocks))
    scales = _scales(peaks, shares, blocks).astype(np.float64)
    steps = np.divide(flat, scales[:, None], out=np.zeros(flat.shape), where=scales[:, None] > 0)
    lower = np.floor(steps)
    codes = lower + (rng.random(flat.shape) < steps - lower)
    return Int8Blocks(peaks=peaks, shares=shares, codes=np.clip(codes, -_TOP, _TOP).astype(np.int8))


def dequantise(blocks: Int8Blocks, shapes: Sequence[tuple[int, ...]]) -> list[FloatArray]:
    """Give float32 tensors of these shapes; they are views of one array."""
    counts = block_counts([math.prod(shape) for shape in shapes])
    scales = _scales(blocks.peaks, blocks.shares, counts)
    flat = (blocks.codes * scales[:, None]).reshape(-1)
    tensors = []
    for shape, start in zip(shapes, np.cumsum([0, *counts]).tolist(), strict=False):
        tensors.append(flat[start * BLOCK : start * BLOCK + math.prod(shape)].reshape(shape))
    return tensors


def _shares(highest: FloatArray, peaks: FloatArray) -> NDArray[np.float16]:
    """Give each block's share of its tensor's peak in float16, rounded upwards."""
    exact = np.divide(highest, peaks, out=np.zeros_like(highest, dtype=np.float64), where=peaks > 0, dtype=np.float64)
    near = exact.astype(np.float16)
    up = np.nextafter(near, np.float16(np.inf))
    return np.where(near < exact, up, near).astype(np.float16)


def _scales(peaks: FloatArray, shares: NDArray[np.float16], counts: Sequence[int]) -> FloatArray:
    """Give each block's step between codes, float32; never so large that 127 of them overflow."""
    return (np.repeat(peaks, counts) / np.float32(_TOP) * shares).astype(np.float32)
