from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from agent.update.quantise import BLOCK, MAX_MAGNITUDE, dequantise, quantise

tensors = st.lists(
    arrays(
        np.float32,
        array_shapes(min_dims=1, max_dims=2, max_side=90),
        elements=st.floats(-1e6, 1e6, width=32, allow_nan=False),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(tensors=tensors, seed=st.integers(0, 1000))
def test_every_number_comes_back_within_one_step_of_its_block(tensors: list[np.ndarray], seed: int) -> None:
    blocks = quantise(tensors, np.random.default_rng(seed))
    back = dequantise(blocks, [tensor.shape for tensor in tensors])
    for tensor, other in zip(tensors, back, strict=True):
        assert other.shape == tensor.shape
        assert other.dtype == np.float32
        flat, near = tensor.reshape(-1), other.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK].astype(np.float64)
            # the scale is rounded up in float16: by a thousandth, or by its smallest share of the tensor's peak
            step = np.abs(block).max() / 127 * 1.002 + float(np.abs(flat).max()) / 127 * 6e-8 + 1e-37
            assert np.abs(near[start : start + BLOCK] - block).max() <= step * 1.002


def test_rounding_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 4 * BLOCK).astype(np.float32)
    values[BLOCK : 2 * BLOCK] *= 1e-4  # a block that is small beside its tensor's peak
    draws = 4000
    total = np.zeros(values.size)
    for _ in range(draws):
        total += dequantise(quantise([values], rng), [values.shape])[0]
    steps = np.repeat(np.abs(values.reshape(-1, BLOCK)).max(axis=1) / 127, BLOCK)
    errors = (total / draws - values) / steps
    # rounding up or down has a deviation of at most half a step; a mean of n draws one of 0.5 / sqrt(n)
    assert np.abs(errors).max() < 5 * 0.5 / np.sqrt(draws)
    assert abs(errors.mean()) < 4 * 0.5 / np.sqrt(draws * values.size)


def test_zeros_stay_zeros_and_the_largest_number_keeps_its_size() -> None:
    values = np.zeros((3, BLOCK), np.float32)
    values[1, 7] = -2.5
    (back,) = dequantise(quantise([values], np.random.default_rng(0)), [values.shape])
    np.testing.assert_allclose(back, values, rtol=1e-3)
    assert not back[[0, 2]].any()


def test_tensors_of_very_different_size_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(0, 1e-9, 200).astype(np.float32), rng.normal(0, 1e9, 200).astype(np.float32)
    for tensor, back in zip((small, large), dequantise(quantise([small, large], rng), [(200,), (200,)]), strict=True):
        assert np.linalg.norm(back - tensor) < 0.02 * np.linalg.norm(tensor)


def test_the_largest_magnitude_does_not_overflow_and_more_is_refused() -> None:
    values = np.array([MAX_MAGNITUDE, -MAX_MAGNITUDE, 1.0, np.finfo(np.float32).tiny], np.float32)
    (back,) = dequantise(quantise([values], np.random.default_rng(0)), [values.shape])
    assert np.isfinite(back).all()
    with pytest.raises(ValueError, match="too large"):
        quantise([values * 2], np.random.default_rng(0))


def test_the_same_state_of_the_generator_gives_the_same_codes() -> None:
    values = np.random.default_rng(1).normal(0, 1, 500).astype(np.float32)
    codes = [quantise([values], np.random.default_rng(seed)).codes.tobytes() for seed in (7, 7, 8)]
    assert codes[0] == codes[1] != codes[2]
