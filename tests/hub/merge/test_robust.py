"""The aggregators beside byzfl's, and what they promise of hostile vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.hub.merge.robust import (
    clip_scales,
    geometric_median,
    median,
    multi_krum,
    nearest_neighbour_mixing,
    trimmed_mean,
    upper_median,
)
from tests.hub.merge.byzfl_oracle import byzfl_module

Rows = NDArray[np.float64]

cases = st.tuples(st.integers(3, 14), st.integers(1, 30), st.integers(0, 10_000))


def drawn(count: int, length: int, seed: int) -> tuple[Rows, int]:
    """Vectors, a few of them far away, and how many may be hostile."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, length)) + rng.normal(size=length)
    hostile = int(rng.integers(0, (count - 1) // 2 + 1))
    rows[:hostile] = rows[:hostile] * rng.choice([-1, 0.5, 50]) + rng.normal()
    return rng.permutation(rows), hostile


def even(rows: Rows) -> list[float]:
    return [1.0] * len(rows)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_the_aggregators_are_those_of_byzfl(case: tuple[int, int, int]) -> None:
    rows, hostile = drawn(*case)
    theirs = byzfl_module("aggregators")
    gram = rows @ rows.T
    np.testing.assert_allclose(trimmed_mean(rows, hostile)[0], theirs.TrMean(f=hostile)(rows), atol=1e-10)
    np.testing.assert_allclose(median(rows)[0], theirs.Median()(rows), atol=1e-10)
    krum = multi_krum(gram, even(rows), hostile) @ rows
    np.testing.assert_allclose(krum, theirs.MultiKrum(f=hostile)(rows), atol=1e-8)
    middle = geometric_median(gram, even(rows), steps=5, smoothing=0.1) @ rows
    np.testing.assert_allclose(middle, theirs.GeometricMedian(nu=0.1, T=5)(rows), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_mixing_and_clipping_are_those_of_byzfl(case: tuple[int, int, int]) -> None:
    """Clipping coincides once byzfl is told the bound: it takes a constant, where ours follows the round's norms."""
    rows, hostile = drawn(*case)
    theirs = byzfl_module("preaggregators")
    mixed = nearest_neighbour_mixing(rows @ rows.T, hostile) @ rows
    np.testing.assert_allclose(mixed, theirs.NNM(f=hostile)(rows), atol=1e-10)
    norms = np.linalg.norm(rows, axis=1)
    clipped = np.array(clip_scales(norms.tolist(), 1.0))[:, None] * rows
    bound = float(np.sort(norms)[len(norms) // 2])
    np.testing.assert_allclose(clipped, theirs.Clipping(c=bound)(rows.copy()), atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(cases)
def test_mixed_vectors_go_through_the_aggregators_as_in_byzfl(case: tuple[int, int, int]) -> None:
    """What is mixed is never written out: its Gram matrix and its coefficients follow from those of the vectors."""
    rows, hostile = drawn(*case)
    gram = rows @ rows.T
    mixing = nearest_neighbour_mixing(gram, hostile)
    mixed = byzfl_module("preaggregators").NNM(f=hostile)(rows)
    found = mixing.T @ geometric_median(mixing @ gram @ mixing.T, even(rows), steps=3, smoothing=0.1) @ rows
    np.testing.assert_allclose(found, byzfl_module("aggregators").GeometricMedian(nu=0.1, T=3)(mixed), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from([0.0, -1.0, 1.0, 1e6, -1e12]))
def test_order_statistics_stay_among_honest_numbers_whatever_the_hostile_ones_are(
    case: tuple[int, int, int], value: float
) -> None:
    count, length, seed = case
    honest = np.random.default_rng(seed).normal(size=(count, length))
    hostile = (count - 1) // 2
    rows = np.vstack([honest, np.full((hostile, length), value)])
    for found, _ in (trimmed_mean(rows, hostile), median(rows)):
        assert (found >= honest.min(axis=0) - 1e-12).all()
        assert (found <= honest.max(axis=0) + 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from([-1.0, 0.0, 50.0, -1e9]))
def test_the_geometric_median_moves_no_further_than_its_bound(case: tuple[int, int, int], factor: float) -> None:
    """At most ``2 (n - f) / (n - 2 f)`` times the largest distance r of an honest vector from the honest mean.

    Were it at a distance D, the n - f honest vectors would be at least D - r from it and the mean at most r from them,
    and no hostile one could be more than D nearer to it than to the mean: (n - f)(D - r) <= (n - f) r + f D.
    """
    count, length, seed = case
    honest = np.random.default_rng(seed).normal(size=(count, length)) + 1.0
    hostile = (count - 1) // 2
    rows = np.vstack([honest, factor * np.repeat(honest.mean(axis=0)[None], hostile, axis=0)])
    norms = np.linalg.norm(rows, axis=1)
    rows *= np.array(clip_scales(norms.tolist(), 1.0))[:, None]
    found = geometric_median(rows @ rows.T, even(rows)) @ rows
    kept = rows[:count]
    radius = np.linalg.norm(kept - kept.mean(axis=0), axis=1).max()
    bound = 2 * count / (count - hostile) * radius
    assert np.linalg.norm(found - kept.mean(axis=0)) <= 1.01 * bound + 1e-9


@pytest.mark.parametrize("attack", ["flipped", "scaled", "far"])
def test_multi_krum_leaves_out_exactly_the_hostile_updates_of_devices_that_agree(attack: str) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(10, 200)) * 0.5 + rng.normal(size=200)
    rows[[2, 7]] = {"flipped": -rows[[2, 7]], "scaled": 50 * rows[[2, 7]], "far": 1e3 * rng.normal(size=(2, 200))}[
        attack
    ]
    found = multi_krum(rows @ rows.T, even(rows), 2)
    assert np.flatnonzero(found == 0).tolist() == [2, 7]
    assert found.sum() == pytest.approx(1.0)


def test_weights_count_in_the_geometric_median_and_in_the_mean_of_those_that_multi_krum_keeps() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    gram = rows @ rows.T
    assert multi_krum(gram, [3.0, 1.0, 1.0], 0) == pytest.approx([0.6, 0.2, 0.2])
    towards = geometric_median(gram, [1.0, 5.0, 1.0]) @ rows
    np.testing.assert_allclose(towards, [1.0, 0.0], atol=5e-3)  # who has more than half of all weight is the median


def test_an_update_of_any_size_is_clipped_to_the_median_norm_and_the_others_keep_theirs() -> None:
    assert clip_scales([1.0, 0.9, 1.1, 1e30], 1.0) == [1.0, 1.0, 1.0, pytest.approx(1.1e-30)]
    assert clip_scales([1.0, 0.9, 1.1, 50.0], 1.5) == [1.0, 1.0, 1.0, pytest.approx(1.65 / 50)]
    assert clip_scales([0.0, 0.0, 3.0], 1.0) == [1.0, 1.0, 0.0]


def test_of_two_updates_neither_limits_the_other() -> None:
    assert upper_median([0.0, 5.0]) == 5.0
    assert clip_scales([0.0, 5.0], 1.0) == [1.0, 1.0]


@pytest.mark.parametrize("count", [3, 4, 9, 10])
@pytest.mark.parametrize("value", [0.0, 1e20])
def test_the_median_lies_between_two_honest_values_while_they_are_more_than_half(count: int, value: float) -> None:
    honest = [float(number) for number in range(1, count - (count - 1) // 2 + 1)]
    hostile = [value] * ((count - 1) // 2)
    assert min(honest) <= upper_median([*honest, *hostile]) <= max(honest)


def test_updates_that_are_all_nothing_have_weights_all_the_same() -> None:
    gram = np.zeros((4, 4))
    assert geometric_median(gram, [1.0] * 4) == pytest.approx([0.25] * 4)
    assert multi_krum(gram, [1.0] * 4, 1).sum() == pytest.approx(1.0)


def test_how_many_of_its_numbers_count_is_known_of_every_row() -> None:
    rows = np.array([[1.0, 9.0], [2.0, 2.0], [3.0, 1.0]])
    means, counted = trimmed_mean(rows, 1)
    assert means.tolist() == [2.0, 2.0]
    assert counted.tolist() == [0.0, 2.0, 0.0]
    assert median(rows[:2])[0].tolist() == [1.5, 5.5]
