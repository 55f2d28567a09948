from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.hub.merge.factors import Product, Sum, decompose, stack


def product(out: int, in_: int, rank: int, seed: int = 0) -> Product:
    rng = np.random.default_rng(seed)
    return Product(left=rng.normal(size=(out, rank)), right=rng.normal(size=(rank, in_)))


@settings(max_examples=60, deadline=None)
@given(out=st.integers(1, 12), in_=st.integers(1, 12), rank=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_decomposition_is_that_of_the_dense_matrix(out: int, in_: int, rank: int, seed: int) -> None:
    thing = product(out, in_, rank, seed)
    found = decompose(thing)
    dense = thing.left @ thing.right
    np.testing.assert_allclose(found.u * found.s @ found.vt, dense, atol=1e-9)
    expected = np.linalg.svd(dense, compute_uv=False)
    count = min(len(expected), len(found.s))
    np.testing.assert_allclose(found.s[:count], expected[:count], atol=1e-8)
    assert (np.diff(found.s) <= 1e-12).all()


def test_signs_are_fixed_whatever_signs_the_factors_have() -> None:
    thing = product(9, 7, 3)
    flipped = Product(left=-thing.left, right=-thing.right)
    one, other = decompose(thing), decompose(flipped)
    np.testing.assert_allclose(one.u, other.u, atol=1e-10)
    np.testing.assert_allclose(one.vt, other.vt, atol=1e-10)
    assert (one.u[np.abs(one.u).argmax(axis=0), range(3)] > 0).all()


def test_components_that_are_permuted_in_the_factors_come_out_in_one_order() -> None:
    thing = product(9, 7, 3)
    order = [2, 0, 1]
    permuted = Product(left=thing.left[:, order], right=thing.right[order])
    one, other = decompose(thing), decompose(permuted)
    np.testing.assert_allclose(one.u, other.u, atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_a_sum_loses_nothing_however_many_products_come(shape: tuple[int, int], count: int) -> None:
    running, dense = Sum(shape), np.zeros(shape)
    for seed in range(count):
        item = product(*shape, 2, seed)
        running.add(item)
        dense += item.left @ item.right
    parts = running.total()
    total = sum((part.left @ part.right for part in parts), np.zeros(shape))
    np.testing.assert_allclose(total, dense, atol=1e-9)
    if parts:
        whole = stack(parts)
        np.testing.assert_allclose(whole.left @ whole.right, dense, atol=1e-9)


def test_a_sum_holds_no_more_than_the_matrix_and_one_buffer() -> None:
    shape = (100, 150)
    running = Sum(shape)
    tracemalloc.start()
    for seed in range(200):
        running.add(product(*shape, 4, seed))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 2.2 * 8 * shape[0] * shape[1]
