from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hub.weights import MAX_WEIGHT_SHARE, capped_weights, merge_weights, staleness_weight

tokens = st.lists(st.integers(0, 2**40), min_size=1, max_size=50)


@given(tokens)
def test_weights_sum_to_one_and_none_is_above_its_share(found: list[int]) -> None:
    weights = capped_weights(found)
    assert len(weights) == len(found)
    assert sum(weights) == pytest.approx(1.0)
    assert all(weight >= 0 for weight in weights)
    if len(found) > 2:
        assert max(weights) <= MAX_WEIGHT_SHARE + 1e-9


@given(tokens)
def test_who_brings_more_text_never_weighs_less(found: list[int]) -> None:
    pairs = sorted(zip(found, capped_weights(found), strict=True))
    assert all(light <= heavy + 1e-9 for (_, light), (_, heavy) in itertools.pairwise(pairs))


def test_weights_follow_the_tokens_where_nobody_dominates() -> None:
    assert capped_weights([100, 200, 100]) == pytest.approx([0.25, 0.5, 0.25])


def test_two_devices_weigh_the_same_and_one_has_everything() -> None:
    assert capped_weights([1, 10**9]) == [0.5, 0.5]
    assert capped_weights([7]) == [1.0]


def test_device_that_claims_a_galaxy_of_text_gets_half() -> None:
    weights = capped_weights([10**12, 300, 100])
    assert weights == pytest.approx([0.5, 0.375, 0.125])


def test_devices_that_claim_a_galaxy_of_text_weigh_no_more_than_the_median_one() -> None:
    honest = [100, 90, 110, 100]
    weights = merge_weights([*honest, 10**12, 10**12], [0] * 6, power=0.5)
    assert weights[4:] == pytest.approx([weights[2]] * 2)
    assert merge_weights([*honest, 10**12], [0] * 5, power=0.5)[4] == pytest.approx(100 / 490)


@given(st.lists(st.integers(1, 2**40), min_size=3, max_size=9), st.integers(1, 2**40))
def test_fewer_than_half_gain_no_more_weight_than_the_largest_honest_one_by_claiming_more(
    honest: list[int], claim: int
) -> None:
    hostile = [claim] * ((len(honest) - 1) // 2)
    weights = merge_weights([*honest, *hostile], [0] * (len(honest) + len(hostile)), power=0.5)
    assert all(weight <= max(weights[: len(honest)]) + 1e-9 for weight in weights[len(honest) :])


def test_late_updates_weigh_less_by_a_power_of_their_lateness() -> None:
    assert [staleness_weight(late, 0.5) for late in (0, 3, 8)] == pytest.approx([1.0, 0.5, 1 / 3])
    assert staleness_weight(5, 0.0) == 1.0
    weights = merge_weights([100, 100, 100, 100], [0, 0, 0, 3], power=0.5)
    assert weights == pytest.approx([2 / 7, 2 / 7, 2 / 7, 1 / 7])


def test_lateness_before_the_present_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="-1 releases late"):
        staleness_weight(-1, 0.5)


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 20)), min_size=1, max_size=30), st.floats(0, 10))
def test_no_update_is_lifted_above_its_share_by_the_lateness_of_others(
    found: list[tuple[int, int]], power: float
) -> None:
    weights = merge_weights([count for count, _ in found], [late for _, late in found], power=power)
    assert sum(weights) == pytest.approx(1.0)
    assert all(weight > 0 for weight in weights)
    if len(found) > 2:
        assert max(weights) <= MAX_WEIGHT_SHARE + 1e-9
