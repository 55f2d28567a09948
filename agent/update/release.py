"""The form in which an adapter travels to a device: smaller, and the same bytes when it arrives.

An adapter is known by the SHA-256 of its bytes, so nothing may be lost. Its bytes are taken as little-endian 32-bit
words and laid out in four planes, the lowest byte of all words first: the planes of exponents and of whatever was
rounded away become small, the others stay as they are. A device that has an earlier adapter can do with the
difference, the exclusive or of both: the smaller form where numbers moved little, or not at all, as in a factor that
was frozen. (Differences in arithmetic save up to a tenth more, if signs are kept apart; that is not worth their cases.)

::

    form       one byte: 0 whole, 1 difference
    base       of a difference: SHA-256 of the adapter that it is taken from, 32 bytes
    planes     four streams of as many bytes as there are words (:mod:`agent.update.streams`)

The receiver knows how many bytes must come out, expands nothing else, and checks the hash of what did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from agent.update.streams import BodyError, join, split

_WHOLE, _DIFFERENCE = b"\0", b"\1"
_WORD = 4
_HASH_BYTES = 32
Words = NDArray[np.uint32]


def pack_whole(data: bytes) -> bytes:
    """Give the form from which anybody makes these bytes."""
    return _WHOLE + join(_planes(_words(data)))


def pack_difference(data: bytes, base: bytes) -> bytes | None:
    """Give the form from which somebody who has ``base`` makes these bytes; None where they have not as many."""
    if len(base) != len(data):
        return None
    return _DIFFERENCE + hashlib.sha256(base).digest() + join(_planes(_words(data) ^ _words(base)))


def unpack(content: bytes | bytearray, size: int, base_of: Callable[[str], bytes | None]) -> bytes:
    """Give the bytes that a form was made of. The caller checks their hash.

    Args:
        content: either form, or anything at all.
        size: how many bytes must come out.
        base_of: gives an adapter's bytes by their hex SHA-256, or None where it is not here.

    Raises:
        BodyError: it is neither form, gives another number of bytes, or is a difference from what is not here.
    """
    form, rest = content[:1], memoryview(content)[1:]
    if form == _WHOLE:
        return _numbers(rest, size).astype("<u4").tobytes()[:size]
    if form != _DIFFERENCE or len(rest) < _HASH_BYTES:
        raise BodyError("malformed", "it is in no form that is known here")
    base = base_of(rest[:_HASH_BYTES].hex())
    if base is None or len(base) != size:
        raise BodyError("malformed", "it is the difference from an adapter that is not here")
    return (_words(base) ^ _numbers(rest[_HASH_BYTES:], size)).astype("<u4").tobytes()[:size]


def _words(data: bytes) -> Words:
    """Give bytes as words, filled up with zeros."""
    padded = data + bytes(-len(data) % _WORD)
    return np.frombuffer(padded, "<u4").astype(np.uint32, copy=False)


def _planes(words: Words) -> list[bytes]:
    view = words.astype("<u4", copy=False).view(np.uint8).reshape(-1, _WORD)
    return [view[:, index].tobytes() for index in range(_WORD)]


def _numbers(body: memoryview, size: int) -> Words:
    """Put the planes together again."""
    count = -(-size // _WORD)
    words = np.empty((count, _WORD), np.uint8)
    for index, plane in enumerate(split(body, [count] * _WORD)):
        words[:, index] = np.frombuffer(plane, np.uint8)
    return words.view("<u4").reshape(-1).astype(np.uint32, copy=False)
