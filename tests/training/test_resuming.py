"""Training that was left, by a wish, for a full disk or at its end, and is taken up again."""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent.errors import (
    DiskFullError,
    TrainingPausedError,
)
from agent.training.checkpoint import FILE_NAME
from agent.training.decoder import Decoder, Pass
from agent.training.job import (
    Progress,
    TrainJob,
)
from agent.training.leaving import Leaving
from agent.training.trainer import train
from tests.models import windows
from tests.training.leavers import LeaveAfter, LeaveInside, ignore, looks_of, masked_windows

MakeJob = Callable[..., TrainJob]


def test_paused_training_goes_on_to_the_very_same_adapter(make_job: MakeJob, tmp_path: Path) -> None:
    whole = train(make_job(checkpoint_dir=tmp_path / "other"), ignore, Leaving())
    job = make_job()
    leaving = LeaveAfter(2)
    with pytest.raises(TrainingPausedError, match="step 2 of 6"):
        train(job, leaving.watch, leaving)
    again = LeaveAfter(4)
    with pytest.raises(TrainingPausedError, match="step 4 of 6"):
        train(job, again.watch, again)
    seen: list[Progress] = []
    resumed = train(job, seen.append, Leaving())
    assert resumed.resumed_from == 4
    assert [p.step for p in seen if p.phase == "train"] == [5, 6]
    assert resumed.adapter_sha256 == whole.adapter_sha256
    assert (resumed.first_loss, resumed.tokens) == (whole.first_loss, whole.tokens)


VARIANTS: dict[str, dict[str, object]] = {
    "at once": {},
    "several passes": {"micro_batch": 3},
    "computed again": {"micro_batch": 2, "checkpointing": True},
    "last layers": {"last_layers": 1},
    "trunk cache": {"last_layers": 1, "trunk_cache": True, "micro_batch": 1},
    "held out": {"micro_batch": 2, "heldout_path": "heldout", "evaluate_every": 1, "max_heldout_windows": 3},
    "bfloat16": {"compute": "bfloat16", "micro_batch": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_left_in_its_middle_and_taken_up_again(make_job: MakeJob, tmp_path: Path, variant: str) -> None:
    changes = dict(VARIANTS[variant])
    if "heldout_path" in changes:
        changes["heldout_path"] = windows(tmp_path / "heldout.npz", count=4, length=40, seed=0)
    make = functools.partial(make_job, steps=3, **changes)
    last = looks_of(make(checkpoint_dir=tmp_path / "counted"))
    whole = train(make(checkpoint_dir=tmp_path / "counted"), ignore, Leaving())
    for number, looks in enumerate(np.linspace(2, last, 5, dtype=int).tolist()):
        job = make(checkpoint_dir=tmp_path / f"{number}")
        with pytest.raises(TrainingPausedError):
            train(job, ignore, LeaveInside(looks))
        resumed = train(job, ignore, Leaving())
        assert resumed.adapter_sha256 == whole.adapter_sha256
        assert (resumed.losses, resumed.heldout, resumed.tokens) == (whole.losses, whole.heldout, whole.tokens)


def test_passes_of_an_interrupted_step_are_not_done_twice(make_job: MakeJob) -> None:
    job = make_job(steps=1, micro_batch=1)
    passes = []
    loss = Decoder.loss

    def counting(model: Decoder, given: Pass, **named: Any) -> torch.Tensor:
        passes.append(given)
        return loss(model, given, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Decoder, "loss", counting)
        with pytest.raises(TrainingPausedError):
            train(job, ignore, LeaveInside(45))
        begun = len(passes)
        train(job, ignore, Leaving())
    assert 2 <= begun <= 4
    assert len(passes) == 4 + 1, "only the pass that was left in its middle is done again"


def test_a_step_in_which_nothing_counts_changes_nothing_and_is_remembered_as_such(
    make_job: MakeJob, tmp_path: Path
) -> None:
    path = masked_windows(tmp_path / "masked.npz", counting=[1, 0, 0, 1, 0, 0.1])
    make = functools.partial(make_job, windows_path=path, batch_size=1, steps=12, weight_decay=0.1)
    whole = train(make(checkpoint_dir=tmp_path / "whole"), ignore, Leaving())
    assert whole.losses.count(0.0) == 6
    for step in (1, 4, 5, 7):
        job = make(checkpoint_dir=tmp_path / f"{step}")
        leaving = LeaveAfter(step)
        with pytest.raises(TrainingPausedError):
            train(job, leaving.watch, leaving)
        assert train(job, ignore, Leaving()).adapter_sha256 == whole.adapter_sha256


def test_a_pass_that_is_left_takes_no_longer_than_a_part_of_the_step(make_job: MakeJob, tmp_path: Path) -> None:
    path = windows(tmp_path / "long.npz", count=8, length=257)
    job = make_job(windows_path=path, batch_size=8, steps=1)
    spent = []

    class Clocked(LeaveInside):
        def check(self) -> None:
            if self.looks + 1 == self.last:
                spent.append(time.thread_time())
            super().check()

    began = time.thread_time()
    looks = looks_of(job.model_copy(update={"checkpoint_dir": tmp_path / "counted"}))
    whole = time.thread_time() - began
    for at in (looks // 5, looks // 2, looks - 3):
        spent.clear()
        with pytest.raises(TrainingPausedError):
            train(job.model_copy(update={"checkpoint_dir": tmp_path / f"{at}"}), ignore, Clocked(at))
        assert time.thread_time() - spent[0] < max(0.3, whole / 4), "seconds of work from the wish to the checkpoint"


def test_a_finished_job_is_not_trained_again(make_job: MakeJob) -> None:
    first = train(make_job(), ignore, Leaving())
    seen: list[Progress] = []
    again = train(make_job(), seen.append, Leaving())
    assert not [p for p in seen if p.phase == "train"]
    assert again.adapter_sha256 == first.adapter_sha256


def test_a_checkpoint_of_another_job_or_a_damaged_one_is_not_used(make_job: MakeJob) -> None:
    job = make_job()
    train(job, ignore, Leaving())
    for changed in (make_job(seed=3), make_job(learning_rate=1e-3), make_job(rank=2), make_job(steps=7)):
        assert train(changed, ignore, Leaving()).resumed_from == 0
    windows(job.windows_path, count=12, length=48, seed=9)
    assert train(job, ignore, Leaving()).resumed_from == 0
    path = job.checkpoint_dir / FILE_NAME
    path.write_bytes(path.read_bytes()[:1000])
    assert train(job, ignore, Leaving()).resumed_from == 0


def test_a_disk_that_is_full_while_training_loses_nothing(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(make_job(checkpoint_dir=tmp_path / "whole"), ignore, Leaving())
    job = make_job(checkpoint_seconds=0.0, out_dir=tmp_path / "other")
    fsync, files = os.fsync, []

    def full(descriptor: int) -> None:
        files.append(descriptor)
        if len(files) > 6:  # three checkpoints, each a file and its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError) as caught:
            train(job, ignore, Leaving())
    assert "space" in caught.value.advice
    resumed = train(job, ignore, Leaving())
    assert resumed.resumed_from == 3
    assert resumed.adapter_sha256 == whole.adapter_sha256


def test_a_disk_that_is_full_at_the_end_keeps_the_training(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job()

    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("agent.training.trainer.write_peft", full)
        with pytest.raises(DiskFullError):
            train(job, ignore, Leaving())
    seen: list[Progress] = []
    result = train(job, seen.append, Leaving())
    assert not [p for p in seen if p.phase == "train"]
    assert result.adapter_path.is_file()


def test_the_arithmetic_that_training_began_with_is_kept(make_job: MakeJob) -> None:
    leaving = LeaveAfter(2)
    with pytest.raises(TrainingPausedError):
        train(make_job(compute="bfloat16"), leaving.watch, leaving)
    assert train(make_job(compute="float32"), ignore, Leaving()).compute == "bfloat16"
