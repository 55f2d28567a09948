from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.hub.merge.factors import Combination, CrossSum, Product, combine


def product(out: int, in_: int, rank: int, seed: int = 0) -> Product:
    rng = np.random.default_rng(seed)
    return Product(left=rng.normal(size=(out, rank)), right=rng.normal(size=(rank, in_)))


def written_out(thing: Product) -> np.ndarray:
    return thing.left @ thing.right


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 12),
    in_=st.integers(1, 12),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    dense=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_components_of_a_combination_are_those_of_the_matrix_that_it_stands_for(
    *, out: int, in_: int, ranks: list[int], dense: bool, seed: int
) -> None:
    terms: list[tuple[float, Product | np.ndarray]] = [
        (1.0 + index, product(out, in_, rank, seed + index)) for index, rank in enumerate(ranks)
    ]
    if dense:
        terms.append((-0.5, np.random.default_rng(seed).normal(size=(out, in_))))
    combination = Combination(tuple(terms))
    matrix = sum(share * (written_out(term) if isinstance(term, Product) else term) for share, term in terms)
    np.testing.assert_allclose(combination.matrix(), matrix, atol=1e-9)
    found = combination.components(min(out, in_))
    np.testing.assert_allclose(found.u * found.s @ found.vt, matrix, atol=1e-6)
    s = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(found.s, s[: len(found.s)], atol=1e-6 * max(1.0, s[0]))
    assert found.energy == pytest.approx(float((s**2).sum()))
    assert combination.energy() == pytest.approx(float((s**2).sum()))
    assert (np.diff(found.s) <= 1e-9).all()
    np.testing.assert_allclose(combination.scaled(2.0).plus(combination).matrix(), 3 * matrix, atol=1e-9)


def test_signs_are_fixed_whatever_signs_the_factors_have() -> None:
    thing = product(9, 7, 3)
    one = combine(thing).components(3)
    other = combine(Product(left=-thing.left, right=-thing.right)).components(3)
    np.testing.assert_allclose(one.u, other.u, atol=1e-10)
    np.testing.assert_allclose(one.vt, other.vt, atol=1e-10)
    assert (one.u[np.abs(one.u).argmax(axis=0), range(3)] > 0).all()


def test_components_that_are_permuted_in_the_factors_come_out_in_one_order() -> None:
    thing, order = product(9, 7, 3), [2, 0, 1]
    one = combine(thing).components(3)
    other = combine(Product(left=thing.left[:, order], right=thing.right[order])).components(3)
    np.testing.assert_allclose(one.u, other.u, atol=1e-10)


def test_the_largest_components_of_a_large_matrix_hold_almost_all_that_the_best_of_their_rank_hold() -> None:
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 200)))[0] for n in (220, 260))
    for decay in (0.0, 0.5, 1.0):  # from a flat spectrum, the hardest, to one like that of an update
        s = 1.0 / (1 + np.arange(200)) ** decay
        matrix = (u * s) @ v.T
        found = combine(matrix).components(20)
        best = float((s[:20] ** 2).sum())
        assert 0.93 * best <= float((found.s**2).sum()) <= best * (1 + 1e-5)
        kept = found.between(0, 20)
        rest = matrix - written_out(kept)
        # What is kept and what is left are orthogonal, so nothing is counted twice or lost.
        assert float((rest**2).sum()) + float((found.s**2).sum()) == pytest.approx(found.energy, rel=1e-5)
        assert found.energy == pytest.approx(float((s**2).sum()), rel=1e-5)


def test_truncation_gives_the_best_product_of_a_rank_and_leaves_thinner_ones_alone() -> None:
    thing = product(9, 7, 2)
    np.testing.assert_allclose(written_out(combine(thing).truncated(3)), written_out(thing), atol=1e-12)
    matrix = np.random.default_rng(1).normal(size=(9, 7))
    u, s, vt = np.linalg.svd(matrix)
    np.testing.assert_allclose(written_out(combine(matrix).truncated(2)), u[:, :2] * s[:2] @ vt[:2], atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (40, 30)])
@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_a_cross_sum_is_off_by_no_more_than_the_roundings_it_states(shape: tuple[int, int], count: int) -> None:
    rng = np.random.default_rng(count)
    running, dense, bound = CrossSum(2, shape, 4), np.zeros((2, *shape)), np.zeros((2, *shape))
    for number in range(count):
        rank = 1 + number % 4
        left, right = running.room(rank)
        left[:] = rng.normal(size=left.shape)
        right[:] = rng.normal(size=right.shape)
        dense += left.astype(np.float64) @ right
        bound += np.abs(left.astype(np.float64)) @ np.abs(right)
    for layer in range(2):
        if not count:
            assert running.total(layer).terms == ()
            continue
        roundings = 4 * count + count  # inner dimensions, and sums of them
        off = np.abs(running.total(layer).matrix() - dense[layer])
        assert (off <= roundings * 2.0**-24 * bound[layer]).all()


def test_a_cross_sum_holds_no_more_than_one_and_a_half_matrices() -> None:
    shape = (100, 150)
    tracemalloc.start()
    running = CrossSum(3, shape, 4)
    held = []
    for number in range(400):
        for factor in running.room(4):
            factor.fill(0.1)
        if number in (40, 399):
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[0] == pytest.approx(held[1], rel=0.01)
    assert held[1] < 1.6 * 3 * 4 * shape[0] * shape[1]
