"""Numbers as they are packed, and adding many of them up without unpacking one into memory.

An update is added to a sum at the speed of memory, and memory is slow: unpacked, a number takes four bytes to write and
four to read again, packed it takes a half. A compiled kernel (:mod:`agent.native`) therefore takes several packed
updates at once and adds them up a tile of numbers after another, in the nearest cache. Its sums have the bits that
adding rows one after another gives, so whether an installation has kernels changes no adapter.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.llm.adapter import FloatArray
from agent.native.codes import code_adder

TILE = 256
"""Numbers of which one signed sum is kept; two to a block of :mod:`agent.update.quantise`."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Numbers as small integers times a step a block.

    Attributes:
        steps: float32, one a block, times what the numbers weigh.
        body: the integers of whole blocks, as :class:`~agent.update.compression.Blockwise` packs them.
        bits: of an integer.
        count: how many numbers there are; the last block may be filled up.
    """

    steps: FloatArray
    body: bytes
    bits: Literal[4, 8]
    count: int


@dataclass(frozen=True, slots=True)
class Added:
    """What is known of numbers that were added.

    Attributes:
        squares: the sum of their squares.
        tiles: float32; for every ``TILE`` numbers, their sum times signs. Zero beyond the last number.
    """

    squares: float
    tiles: FloatArray


def can_add() -> bool:
    """Say whether this installation can add codes; otherwise they are unpacked first."""
    return code_adder() is not None


def add(batch: Sequence[Codes], total: FloatArray, signs: NDArray[np.int16]) -> list[Added]:
    """Add packed numbers to a sum, in the order of the batch.

    Args:
        batch: all of one number of bits, and of as many numbers as ``total`` has.
        total: float32, one dimension, contiguous.
        signs: 1 or -1, ``TILE`` of them.

    Raises:
        ValueError: codes are not of these numbers, or nothing here can add them.
    """
    kernel = code_adder()
    if kernel is None:
        raise ValueError("there is no kernel that adds codes")
    bits, blocks = batch[0].bits, len(batch[0].steps)
    if any((codes.bits, len(codes.steps), codes.count) != (bits, blocks, total.size) for codes in batch):
        raise ValueError("packed numbers are added to a row of as many, together with others of their kind")
    if blocks * 2 * TILE < total.size or any(len(codes.body) * 8 != blocks * 2 * TILE * bits for codes in batch):
        raise ValueError("packed numbers do not fill their blocks")
    if signs.shape != (TILE,) or signs.dtype != np.int16 or total.dtype != np.float32 or not total.flags.c_contiguous:
        raise ValueError(f"packed numbers are added to contiguous float32, with {TILE} signs of int16")
    steps = [np.ascontiguousarray(codes.steps, np.float32) for codes in batch]
    bodies = [np.frombuffer(codes.body, np.uint8) for codes in batch]
    squares = np.zeros(len(batch))
    tiles = np.zeros((len(batch), 2 * blocks), np.float32)
    kernel(
        len(batch),
        _addresses(bodies),
        _addresses(steps),
        bits,
        blocks,
        total.size,
        signs.ctypes.data,
        total.ctypes.data,
        squares.ctypes.data,
        _addresses(list(tiles)),
    )
    return [Added(squares=float(square), tiles=row) for square, row in zip(squares, tiles, strict=True)]


def _addresses(arrays: Sequence[NDArray[np.generic]]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])
