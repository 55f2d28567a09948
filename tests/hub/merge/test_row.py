from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.hub.merge.row import FOLD, Places, RunningSum
from agent.testing import SMALL_SHAPES, random_delta
from agent.update.delta import Delta, Factors


@pytest.mark.parametrize("factors", ["both", "a", "b"])
@pytest.mark.parametrize("rank", [2, 4])
def test_a_row_has_every_number_of_a_delta_in_the_order_of_an_updates_body(factors: Factors, rank: int) -> None:
    delta = random_delta(rank=rank, factors=factors)
    places = Places(SMALL_SHAPES, rank, factors)
    row = np.full(places.length, np.nan, np.float32)
    places.write(delta, row)
    parts = []
    for name in sorted(delta.modules):
        parts += [delta.modules[name].a.ravel()] if factors != "b" else []
        parts += [delta.modules[name].b.ravel()] if factors != "a" else []
    np.testing.assert_array_equal(row, np.concatenate(parts))


def test_what_a_delta_of_lower_rank_or_fewer_modules_lacks_is_zero() -> None:
    delta = random_delta(rank=2)
    name = min(delta.modules)
    places = Places(SMALL_SHAPES, 4, "both")
    row = np.full(places.length, np.nan, np.float32)
    places.write(Delta(rank=2, modules={name: delta.modules[name]}), row)
    for module, side, view in places.views(row):
        if module != name:
            assert not view.any()
        elif side == "a":
            np.testing.assert_array_equal(view[:2], delta.modules[name].a)
            assert not view[2:].any()
        else:
            np.testing.assert_array_equal(view[:, :2], delta.modules[name].b)
            assert not view[:, 2:].any()


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 5 * FOLD), seed=st.integers(0, 999), spread=st.floats(0, 6))
def test_a_running_sum_is_off_by_the_roundings_of_one_fold_at_most(count: int, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(count, 50)) * 10 ** rng.uniform(-spread, spread, (count, 50))).astype(np.float32)
    running = RunningSum(50)
    for row in rows:
        running.add(row)
    exact = rows.astype(np.float64).sum(axis=0)
    bound = FOLD * 2.0**-24 * np.abs(rows.astype(np.float64)).sum(axis=0)
    assert (np.abs(running.total() - exact) <= bound).all()


def test_the_total_of_a_running_sum_can_be_asked_for_between_rows() -> None:
    running = RunningSum(3)
    for count in range(1, 2 * FOLD):
        running.add(np.ones(3, np.float32))
        np.testing.assert_array_equal(running.total(), count)
