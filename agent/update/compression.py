"""How a delta's tensors become bytes: the compressions that a charter can name.

Each is bounded before anything is expanded: the size of the plain body follows from the shapes, the zstd frame must
state exactly that size, and nothing is decompressed otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import zstandard

from agent.llm.adapter import FloatArray
from agent.update.quantise import BLOCK, MAX_MAGNITUDE, Int8Blocks, block_counts, dequantise, quantise

Shape: TypeAlias = tuple[int, int]
_LEVEL = 3
_WINDOW_LOG_MAX = 27
_UNKNOWN_SIZES = frozenset({zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR})


class BodyError(ValueError):
    """A body cannot be expanded; ``reason`` is the stable word for it.

    Args:
        reason: ``size``, ``not-finite`` or ``malformed``.
        message: what is wrong with it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Compression(Protocol):
    """Turns tensors into bytes and back."""

    def plain_size(self, shapes: Sequence[Shape]) -> int:
        """Give the exact bytes of the body before the lossless coder."""
        ...

    def pack(self, tensors: Sequence[FloatArray], rng: np.random.Generator) -> bytes:
        """Give the body of finite tensors."""
        ...

    def unpack(self, body: bytes, shapes: Sequence[Shape]) -> list[FloatArray]:
        """Give the tensors of a body whose size is right.

        Raises:
            BodyError: a number in it cannot be.
        """
        ...


class Plain:
    """Little-endian float32, as they are."""

    def plain_size(self, shapes: Sequence[Shape]) -> int:
        """Give four bytes a number."""
        return 4 * sum(rows * columns for rows, columns in shapes)

    def pack(self, tensors: Sequence[FloatArray], rng: np.random.Generator) -> bytes:  # noqa: ARG002
        """Give the tensors one after another, row by row."""
        return b"".join(np.ascontiguousarray(tensor, dtype="<f4").tobytes() for tensor in tensors)

    def unpack(self, body: bytes, shapes: Sequence[Shape]) -> list[FloatArray]:
        """Cut the body into tensors; they are read-only views of it."""
        flat = np.frombuffer(body, dtype="<f4").astype(np.float32, copy=False)
        if not np.isfinite(flat).all():
            raise BodyError("not-finite", "a number in it is not finite")
        ends = np.cumsum([rows * columns for rows, columns in shapes]).tolist()
        return [
            flat[end - rows * columns : end].reshape(rows, columns)
            for end, (rows, columns) in zip(ends, shapes, strict=True)
        ]


class Int8:
    """Blockwise int8: the peaks, then the blocks' shares, then the codes (see :mod:`agent.update.quantise`)."""

    def plain_size(self, shapes: Sequence[Shape]) -> int:
        """Give 66 bytes a block and 4 a tensor."""
        return 4 * len(shapes) + (BLOCK + 2) * sum(_blocks(shapes))

    def pack(self, tensors: Sequence[FloatArray], rng: np.random.Generator) -> bytes:
        """Quantise, rounding stochastically."""
        blocks = quantise(tensors, rng)
        return blocks.peaks.astype("<f4").tobytes() + blocks.shares.astype("<f2").tobytes() + blocks.codes.tobytes()

    def unpack(self, body: bytes, shapes: Sequence[Shape]) -> list[FloatArray]:
        """Dequantise, checking every scale and code."""
        count = sum(_blocks(shapes))
        peaks = np.frombuffer(body, "<f4", len(shapes)).astype(np.float32, copy=False)
        shares = np.frombuffer(body, "<f2", count, offset=4 * len(shapes)).astype(np.float16, copy=False)
        codes = np.frombuffer(body, np.int8, count * BLOCK, offset=4 * len(shapes) + 2 * count)
        if not (np.isfinite(peaks).all() and np.isfinite(shares).all()):
            raise BodyError("not-finite", "a scale in it is not finite")
        in_range = (peaks >= 0) & (peaks <= MAX_MAGNITUDE)
        if not in_range.all() or (shares < 0).any() or (shares > 1).any() or codes.min(initial=0) < -127:
            raise BodyError("malformed", "a scale or code in it is out of range")
        return dequantise(Int8Blocks(peaks=peaks, shares=shares, codes=codes.reshape(count, BLOCK)), shapes)


COMPRESSIONS: Mapping[str, Compression] = {"int8": Int8(), "none": Plain()}
"""By the name that a charter and an update use."""


def compress(body: bytes) -> bytes:
    """Give one zstd frame (RFC 8878) that states its content's size."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress(body)


def expand(frame: bytes, size: int) -> bytes:
    """Give the content of a zstd frame, which must be exactly ``size`` bytes; nothing is allocated otherwise.

    Raises:
        BodyError: the frame is damaged, states another size, or is followed by more bytes.
    """
    try:
        stated = zstandard.get_frame_parameters(frame)
        if stated.content_size != size or stated.dict_id:
            said = "an unknown size" if stated.content_size in _UNKNOWN_SIZES else f"{stated.content_size:,} bytes"
            raise BodyError("size", f"its body states {said}; {size:,} bytes belong there")
        decoder = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG_MAX)
        body = decoder.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as cause:
        raise BodyError("malformed", f"its body is no zstd frame ({cause})") from cause
    if len(body) != size:
        raise BodyError("size", f"its body has {len(body):,} bytes; {size:,} belong there")
    return bytes(body)


def _blocks(shapes: Sequence[Shape]) -> list[int]:
    return block_counts([rows * columns for rows, columns in shapes])
