"""PEFT's ``add_weighted_adapter`` as an independent oracle for what ``stack`` merges and what it releases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.hub.merge.carry import carry_from_bytes, products_from_tensors
from agent.hub.merge.rule import Merged
from agent.hub.merge.stack import StackRule
from agent.llm.adapter import Adapter, ModulePath
from agent.testing import SMALL_SHAPES, random_delta
from agent.update.delta import Delta, apply, start_for_rank
from agent.update.start import initial_adapter

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")

NAMES = {name: name.replace(".", "_") for name in SMALL_SHAPES}


def weights_by_peft(community: Adapter, updates: list[tuple[Delta, float]], combination: str, **options: int) -> Any:
    """Give the change of each layer's weight that PEFT makes of the devices' adapters."""
    base = torch.nn.ModuleDict({NAMES[n]: torch.nn.Linear(i, o, bias=False) for n, (o, i) in SMALL_SHAPES.items()})
    model: Any = None
    labels = [f"d{index}" for index in range(len(updates))]
    for label, (delta, _) in zip(labels, updates, strict=True):
        alpha = community.scaling * delta.rank
        config = peft.LoraConfig(r=delta.rank, lora_alpha=alpha, target_modules=list(NAMES.values()))
        if model is None:
            model = peft.PeftModel(base, config, adapter_name=label)
        else:
            model.add_adapter(label, config)
        for name, factors in apply(start_for_rank(community, delta.rank), delta).modules.items():
            layer = model.base_model.model[NAMES[name]]
            layer.lora_A[label].weight.data = torch.from_numpy(factors.a.copy())
            layer.lora_B[label].weight.data = torch.from_numpy(factors.b.copy())
    total = sum(weight for _, weight in updates)
    shares = [weight / total for _, weight in updates]
    model.base_model.add_weighted_adapter(labels, shares, "all", combination_type=combination, **options)
    return {name: model.base_model.model[NAMES[name]].get_delta_weight("all").numpy() for name in SMALL_SHAPES}


def merged_here(community: Adapter, updates: list[tuple[Delta, float]]) -> Merged:
    accumulator = StackRule().start(community)
    for delta, weight in updates:
        accumulator.add(delta, weight)
    return accumulator.finish()


def released(merged: Merged, name: ModulePath) -> np.ndarray:
    factors = merged.adapter.modules[name]
    return merged.adapter.scaling * (factors.b.astype(np.float64) @ factors.a)


@pytest.mark.parametrize("ranks", [[4, 4], [2, 4], [1, 3, 4]])
def test_from_nothing_release_and_carry_are_what_concatenation_gives(ranks: list[int]) -> None:
    community = initial_adapter(SMALL_SHAPES, rank=4, alpha=8, seed=0, base_sha256="ab" * 32)
    updates = [(random_delta(rank=rank, seed=seed), 1.0 + seed) for seed, rank in enumerate(ranks)]
    theirs, merged = weights_by_peft(community, updates, "cat"), merged_here(community, updates)
    carried = products_from_tensors(carry_from_bytes("stack", merged.carry), SMALL_SHAPES, "residual/")
    for name in SMALL_SHAPES:
        rest = community.scaling * (carried[name].left @ carried[name].right) if name in carried else 0.0
        np.testing.assert_allclose(released(merged, name) + rest, theirs[name], atol=1e-6)


def test_from_nothing_the_release_is_what_a_singular_value_decomposition_of_that_rank_gives() -> None:
    community = initial_adapter(SMALL_SHAPES, rank=4, alpha=8, seed=0, base_sha256="ab" * 32)
    updates = [(random_delta(rank=4, seed=seed, size=0.2), 1.0 + seed) for seed in range(3)]
    theirs = weights_by_peft(community, updates, "svd", svd_rank=4)
    merged = merged_here(community, updates)
    for name in SMALL_SHAPES:
        np.testing.assert_allclose(released(merged, name), theirs[name], atol=1e-5)
    assert merged.report.carried_energy > 0.001
