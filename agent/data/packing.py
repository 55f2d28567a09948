"""Windows of tokens in which several documents stand side by side without seeing one another.

Attention and positions restart where a segment begins, so a window that is filled with short documents computes exactly
what each of them computes alone (Krell et al. 2021, *Efficient Sequence Packing without Cross-contamination*).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

_MOST_SEGMENTS = np.iinfo(np.uint16).max


@dataclass(frozen=True, slots=True, eq=False)
class WindowSet:
    """Some windows of equal length.

    Attributes:
        tokens: uint32, shape ``(n, window)``.
        targets: bool, shape ``(n, window)``: the token is one to predict, from those before it in its segment. Never
            true at the first token of a segment.
        segments: uint16, shape ``(n, window)``: number of the token's segment within its window, counted from 0 and
            never falling.
    """

    tokens: NDArray[np.uint32]
    targets: NDArray[np.bool_]
    segments: NDArray[np.uint16]

    def __post_init__(self) -> None:
        if not self.tokens.shape == self.targets.shape == self.segments.shape or self.tokens.ndim != 2:
            raise ValueError(f"windows {self.tokens.shape}, {self.targets.shape}, {self.segments.shape} do not agree")

    @classmethod
    def plain(cls, tokens: NDArray[np.uint32]) -> Self:
        """Make windows of one segment each, in which every token but the first counts; uint32 ``(n, window)``."""
        targets = np.ones(tokens.shape, dtype=np.bool_)
        targets[:, :1] = False
        return cls(np.ascontiguousarray(tokens, dtype=np.uint32), targets, np.zeros(tokens.shape, dtype=np.uint16))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Tokens in one window."""
        return int(self.tokens.shape[1])

    @property
    def counted(self) -> int:
        """Tokens that count as targets, in all windows."""
        return int(self.targets.sum())

    @property
    def padding(self) -> NDArray[np.int64]:
        """How many tokens at the end of each window are padding: the last segment, where nothing in it counts.

        int64, shape ``(n,)``.
        """
        last = self.segments == self.segments[:, -1:]
        empty = ~(last & self.targets).any(axis=1)
        return np.where(empty & (self.segments[:, -1] > 0), last.sum(axis=1), 0).astype(np.int64)

    def take(self, which: NDArray[np.int64] | slice) -> Self:
        """Give some of the windows, by index."""
        return type(self)(self.tokens[which], self.targets[which], self.segments[which])

    def bounds(self, index: int) -> list[tuple[int, int]]:
        """Give the first place of each segment of a window and the place after its last, in order."""
        cuts = np.flatnonzero(np.diff(self.segments[index].astype(np.int32))) + 1
        places = [0, *(int(cut) for cut in cuts), self.length]
        return list(pairwise(places))


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A run of tokens that becomes one segment.

    Attributes:
        tokens: uint32, shape ``(n,)``; at least 2 and at most a window.
        targets: bool, same shape: which count; never the first.
    """

    tokens: NDArray[np.uint32]
    targets: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)


def arrange(pieces: Sequence[Piece], window: int) -> list[list[int]]:
    """Choose which pieces share a window: largest first, each where it leaves least room.

    (Best-fit decreasing: Johnson et al. 1974, *Worst-Case Performance Bounds for Simple One-Dimensional Packing
    Algorithms*; about 11/9 of the fewest windows at most.) The result depends on nothing but the lengths.

    Returns:
        For each window the indices of its pieces, in order; windows in order of the first piece in each.
    """
    sizes = [len(piece) for piece in pieces]
    windows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms = 0  # bit n: some window has room for n tokens
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        size = sizes[index]
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            place = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, place = window, len(windows)
            windows.append([])
        windows[place].append(index)
        room -= size
        if room >= 2 and len(windows[place]) < _MOST_SEGMENTS:
            with_room.setdefault(room, []).append(place)
            rooms |= 1 << room
    return sorted(sorted(chosen) for chosen in windows)


def pack(pieces: Sequence[Piece], arranged: Sequence[Sequence[int]], *, window: int, padding: int) -> WindowSet:
    """Put pieces side by side into windows.

    Args:
        pieces: what to pack.
        arranged: for each window the indices of its pieces, which must fit.
        window: tokens in a window.
        padding: the token that fills what remains: a segment in which nothing counts.
    """
    tokens = np.full((len(arranged), window), padding, dtype=np.uint32)
    targets = np.zeros((len(arranged), window), dtype=np.bool_)
    segments = np.zeros((len(arranged), window), dtype=np.uint16)
    for row, chosen in enumerate(arranged):
        place = 0
        for number, index in enumerate(chosen):
            piece = pieces[index]
            end = place + len(piece)
            tokens[row, place:end] = piece.tokens
            targets[row, place:end] = piece.targets
            segments[row, place:end] = number
            place = end
        segments[row, place:] = len(chosen)
    return WindowSet(tokens, targets, segments)
