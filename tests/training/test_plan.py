from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.data.packing import WindowSet
from agent.errors import AdapterError, DataError
from agent.llm.gguf_file import open_gguf
from agent.llm.seedling import SEEDLING_PATH, SEEDLING_SHA256
from agent.training import plan as plan_module
from agent.training.footprint import MIB, Shape, footprint
from agent.training.job import PlanJob, PlanResult, TrainJob
from agent.training.leaving import Leaving
from agent.training.plan import plan
from agent.training.process import run_worker
from agent.training.windows_file import write_windows

NAMES = ("q_proj", "down_proj")


def windows(path: Path, count: int, length: int, vocab: int = 300) -> Path:
    tokens = np.random.default_rng(0).integers(0, vocab, (count, length), dtype=np.uint32)
    write_windows(path, WindowSet.plain(tokens))
    return path


@pytest.fixture
def planned(tiny_q8: Path, tmp_path: Path) -> Callable[..., PlanResult]:
    """Plan trainings on the tiny base: 24 windows of 65 tokens, 8 a step."""
    where = windows(tmp_path / "windows.npz", 24, 65)

    def make(**changes: Any) -> PlanResult:
        given: dict[str, Any] = {"base_path": tiny_q8, "windows_path": where, "batch_size": 8, "compute": "float32"}
        return plan(PlanJob(**(given | changes)), lambda _: None, Leaving())

    return make


def test_a_plan_counts_what_will_be_done(planned: Callable[..., PlanResult]) -> None:
    found = planned(epochs=2.0, target_modules=NAMES, rank=4)
    assert (found.windows, found.window, found.steps, found.epochs) == (24, 65, 6, 2.0)
    assert found.tokens == 6 * 8 * 64
    assert found.parameters == 2 * 4 * ((256 + 256) + (256 + 512))
    assert found.accumulation * found.micro_batch >= 8
    assert found.fits
    assert found.seconds > found.step_seconds * 6 * 0.99
    assert found.reasons
    assert not found.instead
    assert planned(steps=5).steps == 5


def test_less_memory_means_fewer_windows_at_a_time_then_computing_again(
    planned: Callable[..., PlanResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "present_mb", lambda: 100.0)
    sizes = {
        (micro, again): planned(micro_batch=micro, checkpointing=again).peak_mb
        for micro in (8, 1)
        for again in (False, True)
    }
    assert sizes[1, False] < sizes[8, False]
    assert sizes[8, True] < sizes[8, False]
    small = planned(memory_mb=int(plan_module.MARGIN * sizes[1, False]) + 1)
    assert small.fits
    assert small.peak_mb <= small.memory_mb
    assert small.micro_batch < 8 or small.checkpointing


def test_what_does_not_fit_is_said_with_what_would_have_to_give(planned: Callable[..., PlanResult]) -> None:
    found = planned(memory_mb=20)
    assert not found.fits
    assert found.peak_mb > 20
    assert any("more memory" in way for way in found.instead)
    assert any("last 1 layers" in way for way in found.instead)


def test_the_trunk_cache_is_taken_where_windows_come_again(planned: Callable[..., PlanResult]) -> None:
    again = planned(last_layers=1, epochs=50.0)
    assert again.trunk_cache
    assert again.disk_mb > 24 * 64 * 256 * 2 / MIB
    assert not planned(last_layers=1, epochs=50.0, disk_mb=0).trunk_cache
    assert not planned(epochs=50.0, trunk_cache=None).trunk_cache  # every layer is changed


def test_what_is_asked_for_is_kept(planned: Callable[..., PlanResult]) -> None:
    found = planned(micro_batch=3, checkpointing=True, compute="bfloat16")
    assert (found.micro_batch, found.accumulation, found.checkpointing, found.compute) == (3, 3, True, "bfloat16")


def test_no_pass_takes_more_windows_than_may_be(planned: Callable[..., PlanResult]) -> None:
    free = planned(max_micro_batch=2)
    assert (free.micro_batch <= 2, planned(max_micro_batch=1).micro_batch) == (True, 1)
    assert planned(max_micro_batch=99).micro_batch <= 8
    assert any("no pass may take more on this machine" in reason for reason in planned(max_micro_batch=1).reasons)


def test_what_is_free_is_planned_with_up_to_a_limit(planned: Callable[..., PlanResult]) -> None:
    assert planned(max_memory_mb=700).memory_mb == 700
    assert planned(max_memory_mb=1 << 30).memory_mb < 1 << 30
    assert planned(max_memory_mb=700, memory_mb=900).memory_mb == 900


def test_a_plan_is_refused_for_what_cannot_be_trained(planned: Callable[..., PlanResult], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="fc1"):
        planned(target_modules=("fc1",))
    tokens = np.zeros((2, 8), dtype=np.uint32)
    nothing = WindowSet(tokens, np.zeros(tokens.shape, dtype=np.bool_), np.zeros(tokens.shape, dtype=np.uint16))
    write_windows(tmp_path / "nothing.npz", nothing)
    with pytest.raises(DataError, match="counts"):
        planned(windows_path=tmp_path / "nothing.npz")


def test_memory_grows_with_rows_layers_and_rank_and_shrinks_with_checkpointing(tiny_q8: Path) -> None:
    base = open_gguf(tiny_q8)
    plain = {"rows": 4096, "length": 512, "itemsize": 4, "rank": 8, "target_modules": NAMES}
    usual = footprint(base, Shape(**plain)).total
    assert footprint(base, Shape(**plain | {"rows": 8192})).total > usual
    assert footprint(base, Shape(**plain | {"rank": 64})).total > usual
    assert footprint(base, Shape(**plain | {"itemsize": 2})).total < usual
    assert footprint(base, Shape(**plain | {"first_layer": 1})).total < usual
    assert footprint(base, Shape(**plain | {"checkpointing": True})).total < usual


@pytest.mark.parametrize(("count", "length", "compute"), [(8, 257, "float32"), (2, 129, "bfloat16")])
async def test_the_peak_is_as_planned(tmp_path: Path, count: int, length: int, compute: str) -> None:
    where = windows(tmp_path / "windows.npz", 8, length, vocab=4000)
    common: dict[str, Any] = {"base_path": SEEDLING_PATH, "windows_path": where, "steps": 4, "compute": compute}
    said = await run_worker(PlanJob(**common, batch_size=count, micro_batch=count, checkpointing=False))
    job = TrainJob(
        **common,
        base_sha256=SEEDLING_SHA256,
        batch_size=count,
        checkpoint_dir=tmp_path / "checkpoint",
        out_dir=tmp_path / "out",
    )
    found = await run_worker(job)
    assert said.peak_mb == pytest.approx(found.peak_rss_mb, rel=0.15)
