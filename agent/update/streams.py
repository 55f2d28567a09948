"""The lossless coder: each stream of bytes becomes one zstd frame (RFC 8878) that states its content's size.

Streams of different nature are coded apart, so that each has a Huffman table of its own. Level 1 is the best here: the
higher ones look for repetitions, of which codes of numbers have none, and find some that cost more than they save.
"""

from __future__ import annotations

from collections.abc import Sequence

import zstandard

LENGTH_BYTES = 4
_LEVEL = 1
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


def compress(content: bytes, *, level: int = _LEVEL) -> bytes:
    """Give one zstd frame that states its content's size."""
    return zstandard.ZstdCompressor(level=level, write_checksum=False).compress(content)


def stated_size(frame: bytes | memoryview) -> int:
    """Give the size that a zstd frame states, without expanding it.

    Raises:
        BodyError: it is no frame, or states none.
    """
    try:
        stated = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as cause:
        raise BodyError("malformed", f"it is no zstd frame ({cause})") from cause
    if stated.content_size in _UNKNOWN_SIZES or stated.dict_id:
        raise BodyError("size", "its zstd frame states an unknown size")
    return int(stated.content_size)


def expand(frame: bytes | memoryview, size: int) -> bytes:
    """Give the content of a zstd frame, which must be exactly ``size`` bytes; nothing is allocated otherwise.

    Raises:
        BodyError: the frame is damaged, states another size, or is followed by more bytes.
    """
    stated = stated_size(frame)
    if stated != size:
        raise BodyError("size", f"its body states {stated:,} bytes; {size:,} bytes belong there")
    try:
        decoder = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG_MAX)
        content = decoder.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as cause:
        raise BodyError("malformed", f"its body is no zstd frame ({cause})") from cause
    if len(content) != size:
        raise BodyError("size", f"its body has {len(content):,} bytes; {size:,} belong there")
    return content


def join(streams: Sequence[bytes]) -> bytes:
    """Give the streams one after another, each as the length of its frame (u32, big-endian) and the frame."""
    frames = [compress(stream) for stream in streams]
    return b"".join(len(frame).to_bytes(LENGTH_BYTES, "big") + frame for frame in frames)


def split(body: bytes | memoryview, sizes: Sequence[int]) -> list[bytes]:
    """Give the streams of a body, which must have exactly these sizes.

    Raises:
        BodyError: it does not have as many streams, or one of them is damaged or of another size.
    """
    rest = memoryview(body)
    frames: list[memoryview] = []
    for _ in sizes:
        length = int.from_bytes(rest[:LENGTH_BYTES], "big")
        if len(rest) < LENGTH_BYTES + length:
            raise BodyError("malformed", "its body ends early")
        frames.append(rest[LENGTH_BYTES : LENGTH_BYTES + length])
        rest = rest[LENGTH_BYTES + length :]
    if rest:
        raise BodyError("malformed", "its body goes on after its end")
    for frame, size in zip(frames, sizes, strict=True):  # all of them before any is expanded
        if stated_size(frame) != size:
            raise BodyError("size", f"its body states {stated_size(frame):,} bytes where {size:,} belong")
    return [expand(frame, size) for frame, size in zip(frames, sizes, strict=True)]
