from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hub.weights import MAX_WEIGHT_SHARE, capped_weights

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
