from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save

from agent.errors import MergeError
from agent.hub.merge.carry import carry_from_bytes, carry_to_bytes, products_from_tensors, products_to_tensors
from agent.hub.merge.factors import Product
from agent.llm.adapter import ModulePath

NAME, OTHER = ModulePath("model.layers.0.mlp.up_proj"), ModulePath("model.layers.1.mlp.up_proj")
SHAPES = {NAME: (5, 3), OTHER: (5, 3)}


def half(out: int = 5, in_: int = 3, rank: int = 2) -> Product:
    return Product(left=np.full((out, rank), 0.5), right=np.full((rank, in_), 0.25))


def test_products_come_back_from_their_bytes_without_what_is_empty() -> None:
    empty = Product(left=np.zeros((5, 0)), right=np.zeros((0, 3)))
    data = carry_to_bytes("stack", products_to_tensors({NAME: half(), OTHER: empty}, "here/"))
    back = products_from_tensors(carry_from_bytes("stack", data), SHAPES, "here/")
    assert list(back) == [NAME]
    np.testing.assert_array_equal(back[NAME].left, half().left)
    np.testing.assert_array_equal(back[NAME].right, half().right)


def test_products_under_another_prefix_are_left_alone() -> None:
    tensors = carry_from_bytes("stack", carry_to_bytes("stack", products_to_tensors({NAME: half()}, "here/")))
    assert products_from_tensors(tensors, SHAPES, "there/") == {}


def test_nothing_is_carried_as_no_bytes() -> None:
    assert carry_to_bytes("stack", {}) == b""
    assert carry_from_bytes("stack", b"") == {}


def test_the_same_tensors_give_the_same_bytes_in_any_order() -> None:
    one, other = np.ones(3), np.zeros((2, 2))
    assert carry_to_bytes("x", {"a": one, "b": other}) == carry_to_bytes("x", {"b": other, "a": one})


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        save({"x": np.zeros(3, np.float32)}),
        save({"x": np.zeros(3, np.float64)}, metadata={"bramble-carry": "stack"}),
        carry_to_bytes("stack", {"x": np.array([np.nan])}),
        carry_to_bytes("stack", {"x": np.array([np.inf])}),
    ],
)
def test_a_damaged_carry_is_refused_with_advice(data: bytes) -> None:
    with pytest.raises(MergeError) as caught:
        carry_from_bytes("stack", data)
    assert "roll back" in caught.value.advice


def test_the_carry_of_another_rule_is_refused_by_name() -> None:
    with pytest.raises(MergeError, match="'linear', not of 'stack'"):
        carry_from_bytes("stack", carry_to_bytes("linear", {"x": np.ones(3)}))


@pytest.mark.parametrize(
    "tensors",
    [
        products_to_tensors({ModulePath("stranger"): half()}),
        products_to_tensors({NAME: half(out=6)}),
        {f"{NAME}.left": np.zeros((5, 1))},
        {f"{NAME}.left": np.zeros((5, 1)), f"{NAME}.right": np.zeros((2, 3))},
        {f"{NAME}.left": np.zeros(5), f"{NAME}.right": np.zeros(3)},
    ],
)
def test_factors_that_do_not_fit_are_refused_with_advice(tensors: dict[str, np.ndarray]) -> None:
    read = carry_from_bytes("stack", carry_to_bytes("stack", tensors))
    with pytest.raises(MergeError) as caught:
        products_from_tensors(read, SHAPES)
    assert "roll back" in caught.value.advice
