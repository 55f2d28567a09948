from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from agent.llm.rotary import RotaryScaling, model_order, stored_order


@given(heads=st.integers(1, 9), half=st.integers(1, 40))
def test_the_two_orders_undo_each_other(heads: int, half: int) -> None:
    rows = heads * 2 * half
    weight = np.arange(rows)
    assert (weight[stored_order(rows, heads)][model_order(rows, heads)] == weight).all()
    assert (weight[model_order(rows, heads)][stored_order(rows, heads)] == weight).all()


def test_halves_become_neighbouring_pairs_within_each_head() -> None:
    assert stored_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert stored_order(8, 1).tolist() == pytest.approx([0, 4, 1, 5, 2, 6, 3, 7])


def test_frequencies_fall_geometrically_and_linear_scaling_divides_them() -> None:
    plain = RotaryScaling(dimensions=8, base=10_000.0).rotary()
    assert plain.frequencies.tolist() == pytest.approx([1, 0.1, 0.01, 0.001])
    assert plain.magnitude == 1
    stretched = RotaryScaling(dimensions=8, base=10_000.0, kind="linear", factor=4.0).rotary()
    assert stretched.frequencies.tolist() == pytest.approx([0.25, 0.025, 0.0025, 0.00025])


def test_each_frequency_is_divided_by_its_factor() -> None:
    factors = np.array([1, 2, 4, 8], dtype=np.float32)
    rotary = RotaryScaling(dimensions=8, base=10_000.0, magnitude=1.5).rotary(factors)
    assert rotary.frequencies.tolist() == pytest.approx([1, 0.05, 0.0025, 0.000125])
    assert rotary.magnitude == 1.5


@pytest.mark.parametrize("dimensions", [32, 64, 128])
@pytest.mark.parametrize("base", [10_000.0, 1_000_000.0])
@pytest.mark.parametrize("factor", [1.5, 4.0, 32.0])
@pytest.mark.parametrize("original", [512, 8192])
def test_yarn_agrees_with_transformers(dimensions: int, base: float, factor: float, original: int) -> None:
    peer = LlamaConfig(
        head_dim=dimensions,
        max_position_embeddings=original,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": base,
            "factor": factor,
            "original_max_position_embeddings": original,
        },
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS["yarn"](peer, None)
    ours = RotaryScaling(dimensions=dimensions, base=base, kind="yarn", factor=factor, original_context=original)
    np.testing.assert_allclose(ours.rotary().frequencies, frequencies.numpy(), rtol=1e-5)
    assert ours.rotary().magnitude == pytest.approx(magnitude)


def test_yarn_keeps_fast_pairs_and_slows_slow_ones_by_the_whole_factor() -> None:
    scaling = RotaryScaling(dimensions=64, base=10_000.0, kind="yarn", factor=4.0, original_context=4096)
    plain = RotaryScaling(dimensions=64, base=10_000.0).rotary()
    ratio = plain.frequencies / scaling.rotary().frequencies
    assert ratio[0] == pytest.approx(1)
    assert ratio[-1] == pytest.approx(4)
    assert (np.diff(ratio) >= -1e-9).all()
    assert scaling.rotary().magnitude == pytest.approx(1 + 0.1 * math.log(4))


def test_layers_that_are_not_stretched_keep_yarns_positions_and_values() -> None:
    scaling = RotaryScaling(dimensions=64, base=1e6, kind="yarn", factor=4.0, original_context=512, magnitude=1.1)
    rotary = scaling.unscaled(10_000.0).rotary()
    np.testing.assert_allclose(rotary.frequencies, RotaryScaling(dimensions=64, base=10_000.0).rotary().frequencies)
    assert rotary.magnitude == pytest.approx(1.1)
