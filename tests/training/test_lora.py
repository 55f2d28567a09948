from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from agent.data.packing import WindowSet
from agent.errors import AdapterError
from agent.llm.adapter import ModulePath
from agent.llm.gguf_file import open_gguf, target_shapes
from agent.training.batches import pass_of
from agent.training.decoder import Decoder
from agent.training.lora import LoraModel, put_on
from tests.models import random_adapter
from tests.training.gradients import backward

NAMES = ["q_proj", "v_proj", "down_proj"]


def make(
    path: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    last_layers: int | None = None,
    factors: Literal["both", "a", "b"] = "both",
) -> LoraModel:
    return LoraModel(
        model=Decoder(open_gguf(path)),
        rank=rank,
        alpha=8.0,
        target_modules=NAMES,
        base_sha256="0" * 64,
        seed=seed,
        last_layers=last_layers,
        factors=factors,
    )


def some_windows(seed: int = 6) -> WindowSet:
    return WindowSet.plain(np.random.default_rng(seed).integers(0, 300, (2, 17)).astype(np.uint32))


def loss_of(model: LoraModel) -> torch.Tensor:
    return model.packed.loss(pass_of(some_windows())) / some_windows().counted


def test_a_new_adapter_changes_nothing_and_is_drawn_by_its_seed(tiny_q8: Path) -> None:
    first, again, other = (make(tiny_q8, seed=seed).extract() for seed in (1, 1, 2))
    assert first.to_bytes() == again.to_bytes()
    assert first.to_bytes() != other.to_bytes()
    assert first.shapes == target_shapes(open_gguf(tiny_q8), NAMES)
    for factors in first.modules.values():
        assert not factors.b.any()
        assert np.abs(factors.a).max() <= 1 / math.sqrt(factors.a.shape[1])
        assert factors.a.std() > 0


def test_drawing_an_adapter_leaves_the_random_state_alone(tiny_q8: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make(tiny_q8)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_loaded_is_what_is_extracted(tiny_q8: Path) -> None:
    model = make(tiny_q8)
    adapter = random_adapter(open_gguf(tiny_q8), rank=4, alpha=8.0, names=NAMES)
    model.load(adapter)
    found = model.extract()
    assert found.shapes == adapter.shapes
    for name, factors in adapter.modules.items():
        assert np.array_equal(found.modules[name].a, factors.a)
        assert np.array_equal(found.modules[name].b, factors.b)


def test_only_the_adapter_learns(tiny_q8: Path) -> None:
    model = make(tiny_q8)
    model.load(random_adapter(open_gguf(tiny_q8), rank=4, alpha=8.0, names=NAMES))
    backward(loss_of(model))
    parameters = model.parameters()
    assert len(parameters) == 2 * (2 + 3), "q and v share one input, and so the parameter of their A"
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
    assert sum(parameter.numel() for parameter in parameters) == model.extract().parameter_count


@pytest.mark.parametrize(
    ("rank", "alpha", "names"), [(2, 8.0, NAMES), (4, 4.0, NAMES), (4, 8.0, ["q_proj"]), (4, 8.0, [*NAMES, "o_proj"])]
)
def test_an_adapter_of_another_make_is_refused(tiny_q8: Path, rank: int, alpha: float, names: list[str]) -> None:
    model = make(tiny_q8)
    before = model.extract().to_bytes()
    with pytest.raises(AdapterError, match="rank 4, alpha 8"):
        model.load(random_adapter(open_gguf(tiny_q8), rank=rank, alpha=alpha, names=names))
    assert model.extract().to_bytes() == before


def test_a_finished_adapter_is_put_on_a_model(tiny_q8: Path) -> None:
    adapter = random_adapter(open_gguf(tiny_q8), rank=4, alpha=8.0, names=NAMES)
    model = make(tiny_q8)
    model.load(adapter)
    other = put_on(Decoder(open_gguf(tiny_q8)), adapter)
    assert other.extract().to_bytes() == adapter.to_bytes()
    with torch.inference_mode():
        assert loss_of(other) == loss_of(model)


@pytest.mark.parametrize(("last", "first"), [(None, 0), (1, 1), (2, 0), (9, 0)])
def test_an_adapter_of_the_last_layers_changes_only_these(tiny_q8: Path, last: int | None, first: int) -> None:
    model = make(tiny_q8, last_layers=last)
    assert model.first_layer == first
    assert {int(path.split(".")[2]) for path in model.extract().modules} == set(range(first, 2))
    learnt = model.extract()
    again = put_on(Decoder(open_gguf(tiny_q8)), learnt)
    assert again.first_layer == first
    assert again.extract().to_bytes() == learnt.to_bytes()


def test_the_layers_of_an_adapter_are_its_own_slices_of_what_is_trained(tiny_q8: Path) -> None:
    model = make(tiny_q8)
    before = model.extract()
    query, value = (ModulePath(f"model.layers.0.self_attn.{name}") for name in ("q_proj", "v_proj"))
    projection = model.packed.blocks[0].qkv
    assert projection.a is not None
    with torch.no_grad():
        projection.a[4:] += 1
    after = model.extract()
    assert np.array_equal(after.modules[query].a, before.modules[query].a)
    assert np.array_equal(after.modules[value].a, before.modules[value].a + 1)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("factors", ["a", "b"])
def test_the_gradient_of_one_factor_does_not_depend_on_whether_the_other_one_is_frozen(
    tiny_q8: Path, factors: Literal["a", "b"], *, checkpointing: bool
) -> None:
    start = random_adapter(open_gguf(tiny_q8), rank=4, alpha=8.0, names=NAMES)
    both, one = make(tiny_q8), make(tiny_q8, factors=factors)
    for model in (both, one):
        model.load(start)
        model.packed.checkpointing = checkpointing
        backward(loss_of(model))
    expected = [parameter for index, parameter in enumerate(both.parameters()) if is_a(both, index) == (factors == "a")]
    assert len(one.parameters()) == len(expected)
    for found, wanted in zip(one.parameters(), expected, strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert torch.equal(found.grad, wanted.grad)


def is_a(model: LoraModel, index: int) -> bool:
    """Say whether a parameter is an A: its rows are the layers' ranks, one below another."""
    return any(
        model.parameters()[index] is projection.a for block in model.packed.blocks for projection in block.projections
    )
