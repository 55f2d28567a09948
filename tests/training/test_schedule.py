from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.training.schedule import FLOOR, learning_rate_at, windows_at


@given(steps=st.integers(1, 400), warmup=st.integers(0, 50), peak=st.floats(1e-6, 1.0))
def test_the_rate_rises_in_the_warm_up_and_then_only_falls(steps: int, warmup: int, peak: float) -> None:
    rates = [learning_rate_at(step, steps=steps, warmup_steps=warmup, peak=peak) for step in range(steps)]
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if len(falling) > 1:
        assert falling[0] == pytest.approx(peak)
        assert falling[-1] == pytest.approx(FLOOR * peak)


@given(steps=st.integers(1, 400), warmup=st.integers(0, 50), peak=st.floats(1e-6, 1.0))
def test_a_constant_rate_stays_after_the_warm_up(steps: int, warmup: int, peak: float) -> None:
    options = {"steps": steps, "warmup_steps": warmup, "peak": peak}
    rates = [learning_rate_at(step, schedule="constant", **options) for step in range(steps)]
    assert rates[:warmup] == [learning_rate_at(step, **options) for step in range(min(steps, warmup))]
    assert rates[warmup:] == [peak] * max(0, steps - warmup)


@given(count=st.integers(1, 30), batch=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_every_window_is_seen_once_before_any_is_seen_again(count: int, batch: int, seed: int) -> None:
    order = np.concatenate([windows_at(step, batch_size=batch, count=count, seed=seed) for step in range(count)])
    for epoch in order[: len(order) // count * count].reshape(-1, count):
        assert sorted(epoch) == list(range(count))


def test_other_seeds_give_other_orders() -> None:
    orders = {tuple(windows_at(0, batch_size=20, count=20, seed=seed)) for seed in range(5)}
    assert len(orders) == 5
