from __future__ import annotations

import numpy as np

from agent.federation.judging import personal_adapter
from agent.llm.adapter import Adapter
from agent.testing import random_adapter


def product(adapter: Adapter, name: str) -> np.ndarray:
    factors = adapter.modules[name]  # type: ignore[index]
    return adapter.scaling * factors.b.astype(np.float64) @ factors.a.astype(np.float64)


def test_personal_adapter_on_top_of_the_communitys_is_the_model_that_was_trained() -> None:
    trained, community = random_adapter(rank=3, seed=1), random_adapter(rank=5, seed=2, alpha=20.0)
    personal = personal_adapter(trained, community)
    assert personal.rank == 8
    for name in community.modules:
        whole = product(community, name) + product(personal, name)
        np.testing.assert_allclose(whole, product(trained, name), atol=1e-5)


def test_personal_adapter_of_a_device_that_learned_nothing_more_changes_nothing() -> None:
    community = random_adapter(rank=4, seed=3)
    personal = personal_adapter(community, community)
    for name in community.modules:
        np.testing.assert_allclose(product(personal, name), 0.0, atol=1e-5)
