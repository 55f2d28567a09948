from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import AdapterError
from agent.llm.adapter import LoraFactors
from agent.testing import SMALL_SHAPES, random_adapter, random_delta
from agent.update.delta import Factors, apply, clip, difference, factor_norm, product_norms, start_for_rank


def test_applying_a_difference_gives_the_trained_adapter() -> None:
    start, trained = random_adapter(seed=1), random_adapter(seed=2)
    again = apply(start, difference(start, trained))
    for name, factors in trained.modules.items():
        np.testing.assert_allclose(again.modules[name].a, factors.a, atol=1e-6)
        np.testing.assert_allclose(again.modules[name].b, factors.b, atol=1e-6)


@pytest.mark.parametrize("change", [{"rank": 3}, {"alpha": 9.0}, {"base_sha256": "cd" * 32}, {"modules": {}}])
def test_a_difference_needs_two_adapters_of_one_form(change: dict[str, object]) -> None:
    start = random_adapter()
    with pytest.raises(AdapterError, match="form"):
        difference(start, replace(start, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(("factors", "frozen"), [("a", "b"), ("b", "a")])
def test_a_factor_that_was_frozen_and_changed_anyway_is_no_difference(factors: Factors, frozen: Factors) -> None:
    start = random_adapter()
    changed = random_delta()
    one = {name: LoraFactors(a=f.a * (factors == "a"), b=f.b * (factors == "b")) for name, f in changed.modules.items()}
    trained = apply(start, replace(changed, modules=one))
    delta = difference(start, trained, factors)
    assert delta.factors == clip(delta, 0.01).factors == factors
    with pytest.raises(AdapterError, match="frozen"):
        difference(start, trained, frozen)


def test_the_norm_is_that_of_all_numbers_together() -> None:
    delta = random_delta(seed=5)
    flat = np.concatenate([np.concatenate([f.a.ravel(), f.b.ravel()]) for f in delta.modules.values()])
    assert delta.norm == pytest.approx(float(np.linalg.norm(flat.astype(np.float64))), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), bound=st.floats(1e-3, 10))
def test_clipping_keeps_the_direction_and_the_bound(seed: int, bound: float) -> None:
    delta = random_delta(seed=seed)
    clipped = clip(delta, bound)
    assert clipped.norm <= bound * (1 + 1e-6)
    if delta.norm <= bound:
        assert clipped is delta
    for name, factors in delta.modules.items():
        np.testing.assert_allclose(
            clipped.modules[name].a * (delta.norm / clipped.norm), factors.a, rtol=1e-4, atol=1e-7
        )


def test_product_norms_are_those_of_the_dense_change() -> None:
    start, delta = random_adapter(seed=1), random_delta(seed=2)
    norms = product_norms(start, delta)
    for name, factors in start.modules.items():
        change = delta.modules[name]
        a, b = factors.a.astype(np.float64), factors.b.astype(np.float64)
        dense = start.scaling * ((b + change.b) @ (a + change.a) - b @ a)
        assert norms[name] == pytest.approx(float(np.linalg.norm(dense)), rel=1e-9)


def test_a_product_of_zero_has_norm_zero() -> None:
    assert factor_norm(np.zeros((5, 2)), np.ones((2, 7))) == 0.0


def test_a_smaller_rank_starts_from_the_first_components_at_the_same_scaling() -> None:
    community = random_adapter(rank=4, alpha=8.0)
    start = start_for_rank(community, 2)
    assert (start.rank, start.scaling) == (2, community.scaling)
    for name, factors in community.modules.items():
        np.testing.assert_array_equal(start.modules[name].a, factors.a[:2])
        np.testing.assert_array_equal(start.modules[name].b, factors.b[:, :2])
    assert start_for_rank(community, 4) is community


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_the_community_lacks_is_refused_with_the_ranks_there_are(rank: int) -> None:
    with pytest.raises(AdapterError) as caught:
        start_for_rank(random_adapter(rank=4), rank)
    assert "from 1 to 4" in caught.value.advice


def test_a_delta_of_another_form_does_not_apply() -> None:
    with pytest.raises(AdapterError, match="rank 3 instead of 4"):
        apply(random_adapter(rank=4), random_delta(rank=3))
    strange = {name: (out + 1, in_) for name, (out, in_) in SMALL_SHAPES.items()}
    with pytest.raises(AdapterError, match="module model"):
        apply(random_adapter(rank=4), random_delta(rank=4, shapes=strange))  # type: ignore[arg-type]


def test_a_delta_with_fewer_modules_changes_only_those() -> None:
    start, delta = random_adapter(), random_delta()
    only = min(delta.modules)
    changed = apply(start, replace(delta, modules={only: delta.modules[only]}))
    for name, factors in start.modules.items():
        assert np.array_equal(changed.modules[name].a, factors.a) == (name != only)
