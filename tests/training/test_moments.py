"""What an optimiser hands on to the next training, and when that one does not take it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.errors import TrainingPausedError
from agent.llm.adapter import Adapter, read_adapter
from agent.training.job import TrainJob, TrainResult
from agent.training.leaving import Leaving
from agent.training.moments import FILE_NAME, NAMES, read_moments, write_moments
from agent.training.trainer import train
from tests.models import windows
from tests.training.leavers import LeaveAfter, ignore

MakeJob = Callable[..., TrainJob]


def trained(job: TrainJob) -> TrainResult:
    return train(job, ignore, Leaving())


def numbers(adapter: Adapter) -> np.ndarray:
    return np.concatenate([side.ravel() for each in adapter.modules.values() for side in (each.a, each.b)])


def adapter_of(result: TrainResult) -> Adapter:
    return read_adapter(result.adapter_path)


@pytest.fixture
def make(make_job: MakeJob, tmp_path: Path) -> MakeJob:
    """Make jobs that all see the same windows in every step, so that the order does not tell them apart."""
    path = windows(tmp_path / "same.npz", count=4, length=32)
    return functools.partial(make_job, windows_path=path, batch_size=4, schedule="constant", keep_moments=True)


def test_two_trainings_that_hand_moments_on_are_one(make: MakeJob, tmp_path: Path) -> None:
    whole = trained(make(steps=6, out_dir=tmp_path / "whole", checkpoint_dir=tmp_path / "c0"))
    first = trained(make(steps=3, out_dir=tmp_path / "first", checkpoint_dir=tmp_path / "c1"))
    second = trained(
        make(
            steps=3,
            start_adapter=first.adapter_path,
            start_moments=first.moments_path,
            warmup_steps=2,  # which is for those who begin without
            out_dir=tmp_path / "second",
            checkpoint_dir=tmp_path / "c2",
        )
    )
    np.testing.assert_allclose(numbers(adapter_of(second)), numbers(adapter_of(whole)), atol=1e-6)
    assert second.losses == pytest.approx(whole.losses[3:], abs=1e-5)


def test_without_them_the_second_training_is_another_one(make: MakeJob, tmp_path: Path) -> None:
    first = trained(make(steps=3, out_dir=tmp_path / "first", checkpoint_dir=tmp_path / "c1"))
    again = functools.partial(make, steps=3, start_adapter=first.adapter_path)
    with_them = trained(
        again(start_moments=first.moments_path, out_dir=tmp_path / "with", checkpoint_dir=tmp_path / "c2")
    )
    without = trained(again(out_dir=tmp_path / "without", checkpoint_dir=tmp_path / "c3"))
    apart = numbers(adapter_of(with_them)) - numbers(adapter_of(without))
    assert np.abs(apart).max() > 1e-3


def test_a_training_with_moments_that_is_left_ends_with_the_same_adapter_and_moments(
    make: MakeJob, tmp_path: Path
) -> None:
    first = trained(make(steps=3, out_dir=tmp_path / "first", checkpoint_dir=tmp_path / "c1"))
    again = functools.partial(make, steps=4, start_adapter=first.adapter_path, start_moments=first.moments_path)
    whole = trained(again(out_dir=tmp_path / "whole", checkpoint_dir=tmp_path / "c2"))
    leaving = LeaveAfter(2)
    job = again(out_dir=tmp_path / "left", checkpoint_dir=tmp_path / "c3")
    with pytest.raises(TrainingPausedError):
        train(job, leaving.watch, leaving)
    resumed = trained(job)
    assert resumed.resumed_from == 2
    assert resumed.adapter_sha256 == whole.adapter_sha256
    assert resumed.moments_path is not None
    assert whole.moments_path is not None
    assert resumed.moments_path.read_bytes() == whole.moments_path.read_bytes()


def test_other_moments_make_another_job_of_it(make: MakeJob, tmp_path: Path) -> None:
    """A checkpoint that began with other moments is none of this job's."""
    first = trained(make(steps=3, out_dir=tmp_path / "first", checkpoint_dir=tmp_path / "c1"))
    leaving = LeaveAfter(1)
    with pytest.raises(TrainingPausedError):
        train(make(steps=3, start_adapter=first.adapter_path), leaving.watch, leaving)
    resumed = trained(make(steps=3, start_adapter=first.adapter_path, start_moments=first.moments_path))
    assert resumed.resumed_from == 0


def test_a_training_that_is_not_asked_for_moments_writes_none(make: MakeJob, tmp_path: Path) -> None:
    result = trained(make(keep_moments=False))
    assert result.moments_path is None
    assert not (tmp_path / "out" / FILE_NAME).exists()


PARAMETERS = [torch.zeros(4, 6), torch.zeros(5, 4)]


def some_moments() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{NAMES[0]: torch.randn_like(each), NAMES[1]: torch.rand_like(each)} for each in PARAMETERS]


def test_they_come_back_bit_for_bit(make: MakeJob, tmp_path: Path) -> None:
    write_moments(tmp_path / FILE_NAME, make(), 7, some_moments())
    found = read_moments(tmp_path / FILE_NAME, make(steps=1, learning_rate=1e-4), PARAMETERS)
    assert found is not None
    assert found[0] == 7
    for one, other in zip(found[1], some_moments(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in NAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"base_sha256": "0" * 64},
        {"rank": 8},
        {"alpha": 4.0},
        {"target_modules": ("q_proj",)},
        {"last_layers": 1},
        {"factors": "b"},
    ],
)
def test_those_of_other_parameters_are_not_gone_on_with(
    make: MakeJob, tmp_path: Path, change: dict[str, object]
) -> None:
    write_moments(tmp_path / FILE_NAME, make(), 7, some_moments())
    assert read_moments(tmp_path / FILE_NAME, make(**change), PARAMETERS) is None


def test_damaged_ones_are_not_gone_on_with(make: MakeJob, tmp_path: Path) -> None:
    path, job = tmp_path / FILE_NAME, make()
    assert read_moments(path, job, PARAMETERS) is None
    write_moments(path, job, 7, some_moments())
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert read_moments(path, job, PARAMETERS) is None
    for name, value in ((NAMES[0], torch.nan), (NAMES[1], -1.0)):
        spoilt = some_moments()
        spoilt[1][name][2, 1] = value
        write_moments(path, job, 7, spoilt)
        assert read_moments(path, job, PARAMETERS) is None
    write_moments(path, job, 7, some_moments()[:1])
    assert read_moments(path, job, PARAMETERS) is None
    write_moments(path, job, 7, some_moments())
    assert read_moments(path, job, [torch.zeros(4, 6), torch.zeros(4, 5)]) is None
