from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.testing import random_delta
from agent.update.delta import Factors
from agent.update.layout import layout_of


@pytest.mark.parametrize("factors", ["both", "a", "b"])
def test_a_row_has_the_trained_factors_in_order_and_gives_the_delta_back(factors: Factors) -> None:
    delta = replace(random_delta(), factors=factors)
    layout = layout_of(delta)
    row = layout.flatten(delta)
    first = delta.modules[min(delta.modules)]
    np.testing.assert_array_equal(row[:5], (first.b if factors == "b" else first.a).reshape(-1)[:5])
    assert row.shape == (layout.count,)
    back = layout.restore(row)
    assert layout_of(back) == layout
    for name, f in delta.modules.items():
        np.testing.assert_array_equal(back.modules[name].a, f.a * (factors != "b"))
        np.testing.assert_array_equal(back.modules[name].b, f.b * (factors != "a"))


def test_restored_numbers_are_views_of_the_row() -> None:
    layout = layout_of(random_delta())
    row = np.zeros(layout.count, np.float32)
    delta = layout.restore(row)
    row += 1
    assert all((f.a == 1).all() and (f.b == 1).all() for f in delta.modules.values())


def test_layouts_of_other_ranks_modules_or_factors_differ() -> None:
    delta = random_delta()
    some = dict(list(delta.modules.items())[1:])
    others = [random_delta(rank=3), replace(delta, factors="a"), replace(delta, modules=some)]
    assert all(layout_of(other) != layout_of(delta) for other in others)
    assert layout_of(random_delta(seed=9)) == layout_of(delta)
