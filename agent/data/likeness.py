"""Finds passages that say nearly the same: licence headers, copies, revisions of one text.

MinHash signatures over shingles, grouped by bands (Broder 1997, *On the resemblance and containment of documents*;
Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*, sections 3.3 and 3.4). Two passages that share a band are
compared by their signatures, and are alike from an estimated resemblance of ``ALIKE``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

ALIKE = 0.7
_HASHES = 48
_BANDS = 12  # of 4 rows: a pair with resemblance 0.7 shares a band with probability 0.96
_LEADERS = 100
"""Texts of one bucket that others are compared with: a bound on the work where boilerplate fills a bucket."""
_SHINGLE = 4
_LETTERS = 8
_WORD = re.compile(r"\w+")
_LONG_WORDS = 15
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def group_alike(texts: Sequence[str]) -> list[int]:
    """Give each text the index of its group's first member; texts that resemble no other are their own group."""
    signatures = np.stack([_signature(text) for text in texts]) if texts else np.empty((0, _HASHES), np.uint32)
    parents = list(range(len(texts)))

    def find(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    rows = _HASHES // _BANDS
    for band in range(_BANDS):
        buckets: dict[bytes, list[int]] = {}
        part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        for index in range(len(texts)):
            leaders = buckets.setdefault(part[index].tobytes(), [])
            alike = np.mean(signatures[leaders] == signatures[index], axis=1) if leaders else np.zeros(1)
            if alike.max() >= ALIKE:
                first, second = sorted((find(leaders[int(alike.argmax())]), find(index)))
                parents[second] = first
            elif len(leaders) < _LEADERS:
                leaders.append(index)
    return [find(index) for index in range(len(texts))]


def _signature(text: str) -> NDArray[np.uint32]:
    """Give the MinHash signature, uint32 of shape ``(_HASHES,)``."""
    shingles = _shingles(text)
    mixed = shingles[None, :] * _FACTORS[:, None] + _OFFSETS[:, None]
    smallest: NDArray[np.uint64] = (mixed >> np.uint64(32)).min(axis=1)
    return smallest.astype(np.uint32)


def _shingles(text: str) -> NDArray[np.uint64]:
    """Give a hash of each run of four words; of eight characters where the script puts no blanks between words."""
    words = _WORD.findall(text)
    if len(words) * _LONG_WORDS < len(text):
        letters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
        return _combine(letters, _LETTERS)
    return _combine(np.fromiter((crc32(word.encode()) for word in words), np.uint64, len(words)), _SHINGLE)


def _combine(items: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """Hash each run of ``width`` items; what is shorter is one run."""
    width = min(width, max(1, len(items)))
    count = max(1, len(items) - width + 1)
    combined = np.zeros(count, np.uint64)
    for offset in range(min(width, len(items))):
        combined = combined * _PRIME + items[offset : offset + count]
        combined ^= combined >> np.uint64(29)
    return np.unique(combined)


def _constants() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Give the odd factors and the offsets of the hash family, the same on every machine."""
    draws = np.random.Generator(np.random.PCG64(20011)).integers(0, 1 << 63, size=(2, _HASHES), dtype=np.uint64)
    return draws[0] * np.uint64(2) + np.uint64(1), draws[1]


_FACTORS, _OFFSETS = _constants()
