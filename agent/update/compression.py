"""How a delta's numbers become bytes: the compressions that a charter can name.

A delta is one row of numbers here: its tensors one after another, each row by row. A compression turns it into streams
of bytes whose exact sizes follow from how many numbers there are, so a decoder knows them before it expands anything;
:mod:`agent.update.streams` has the lossless coder behind all of them.

What each costs was measured on updates of the seedling (163,840 numbers, 40 steps); squared errors are shares of the
update's squared norm:

========  =================  ============================================
name      bits a number      squared error
========  =================  ============================================
``none``  29                 0
``int8``  7.6 - 8.0          0.0001
``int4``  2.95               0.05
``topk``  0.7 (density 0.1)  0.6, which the device keeps and sends later
========  =================  ============================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.llm.adapter import FloatArray
from agent.update.codes import Codes
from agent.update.quantise import (
    BLOCK,
    MAX_MAGNITUDE,
    MIN_STEP,
    Blocks,
    block_count,
    dequantise,
    quantise,
    steps_of,
    write,
)
from agent.update.streams import BodyError

NAMES = ("int4", "int8", "none", "topk")
"""What a charter and an update can name."""

INT4_COARSENESS = 0.55
"""``int4``'s smallest step as a share of its block's root mean square. It keeps an update below a tenth of its float32
bytes whatever its numbers, header and seal included, at a squared error of 5 %."""

_STEP_BYTES = 4
_GAP_BYTES = 4


class Compression(Protocol):
    """Turns numbers into streams of bytes and back."""

    @property
    def keeps_residual(self) -> bool:
        """Whether what it leaves out must be kept and sent later (:mod:`agent.update.feedback`)."""
        ...

    def sizes(self, count: int) -> list[int]:
        """Give the exact bytes of each stream of so many numbers, before the lossless coder."""
        ...

    def pack(self, flat: FloatArray, rng: np.random.Generator) -> list[bytes]:
        """Give the streams of finite numbers.

        Raises:
            ValueError: a number is larger than ``MAX_MAGNITUDE``.
        """
        ...

    def unpack(self, streams: Sequence[bytes], count: int) -> FloatArray:
        """Give the numbers of streams whose sizes are right, float32; they may be read-only.

        Raises:
            BodyError: a number in it cannot be.
        """
        ...

    def write(self, streams: Sequence[bytes], row: FloatArray, weight: float) -> None:
        """Write ``weight`` times the numbers over a row that is there already: as :meth:`unpack`, but nothing is made.

        Args:
            streams: whose sizes are right for as many numbers as ``row`` has.
            row: float32, one dimension, contiguous; untouched where the streams are refused.
            weight: finite.

        Raises:
            BodyError: a number in it cannot be.
        """
        ...


def compression_of(name: str, density: float = 1.0) -> Compression:
    """Give a compression by its name.

    Args:
        name: one of ``NAMES``.
        density: share of the numbers that ``topk`` sends, above 0 and at most 1; the others send all.

    Raises:
        KeyError: there is none of that name.
    """
    if name == "topk":
        return TopK(density)
    return _DENSE[name]


class Plain:
    """Little-endian float32, as they are."""

    keeps_residual = False

    def sizes(self, count: int) -> list[int]:
        """Give four bytes a number."""
        return [4 * count]

    def pack(self, flat: FloatArray, rng: np.random.Generator) -> list[bytes]:  # noqa: ARG002 (nothing is random)
        """Give the numbers as they lie."""
        if flat.size and np.abs(flat).max() > MAX_MAGNITUDE:
            raise ValueError("a number is too large to be sent")
        return [flat.astype("<f4").tobytes()]

    def unpack(self, streams: Sequence[bytes], count: int) -> FloatArray:
        """Give a read-only view."""
        flat = np.frombuffer(streams[0], "<f4", count).astype(np.float32, copy=False)
        low, high = float(flat.min(initial=0.0)), float(flat.max(initial=0.0))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise BodyError("not-finite", "a number in it is not finite")
        if low < -MAX_MAGNITUDE or high > MAX_MAGNITUDE:
            raise BodyError("malformed", "a number in it is too large")
        return flat

    def write(self, streams: Sequence[bytes], row: FloatArray, weight: float) -> None:
        """See :class:`Compression`."""
        np.multiply(self.unpack(streams, row.size), np.float32(weight), out=row)


class Blockwise:
    """Codes of a few bits (see :mod:`agent.update.quantise`) in two streams: steps, and codes.

    Args:
        top: the largest code; up to 7, two codes share a byte.
        coarseness: as in :func:`~agent.update.quantise.quantise`.
        to_nearest: round to the nearest instead of stochastically.
    """

    keeps_residual = False

    def __init__(self, *, top: int, coarseness: float = 0.0, to_nearest: bool = False) -> None:
        self._top = top
        self._coarseness = coarseness
        self._to_nearest = to_nearest
        self._halves = top < 8

    def sizes(self, count: int) -> list[int]:
        """Give a step and a byte a block; and a byte a number, or half of one."""
        blocks = block_count(count)
        return [_STEP_BYTES + blocks, blocks * BLOCK // (2 if self._halves else 1)]

    def pack(self, flat: FloatArray, rng: np.random.Generator) -> list[bytes]:
        """See :class:`Compression`."""
        blocks = quantise(flat, top=self._top, coarseness=self._coarseness, rng=None if self._to_nearest else rng)
        codes = blocks.codes.reshape(-1)
        if self._halves:
            nibbles = (codes + 8).astype(np.uint8)
            half = len(nibbles) // 2
            codes = (nibbles[:half] | (nibbles[half:] << 4)).view(np.int8)
        return [np.array(blocks.step, "<f4").tobytes() + blocks.shares.tobytes(), codes.tobytes()]

    def unpack(self, streams: Sequence[bytes], count: int) -> FloatArray:
        """See :class:`Compression`."""
        return dequantise(self._blocks(streams), count)

    def write(self, streams: Sequence[bytes], row: FloatArray, weight: float) -> None:
        """See :class:`Compression`."""
        write(self._blocks(streams), row, weight)

    def codes(self, streams: Sequence[bytes], count: int, weight: float) -> Codes:
        """Give ``weight`` times the numbers as they are packed; arguments and errors are those of :meth:`unpack`."""
        steps = steps_of(*_step_and_shares(streams[0]), weight)
        return Codes(steps=steps, body=streams[1], bits=4 if self._halves else 8, count=count)

    def _blocks(self, streams: Sequence[bytes]) -> Blocks:
        """Read both streams. Whatever the bytes are, with a step in range the numbers are finite."""
        head, body = streams
        step, shares = _step_and_shares(head)
        if self._halves:
            pairs = np.frombuffer(body, np.uint8)
            nibbles = np.empty(2 * len(pairs), np.uint8)
            np.bitwise_and(pairs, 15, out=nibbles[: len(pairs)])
            np.right_shift(pairs, 4, out=nibbles[len(pairs) :])
            nibbles -= 8
            codes = nibbles.view(np.int8)
        else:
            codes = np.frombuffer(body, np.int8)
        return Blocks(step=step, shares=shares, codes=codes.reshape(-1, BLOCK))


def _step_and_shares(head: bytes) -> tuple[np.float32, NDArray[np.uint8]]:
    """Read the largest step, and what share of it each block's step is."""
    step = np.frombuffer(head, "<f4", 1).astype(np.float32)[0]
    if not np.isfinite(step):
        raise BodyError("not-finite", "the step in it is not finite")
    if not np.float32(MIN_STEP) <= step <= np.float32(MAX_MAGNITUDE):
        raise BodyError("malformed", "the step in it is out of range")
    return step, np.frombuffer(head, np.uint8, offset=_STEP_BYTES)


class TopK:
    """The largest numbers alone (Stich et al. 2018, *Sparsified SGD with memory*), in four-bit codes.

    Streams: the gaps between the numbers that are sent (u32, less one, as four planes of bytes: the low bytes of all,
    then the next), and the numbers as :class:`Blockwise` has them, rounded to the nearest.

    Args:
        density: share of all numbers that is sent, above 0 and at most 1.
    """

    keeps_residual = True

    def __init__(self, density: float) -> None:
        if not 0 < density <= 1:
            raise ValueError(f"a density lies above 0 and at most at 1, not at {density}")
        self._density = density
        self._values = Blockwise(top=7, to_nearest=True)

    def kept(self, count: int) -> int:
        """Give how many of so many numbers are sent: their share, rounded upwards."""
        return min(count, math.ceil(self._density * count))

    def sizes(self, count: int) -> list[int]:
        """Give four bytes for each gap, and what the numbers take."""
        kept = self.kept(count)
        return [_GAP_BYTES * kept, *self._values.sizes(kept)]

    def pack(self, flat: FloatArray, rng: np.random.Generator) -> list[bytes]:
        """See :class:`Compression`."""
        left_out = flat.size - self.kept(flat.size)
        places = np.sort(np.argpartition(np.abs(flat), left_out)[left_out:] if left_out else np.arange(flat.size))
        gaps = (np.diff(places, prepend=-1) - 1).astype("<u4")
        planes = np.ascontiguousarray(gaps.view(np.uint8).reshape(-1, _GAP_BYTES).T)
        return [planes.tobytes(), *self._values.pack(flat[places], rng)]

    def unpack(self, streams: Sequence[bytes], count: int) -> FloatArray:
        """See :class:`Compression`."""
        flat = np.zeros(count, np.float32)
        flat[self._places(streams[0], count)] = self._values.unpack(streams[1:], self.kept(count))
        return flat

    def write(self, streams: Sequence[bytes], row: FloatArray, weight: float) -> None:
        """See :class:`Compression`."""
        places = self._places(streams[0], row.size)
        numbers = np.empty(len(places), np.float32)
        self._values.write(streams[1:], numbers, weight)
        row.fill(0)
        row[places] = numbers

    def _places(self, gaps: bytes, count: int) -> NDArray[np.int64]:
        """Give the indices of the numbers, ascending."""
        planes = np.frombuffer(gaps, np.uint8).reshape(_GAP_BYTES, -1)
        places: NDArray[np.int64] = planes[0].astype(np.int64)
        for index, plane in enumerate(planes[1:], start=1):
            if plane.any():
                places += plane.astype(np.int64) << (8 * index)
        places += 1
        np.cumsum(places, out=places)
        places -= 1
        if len(places) and places[-1] >= count:
            raise BodyError("malformed", "a number in it lies beyond the end")
        return places


_DENSE: dict[str, Compression] = {
    "int4": Blockwise(top=7, coarseness=INT4_COARSENESS),
    "int8": Blockwise(top=127),
    "none": Plain(),
}
