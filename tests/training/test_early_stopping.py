"""Held-out windows: when training stops by them, and which adapter it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.data.packing import WindowSet
from agent.errors import (
    TrainingPausedError,
)
from agent.training.job import (
    MeasureJob,
    MeasureVariant,
    Progress,
    TrainJob,
)
from agent.training.leaving import Leaving
from agent.training.measure import measure
from agent.training.trainer import train
from agent.training.windows_file import write_windows
from tests.training.leavers import LeaveAfter, ignore

MakeJob = Callable[..., TrainJob]


def early(make_job: MakeJob, tmp_path: Path, **changes: Any) -> TrainJob:
    """Give a job that learns by heart what does not help with other text."""
    rng = np.random.default_rng(0)
    few = rng.integers(0, 300, (2, 33)).astype(np.uint32)
    others = np.concatenate([few[:, :16], rng.integers(0, 300, (2, 17)).astype(np.uint32)], axis=1)
    write_windows(tmp_path / "few.npz", WindowSet.plain(few))
    write_windows(tmp_path / "heldout.npz", WindowSet.plain(others))
    given = {
        "windows_path": tmp_path / "few.npz",
        "batch_size": 2,
        "steps": 30,
        "learning_rate": 8e-3,
        "heldout_path": tmp_path / "heldout.npz",
        "evaluate_every": 2,
        "patience": 2,
    }
    return make_job(**(given | changes))


def test_training_stops_where_the_heldout_loss_falls_no_more_and_keeps_the_best_adapter(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = early(make_job, tmp_path)
    seen: list[Progress] = []
    result = train(job, seen.append, Leaving())
    assert result.stopped_early
    steps, losses = zip(*result.heldout, strict=True)
    assert steps == tuple(range(0, result.steps + 1, 2))
    best = losses.index(min(losses))
    assert 0 < best < len(losses) - 1, "the lowest is neither the first nor the last"
    assert result.best_step == steps[best]
    assert result.steps == result.best_step + 2 * 2
    assert result.steps == len(result.losses) < job.steps
    assert [(p.step, p.loss) for p in seen if p.phase == "evaluate"] == list(result.heldout)
    assert job.heldout_path is not None
    found = measure(
        MeasureJob(
            base_path=job.base_path,
            windows_path=job.heldout_path,
            variants=(MeasureVariant(name="base"), MeasureVariant(name="kept", adapter=result.adapter_path)),
        ),
        ignore,
        Leaving(),
    ).losses
    assert found["base"] == pytest.approx(losses[0], rel=1e-6)
    assert found["kept"] == pytest.approx(losses[best], rel=1e-6)
    again = train(job, seen.append, Leaving())
    assert (again.adapter_sha256, again.heldout, again.steps) == (result.adapter_sha256, result.heldout, result.steps)
    assert again.stopped_early


@pytest.mark.parametrize(("step", "phase"), [(0, "evaluate"), (4, "train"), (6, "evaluate"), (9, "train")])
def test_early_stopping_goes_on_after_a_pause_as_if_nothing_had_been(
    make_job: MakeJob, tmp_path: Path, step: int, phase: str
) -> None:
    whole = train(early(make_job, tmp_path, checkpoint_dir=tmp_path / "whole"), ignore, Leaving())
    job = early(make_job, tmp_path)
    leaving = LeaveAfter(step, phase)
    with pytest.raises(TrainingPausedError):
        train(job, leaving.watch, leaving)
    resumed = train(job, ignore, Leaving())
    assert resumed.resumed_from == step
    assert resumed.adapter_sha256 == whole.adapter_sha256
    assert (resumed.heldout, resumed.best_step, resumed.steps) == (whole.heldout, whole.best_step, whole.steps)


def test_without_patience_running_out_all_steps_are_done_and_the_last_is_looked_at(
    make_job: MakeJob, tmp_path: Path
) -> None:
    result = train(early(make_job, tmp_path, steps=5, patience=9), ignore, Leaving())
    assert not result.stopped_early
    assert [step for step, _ in result.heldout] == [0, 2, 4, 5]


def test_only_so_many_heldout_windows_are_looked_at(make_job: MakeJob, tmp_path: Path) -> None:
    looks = {}
    for most in (1, 2, 9):
        job = early(make_job, tmp_path, steps=1, max_heldout_windows=most, micro_batch=1)
        looks[most] = train(job, ignore, Leaving()).heldout[0]
    assert looks[1] != looks[2] == looks[9]
