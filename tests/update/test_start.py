from __future__ import annotations

import numpy as np
import pytest

from agent.errors import AdapterError
from agent.llm.adapter import ModulePath
from agent.testing import SMALL_SHAPES
from agent.update.start import fresh_rows, initial_adapter


def test_the_initial_adapter_changes_nothing_and_can_be_trained() -> None:
    adapter = initial_adapter(SMALL_SHAPES, rank=4, alpha=8, seed=3, base_sha256="ab" * 32)
    assert adapter.shapes == SMALL_SHAPES
    for factors in adapter.modules.values():
        assert factors.a.dtype == factors.b.dtype == np.float32
        assert not factors.b.any()
        assert factors.a.all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (
        initial_adapter(SMALL_SHAPES, rank=4, alpha=8, seed=seed, base_sha256="ab" * 32).to_bytes()
        for seed in (3, 3, 4)
    )
    assert first == again != other


def test_rows_have_the_distribution_that_peft_draws_from() -> None:
    torch = pytest.importorskip("torch")
    rows = fresh_rows(64, 400, seed=1, key="m")
    theirs = torch.empty(64, 400)
    torch.nn.init.kaiming_uniform_(theirs, a=5**0.5)
    assert np.abs(rows).max() == pytest.approx(theirs.abs().max().item(), rel=0.01)
    assert rows.std() == pytest.approx(theirs.std().item(), rel=0.03)


def test_modules_and_seeds_draw_different_rows() -> None:
    rows = [fresh_rows(2, 8, seed=seed, key=key).tobytes() for seed in (0, 1) for key in ("a", "b")]
    assert len(set(rows)) == 4


@pytest.mark.parametrize(("rank", "alpha", "shapes"), [(0, 8, SMALL_SHAPES), (4, -1, SMALL_SHAPES), (4, 8, {})])
def test_an_adapter_that_cannot_be_is_refused(
    rank: int, alpha: float, shapes: dict[ModulePath, tuple[int, int]]
) -> None:
    with pytest.raises(AdapterError, match="no adapter has"):
        initial_adapter(shapes, rank=rank, alpha=alpha, seed=0, base_sha256="ab" * 32)
