from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save

from agent.errors import MergeError
from agent.hub.merge.carry import carry_from_bytes, carry_to_bytes
from agent.hub.merge.factors import Product
from agent.llm.adapter import ModulePath

NAME = ModulePath("model.layers.0.mlp.up_proj")
SHAPES = {NAME: (5, 3), ModulePath("model.layers.1.mlp.up_proj"): (5, 3)}


def half(out: int = 5, in_: int = 3, rank: int = 2) -> Product:
    return Product(left=np.full((out, rank), 0.5), right=np.full((rank, in_), 0.25))


def test_a_carry_comes_back_from_its_bytes_without_what_is_empty() -> None:
    empty = Product(left=np.zeros((5, 0)), right=np.zeros((0, 3)))
    data = carry_to_bytes({NAME: half(), ModulePath("model.layers.1.mlp.up_proj"): empty})
    back = carry_from_bytes(data, SHAPES)
    assert list(back) == [NAME]
    np.testing.assert_array_equal(back[NAME].left, half().left)
    np.testing.assert_array_equal(back[NAME].right, half().right)


def test_nothing_is_carried_as_no_bytes() -> None:
    assert carry_to_bytes({}) == b""
    assert carry_from_bytes(b"", SHAPES) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        carry_to_bytes({ModulePath("stranger"): half()}),
        carry_to_bytes({NAME: half(out=6)}),
        carry_to_bytes({NAME: Product(left=np.full((5, 1), np.nan), right=np.ones((1, 3)))}),
        save({f"{NAME}.left": np.zeros((5, 1), np.float32)}),
        save({f"{NAME}.left": np.zeros((5, 1), np.float32), f"{NAME}.right": np.zeros((2, 3), np.float32)}),
        save({"left": np.zeros(3, np.float32), "right": np.zeros(3, np.float32)}),
    ],
)
def test_a_damaged_or_foreign_carry_is_refused_with_advice(data: bytes) -> None:
    with pytest.raises(MergeError) as caught:
        carry_from_bytes(data, SHAPES)
    assert "roll back" in caught.value.advice
