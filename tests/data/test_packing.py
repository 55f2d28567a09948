from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.data import packing
from agent.data.packing import Piece, WindowSet, arrange


def pieces(sizes: list[int]) -> list[Piece]:
    """Give pieces of which each can be told from the others."""
    made = []
    for number, size in enumerate(sizes, 1):
        targets = np.ones(size, dtype=np.bool_)
        targets[0] = False
        made.append(Piece(np.full(size, number, dtype=np.uint32), targets))
    return made


def pack(made: list[Piece], *, window: int, padding: int) -> WindowSet:
    return packing.pack(made, arrange(made, window), window=window, padding=padding)


@given(st.lists(st.integers(2, 16), min_size=1, max_size=60))
def test_every_piece_is_one_segment_somewhere_and_the_rest_is_padding(sizes: list[int]) -> None:
    packed = pack(pieces(sizes), window=16, padding=0)
    found = []
    for row in range(len(packed)):
        padding = int(packed.padding[row])
        for start, end in packed.bounds(row):
            part = packed.tokens[row, start:end]
            assert len(set(part.tolist())) == 1
            if part[0]:
                found.append((int(part[0]), end - start))
                assert packed.targets[row, start:end].tolist() == [False] + [True] * (end - start - 1)
            else:
                assert (start, end) == (16 - padding, 16)
                assert not packed.targets[row, start:end].any()
    assert sorted(found) == list(enumerate(sizes, 1))
    assert packed.padding.sum() == packed.tokens.size - sum(sizes)
    assert len(packed) <= 11 / 9 * -(-sum(sizes) // 16) * 2 + 1


def test_windows_are_full_where_they_can_be() -> None:
    packed = pack(pieces([10, 6, 16, 3, 13, 8, 8]), window=16, padding=0)
    assert len(packed) == 4
    assert not packed.padding.any()
    assert packed.tokens[0].tolist() == [1] * 10 + [2] * 6


def test_packing_many_pieces_is_quick_and_repeats_itself() -> None:
    sizes = np.random.default_rng(0).integers(2, 512, 20_000).tolist()
    began = time.process_time()
    first = pack(pieces(sizes), window=512, padding=0)
    assert time.process_time() - began < 5
    second = pack(pieces(sizes), window=512, padding=0)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert first.padding.sum() < 0.01 * first.tokens.size


def test_windows_that_do_not_agree_are_refused() -> None:
    plain = WindowSet.plain(np.zeros((2, 4), dtype=np.uint32))
    assert plain.padding.tolist() == [0, 0]
    with pytest.raises(ValueError, match="agree"):
        WindowSet(plain.tokens, plain.targets[:1], plain.segments)
