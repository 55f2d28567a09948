from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.errors import AdapterError
from agent.llm.gguf_file import open_gguf, target_shapes
from agent.training.lora import LoraModel
from agent.training.model import build_packed_model, mean_loss
from tests.models import random_adapter
from tests.training.gradients import backward

NAMES = ["q_proj", "v_proj", "down_proj"]


def make(path: Path, *, seed: int = 0, rank: int = 4) -> LoraModel:
    return LoraModel(
        model=build_packed_model(open_gguf(path)),
        rank=rank,
        alpha=8.0,
        target_modules=NAMES,
        base_sha256="0" * 64,
        seed=seed,
    )


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
    backward(mean_loss(model.packed, torch.randint(0, 300, (2, 16))))
    parameters = model.parameters()
    assert len(parameters) == 2 * 2 * len(NAMES)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
    others = {p for p in model.packed.parameters() if p.requires_grad} - set(parameters)
    assert others == set()


def test_the_base_alone_is_still_there(tiny_q8: Path) -> None:
    model = make(tiny_q8)
    tokens = torch.randint(0, 300, (2, 16))
    with torch.inference_mode():
        plain = float(mean_loss(model.packed, tokens))
        model.load(random_adapter(open_gguf(tiny_q8), rank=4, alpha=8.0, names=NAMES, size=0.3))
        adapted = float(mean_loss(model.packed, tokens))
        with model.without_adapter():
            assert float(mean_loss(model.packed, tokens)) == plain
        assert float(mean_loss(model.packed, tokens)) == adapted
    assert adapted != plain


@pytest.mark.parametrize(
    ("rank", "alpha", "names"), [(2, 8.0, NAMES), (4, 4.0, NAMES), (4, 8.0, ["q_proj"]), (4, 8.0, [*NAMES, "o_proj"])]
)
def test_an_adapter_of_another_make_is_refused(tiny_q8: Path, rank: int, alpha: float, names: list[str]) -> None:
    model = make(tiny_q8)
    before = model.extract().to_bytes()
    with pytest.raises(AdapterError, match="rank 4, alpha 8"):
        model.load(random_adapter(open_gguf(tiny_q8), rank=rank, alpha=alpha, names=names))
    assert model.extract().to_bytes() == before
