from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.testing import SMALL_SHAPES, random_delta
from agent.update.delta import Delta, Factors
from agent.update.feedback import Sending, left_over, send, with_residual
from agent.update.layout import layout_of
from agent.update.wire import UpdateHeader, decode_update

HEADER = UpdateHeader(
    round=7, base_sha256="ab" * 32, start_release="cd" * 32, rank=4, alpha=8.0, tokens=1000, steps=40, seed=3
)


def sending(
    delta: Delta,
    residual: Delta | None = None,
    *,
    compression: str = "topk",
    density: float = 0.1,
    max_norm: float = 100.0,
) -> Sending:
    return send(HEADER, delta, residual, compression=compression, density=density, max_norm=max_norm)


def flat(delta: Delta | None) -> np.ndarray:
    assert delta is not None
    return layout_of(delta).flatten(delta)


def received(made: Sending) -> Delta:
    data = made.update.data
    return decode_update(data, expected=SMALL_SHAPES, max_rank=4, max_bytes=len(data))[1]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), density=st.floats(0.01, 1))
def test_what_is_sent_and_what_is_left_over_are_what_was_wanted(seed: int, density: float) -> None:
    delta, residual = random_delta(seed=seed), random_delta(seed=seed + 1, size=0.02)
    made = sending(delta, residual, density=density)
    np.testing.assert_array_equal(flat(received(made)), flat(made.update.sent))
    np.testing.assert_allclose(flat(made.update.sent) + flat(made.residual), flat(delta) + flat(residual), atol=1e-6)


def test_over_the_rounds_all_of_it_arrives() -> None:
    learned = [random_delta(seed=seed) for seed in range(30)]
    residual: Delta | None = None
    arrived = np.zeros(layout_of(learned[0]).count)
    for delta in learned:
        made = sending(delta, residual, density=0.2)
        arrived += flat(received(made))
        residual = made.residual
    everything = np.sum([flat(delta) for delta in learned], axis=0)
    np.testing.assert_allclose(arrived + flat(residual), everything, atol=1e-5)
    without = np.sum([flat(received(sending(delta, density=0.2))) for delta in learned], axis=0)
    missed = [np.linalg.norm(everything - got) / np.linalg.norm(everything) for got in (arrived, without)]
    assert missed[0] < 0.5 * missed[1]


def test_a_residual_stays_bounded_however_long_it_goes_on() -> None:
    residual: Delta | None = None
    norms = []
    for seed in range(60):
        residual = sending(random_delta(seed=seed), residual, density=0.1).residual
        assert residual is not None
        norms.append(residual.norm)
    one = random_delta(seed=0).norm
    # Stich et al. 2018, lemma 3.2: with a contraction of d it stays below 2 (1 - d) / d times one update
    assert max(norms) < 18 * one
    assert max(norms[40:]) < 1.2 * max(norms[:40])


@pytest.mark.parametrize("compression", ["int4", "int8", "none", "topk"])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_sent_is_within_the_norm_bound_residual_included(compression: str, seed: int) -> None:
    bound = 0.3
    made = sending(random_delta(seed=seed), random_delta(seed=seed + 9), compression=compression, max_norm=bound)
    assert received(made).norm <= bound
    assert received(made).norm > 0.2 * bound
    if made.residual is not None:
        assert made.residual.norm <= bound * (1 + 1e-6)


def test_what_clipping_took_off_is_not_kept() -> None:
    made = sending(random_delta(seed=1, size=5.0), density=1.0, max_norm=1.0)
    assert made.residual is not None
    assert made.residual.norm < 0.2


@pytest.mark.parametrize("compression", ["int4", "int8", "none"])
def test_only_a_compression_that_leaves_numbers_out_has_a_residual(compression: str) -> None:
    delta = random_delta(seed=1)
    alone = sending(delta, compression=compression)
    assert alone.residual is None
    assert sending(delta, random_delta(seed=2), compression=compression).update.data == alone.update.data


@pytest.mark.parametrize("other", ["rank", "factors", "modules"])
def test_a_residual_of_another_layout_is_not_added(other: str) -> None:
    delta = random_delta()
    residual = {
        "rank": random_delta(rank=3),
        "factors": replace(delta, factors="a"),
        "modules": replace(delta, modules=dict(list(delta.modules.items())[1:])),
    }[other]
    with pytest.raises(ValueError, match="layout"):
        with_residual(delta, residual)


@pytest.mark.parametrize("factors", ["a", "b"])
def test_a_frozen_factor_has_neither_update_nor_residual(factors: Factors) -> None:
    delta = layout_of(replace(random_delta(), factors=factors)).restore(
        np.ones(layout_of(replace(random_delta(), factors=factors)).count, np.float32)
    )
    made = send(replace(HEADER, factors=factors), delta, delta, compression="topk", density=0.5, max_norm=100)
    assert made.residual is not None
    for found in (made.update.sent, made.residual):
        assert found.factors == factors
        assert not any((f.b if factors == "a" else f.a).any() for f in found.modules.values())
    assert left_over(delta, delta).norm == 0
