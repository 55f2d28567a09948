from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.llm.adapter import FloatArray
from agent.update.quantise import (
    BLOCK,
    MAX_MAGNITUDE,
    SHARES,
    block_count,
    dequantise,
    quantise,
    write,
)

FORMS = [(127, 0.0), (7, 0.0), (7, 0.55)]
SHARE_STEP = 2 ** (1 / 16)

rows = st.builds(
    np.multiply,
    arrays(np.float32, st.integers(1, 3 * BLOCK), elements=st.floats(-1, 1, width=32, allow_subnormal=False)),
    st.sampled_from([np.float32(1e-12), np.float32(1), np.float32(1e12)]),
)


@settings(max_examples=60, deadline=None)
@given(flat=rows, form=st.sampled_from(FORMS), seed=st.one_of(st.none(), st.integers(0, 1000)))
def test_every_number_comes_back_within_one_step_of_its_block(
    flat: FloatArray, form: tuple[int, float], seed: int | None
) -> None:
    top, coarseness = form
    rng = None if seed is None else np.random.default_rng(seed)
    back = dequantise(quantise(flat, top=top, coarseness=coarseness, rng=rng), flat.size)
    assert back.dtype == np.float32
    peak = float(np.abs(flat).max())
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK].astype(np.float64)
        rms = np.sqrt((block**2).sum() / BLOCK)
        wanted = max(np.abs(block).max() / top, coarseness * rms)
        # a step is rounded up by a sixteenth of an octave at most, and never below the smallest share of the largest
        step = max(wanted * SHARE_STEP, max(peak, 1e-30) * float(SHARES[-1]), 1e-30) * 1.0001
        error = np.abs(back[start : start + BLOCK] - block).max()
        assert error <= (step if rng else step / 2) + 1e-5 * np.abs(block).max()


@pytest.mark.parametrize(("top", "coarseness"), FORMS)
def test_stochastic_rounding_is_unbiased_in_every_block(top: int, coarseness: float) -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(0, 1, 4 * BLOCK).astype(np.float32)
    flat[BLOCK : 2 * BLOCK] *= 1e-3
    flat[2 * BLOCK : 3 * BLOCK] *= 1e-7  # smaller than any share of the largest step
    draws = 3000
    total = np.zeros(flat.size)
    for _ in range(draws):
        blocks = quantise(flat, top=top, coarseness=coarseness, rng=rng)
        total += dequantise(blocks, flat.size)
    steps = np.repeat(blocks.steps()[:, 0].astype(np.float64), BLOCK)
    errors = (total / draws - flat) / steps
    # rounding up or down has a deviation of at most half a step; a mean of n draws one of 0.5 / sqrt(n)
    assert np.abs(errors).max() < 5 * 0.5 / np.sqrt(draws)
    for start in range(0, flat.size, BLOCK):
        assert abs(errors[start : start + BLOCK].mean()) < 4 * 0.5 / np.sqrt(draws * BLOCK)


def test_the_test_of_bias_would_see_rounding_to_the_nearest() -> None:
    flat = np.full(BLOCK, 0.3, np.float32)
    flat[0] = 7.0
    back = dequantise(quantise(flat, top=7), flat.size)
    assert abs(float((back - flat)[1:].mean())) > 0.29


def test_rounding_to_the_nearest_has_half_the_squared_error() -> None:
    rng = np.random.default_rng(3)
    flat = rng.normal(0, 1, 64 * BLOCK).astype(np.float32)
    stochastic, nearest = (
        float(((dequantise(quantise(flat, top=7, rng=draw), flat.size) - flat) ** 2).mean()) for draw in (rng, None)
    )
    assert nearest == pytest.approx(stochastic / 2, rel=0.03)


def test_coarseness_bounds_the_bits_that_codes_need_whatever_the_numbers() -> None:
    rng = np.random.default_rng(5)
    size = 64 * BLOCK
    shapes = {
        "normal": rng.normal(0, 1, size),
        "uniform": rng.uniform(-1, 1, size),
        "two values": rng.choice([-1.0, 1.0], size) * rng.uniform(0.9, 1.1, size),
        "heavy tails": rng.standard_t(2, size),
    }
    for name, numbers in shapes.items():
        codes = quantise(numbers.astype(np.float32), top=7, coarseness=0.55, rng=rng).codes
        shares = np.unique(codes, return_counts=True)[1] / codes.size
        assert -(shares * np.log2(shares)).sum() < 3.0, name


def test_zeros_stay_zeros_and_the_largest_number_keeps_its_size() -> None:
    flat = np.zeros(3 * BLOCK, np.float32)
    flat[BLOCK + 7] = -2.5
    back = dequantise(quantise(flat, top=127, rng=np.random.default_rng(0)), flat.size)
    np.testing.assert_allclose(back, flat, rtol=1e-6)


@pytest.mark.parametrize("top", [7, 127])
def test_the_largest_magnitude_does_not_overflow_and_more_is_refused(top: int) -> None:
    flat = np.array([MAX_MAGNITUDE, -MAX_MAGNITUDE, 1.0, np.finfo(np.float32).tiny], np.float32)
    back = dequantise(quantise(flat, top=top, rng=np.random.default_rng(0)), 4)
    np.testing.assert_allclose(back[:2], flat[:2], rtol=1e-6)
    assert np.isfinite(back).all()
    with pytest.raises(ValueError, match="too large"):
        quantise(flat * 2, top=top)


def test_the_same_state_of_the_generator_gives_the_same_codes() -> None:
    flat = np.random.default_rng(1).normal(0, 1, 600).astype(np.float32)
    codes = [quantise(flat, top=7, rng=np.random.default_rng(seed)).codes.tobytes() for seed in (7, 7, 8)]
    assert codes[0] == codes[1] != codes[2]


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, 65 * BLOCK + 3])
def test_writing_over_a_row_gives_what_dequantising_gives_times_the_weight(size: int) -> None:
    rng = np.random.default_rng(size)
    flat, into = (rng.normal(0, 1, size).astype(np.float32) for _ in range(2))
    blocks = quantise(flat, top=7, rng=rng)
    wanted = 0.25 * dequantise(blocks, size)
    write(blocks, into, 0.25)
    np.testing.assert_allclose(into, wanted, rtol=1e-6, atol=1e-6)
    assert len(blocks.codes) == block_count(size)


def test_shares_fall_by_a_sixteenth_of_an_octave_each() -> None:
    np.testing.assert_allclose(SHARES, 2.0 ** (-np.arange(256) / 16), rtol=1e-6)
    assert (np.diff(SHARES) < 0).all()
    assert SHARES[16] == 0.5
