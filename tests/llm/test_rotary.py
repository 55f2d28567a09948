from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.llm.rotary import model_order, stored_order


@given(heads=st.integers(1, 9), half=st.integers(1, 40))
def test_the_two_orders_undo_each_other(heads: int, half: int) -> None:
    rows = heads * 2 * half
    weight = np.arange(rows)
    assert (weight[stored_order(rows, heads)][model_order(rows, heads)] == weight).all()
    assert (weight[model_order(rows, heads)][stored_order(rows, heads)] == weight).all()


def test_halves_become_neighbouring_pairs_within_each_head() -> None:
    assert stored_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert stored_order(8, 1).tolist() == pytest.approx([0, 4, 1, 5, 2, 6, 3, 7])
