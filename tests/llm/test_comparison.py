from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.errors import AdapterError
from agent.llm.adapter import Adapter, LoraFactors, ModulePath
from agent.llm.comparison import compare_adapters, strength

SHAPES = {"q_proj": (24, 16), "down_proj": (16, 40)}


def path(layer: int, name: str) -> ModulePath:
    return ModulePath(f"model.layers.{layer}.self_attn.{name}")


def adapter(
    rank: int, *, seed: int = 0, alpha: float = 8.0, names: tuple[str, ...] = tuple(SHAPES), layers: int = 2
) -> Adapter:
    rng = np.random.default_rng(seed)
    modules = {
        path(layer, name): LoraFactors(
            a=rng.normal(size=(rank, SHAPES[name][1])).astype(np.float32),
            b=rng.normal(size=(SHAPES[name][0], rank)).astype(np.float32),
        )
        for layer in range(layers)
        for name in names
    }
    return Adapter(rank=rank, alpha=alpha, modules=modules, base_sha256="b" * 64)


def dense(of: Adapter, name: ModulePath) -> NDArray[np.float64]:
    factors = of.modules[name]
    return of.scaling * factors.b.astype(np.float64) @ factors.a.astype(np.float64)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_factor_form_says_what_the_dense_matrices_say(rank: int, other_rank: int, seed: int) -> None:
    one, other = adapter(rank, seed=seed), adapter(other_rank, seed=seed + 1, alpha=3.0)
    found = compare_adapters(one, other)
    for name, row in found.layers.items():
        a, b = dense(one, name), dense(other, name)
        values = np.linalg.svd(a, compute_uv=False)
        shares = values / values.sum()
        entropy = -sum(share * np.log(share) for share in shares if share > 1e-14)
        assert row.a.norm == pytest.approx(np.linalg.norm(a))
        assert row.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)
        assert row.difference == pytest.approx(np.linalg.norm(b - a))
        assert row.relative_difference == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a))
        assert row.a.effective_rank == pytest.approx(np.exp(entropy), rel=1e-6)
        assert row.a.components == np.searchsorted(np.cumsum(values**2) / (values**2).sum(), 0.99) + 1
    everything = [np.concatenate([dense(each, name).ravel() for name in one.modules]) for each in (one, other)]
    assert found.total.a.norm == pytest.approx(np.linalg.norm(everything[0]))
    assert found.total.difference == pytest.approx(np.linalg.norm(everything[1] - everything[0]))
    assert strength(one).norm == pytest.approx(found.total.a.norm)
    assert strength(one).effective_rank == pytest.approx(found.total.a.effective_rank)


def test_same_product_in_other_factors_is_no_difference() -> None:
    one = adapter(4)
    doubled = {name: LoraFactors(a=2 * factors.a, b=factors.b) for name, factors in one.modules.items()}
    total = compare_adapters(one, replace(one, alpha=one.alpha / 2, modules=doubled)).total
    assert total.cosine == pytest.approx(1.0)
    assert total.relative_difference == pytest.approx(0.0, abs=1e-12)


def test_layers_that_only_one_of_them_changes_count_in_full() -> None:
    one, other = adapter(4), adapter(2, names=("q_proj",), layers=1)
    found = compare_adapters(one, other)
    alone = found.layers[path(1, "down_proj")]
    assert (alone.b.norm, alone.b.components, alone.cosine) == (0.0, 0, None)
    assert alone.relative_difference == pytest.approx(1.0)
    turned = compare_adapters(other, one).layers[path(1, "down_proj")]
    assert turned.relative_difference is None
    assert turned.difference == pytest.approx(alone.difference)


def test_adapter_that_changes_nothing_yet_has_no_direction() -> None:
    one = adapter(4)
    still = {name: LoraFactors(a=factors.a, b=np.zeros_like(factors.b)) for name, factors in one.modules.items()}
    total = compare_adapters(replace(one, modules=still), one).total
    assert (total.a.norm, total.a.effective_rank, total.cosine, total.relative_difference) == (0.0, 0.0, None, None)


def test_layers_come_in_the_order_of_the_model() -> None:
    found = compare_adapters(adapter(1, layers=12), adapter(1, layers=12))
    numbers = [int(name.split(".")[2]) for name in found.layers]
    assert numbers == sorted(numbers)


def test_different_bases_are_refused() -> None:
    with pytest.raises(AdapterError, match="different bases"):
        compare_adapters(adapter(4), replace(adapter(4), base_sha256="c" * 64))


def test_different_shapes_are_refused() -> None:
    other = {path(0, "q_proj"): LoraFactors(a=np.ones((1, 3), np.float32), b=np.ones((24, 1), np.float32))}
    with pytest.raises(AdapterError, match="has shape"):
        compare_adapters(adapter(1), Adapter(rank=1, alpha=1.0, modules=other, base_sha256="b" * 64))
