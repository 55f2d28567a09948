from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.update import codes
from agent.update.codes import TILE, Codes
from agent.update.compression import Blockwise
from agent.update.quantise import BLOCK, block_count

needs_kernel = pytest.mark.skipif(not codes.can_add(), reason="this installation has no compiled kernels")
WIDTHS = {4: Blockwise(top=7), 8: Blockwise(top=127)}


def drawn(count: int, bits: int, seed: int) -> tuple[list[bytes], float]:
    """Streams of any codes at all, what fills the last block included, and a weight."""
    rng = np.random.default_rng(seed)
    blocks = block_count(count)
    step = np.array(10.0 ** rng.uniform(-6, 3), "<f4").tobytes()
    return [step + rng.bytes(blocks), rng.bytes(blocks * BLOCK * bits // 8)], float(10.0 ** rng.uniform(-2, 2))


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 5 * BLOCK + 3),
    bits=st.sampled_from([4, 8]),
    updates=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_adding_codes_gives_the_bits_of_adding_their_rows_one_after_another(
    count: int, bits: int, updates: int, seed: int
) -> None:
    coder = WIDTHS[bits]
    rng = np.random.default_rng(seed)
    signs: NDArray[np.int16] = rng.choice(np.array([-1, 1], np.int16), TILE)
    begin = rng.standard_normal(count).astype(np.float32)
    wanted, found = begin.copy(), begin.copy()
    rows, batch = [], []
    for index in range(updates):
        streams, weight = drawn(count, bits, 1000 * seed + index)
        row = np.empty(count, np.float32)
        coder.write(streams, row, weight)
        wanted += row
        rows.append(row.astype(np.float64))
        batch.append(coder.codes(streams, count, weight))
    added = codes.add(batch, found, signs)
    assert found.tobytes() == wanted.tobytes()
    for row, each in zip(rows, added, strict=True):
        padded = np.zeros((len(each.tiles), TILE))
        padded.reshape(-1)[:count] = row
        magnitudes = np.abs(padded).sum(axis=1)
        assert each.squares == pytest.approx(row @ row, rel=1e-5)
        assert (np.abs(each.tiles - padded @ signs) <= 1e-5 * magnitudes).all()


@needs_kernel
def test_codes_that_do_not_belong_together_are_not_added() -> None:
    signs = np.ones(TILE, np.int16)
    four = Codes(steps=np.ones(1, np.float32), body=bytes(BLOCK // 2), bits=4, count=100)
    eight = Codes(steps=np.ones(1, np.float32), body=bytes(BLOCK), bits=8, count=100)
    short = Codes(steps=np.ones(1, np.float32), body=bytes(BLOCK // 2 - 1), bits=4, count=100)
    row = np.zeros(100, np.float32)
    for batch, total in (([four, eight], row), ([four], np.zeros(99, np.float32)), ([short], row)):
        with pytest.raises(ValueError, match="packed numbers"):
            codes.add(batch, total, signs)
    with pytest.raises(ValueError, match="packed numbers"):
        codes.add([four], row, signs[:-1])
    assert not row.any()
