"""What a checkpoint brings back, whose it is, and what a full disk does to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agent.errors import DiskFullError
from agent.training.checkpoint import FILE_NAME, Memory, Standing, fingerprint, load_checkpoint, save_checkpoint
from agent.training.job import TrainJob
from tests.models import windows

MakeJob = Callable[..., TrainJob]
STANDING = Standing(
    losses=(2.5, 0.1 + 0.2), updates=1, tokens=77, compute="bfloat16", heldout=((0, 3.5), (2, 1 / 3)), windows=3, nats=9
)


def some_memory(count: int = 12) -> Memory:
    """Give as many parameters as have two digits, so that their order shows."""
    torch.manual_seed(3)
    values = [torch.randn(2, place + 1) for place in range(count)]
    return Memory(
        values=values,
        moments=[{"exp_avg": torch.randn_like(v), "exp_avg_sq": torch.randn_like(v)} for v in values],
        gradients=[torch.randn_like(v) for v in values],
        best=[torch.randn_like(v) for v in values],
    )


def assert_same(found: Memory, expected: Memory) -> None:
    for name in ("values", "gradients", "best"):
        for one, other in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert torch.equal(one, other)
    for one, other in zip(found.moments, expected.moments, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    memory = some_memory()
    save_checkpoint(tmp_path / "new" / "folder", "f", STANDING, memory)
    found = load_checkpoint(tmp_path / "new" / "folder", "f")
    assert found is not None
    assert found[0] == STANDING
    assert_same(found[1], memory)


def test_between_steps_there_are_no_gradients_and_without_heldout_windows_no_best_adapter(tmp_path: Path) -> None:
    whole = some_memory()
    save_checkpoint(tmp_path, "f", STANDING, Memory(values=whole.values, moments=whole.moments))
    found = load_checkpoint(tmp_path, "f")
    assert found is not None
    assert_same(found[1], Memory(values=whole.values, moments=whole.moments))


def test_only_the_latest_is_kept(tmp_path: Path) -> None:
    for count in (3, 2):
        save_checkpoint(tmp_path, "f", STANDING, some_memory(count))
    found = load_checkpoint(tmp_path, "f")
    assert found is not None
    assert_same(found[1], some_memory(2))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_none_is_found_where_there_is_none_or_one_of_another_job(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "missing", "f") is None
    save_checkpoint(tmp_path, "f", STANDING, some_memory())
    assert load_checkpoint(tmp_path, "g") is None


@pytest.mark.parametrize("length", [0, 4, 100, 1000, -1])
def test_a_cut_one_is_none(tmp_path: Path, length: int) -> None:
    save_checkpoint(tmp_path, "f", STANDING, some_memory())
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:length])
    assert load_checkpoint(tmp_path, "f") is None


def test_what_a_job_learns_from_has_a_name_by_content(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    copy = tmp_path / "elsewhere.npz"
    copy.write_bytes(job.windows_path.read_bytes())
    heldout = windows(tmp_path / "heldout.npz", count=3, length=48)
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"one")
    alike = [
        make_job(windows_path=copy),
        make_job(threads=2),
        make_job(compute="bfloat16"),
        make_job(checkpoint_seconds=1.0),
        make_job(out_dir=tmp_path / "other", checkpoint_dir=tmp_path / "another"),
    ]
    assert {fingerprint(other) for other in alike} == {fingerprint(job)}
    others = [
        make_job(seed=1),
        make_job(micro_batch=2),
        make_job(last_layers=1),
        make_job(trunk_cache=True),
        make_job(rslora=True),
        make_job(heldout_path=heldout),
        make_job(start_adapter=start),
        make_job(windows_path=windows(tmp_path / "w.npz", count=12, length=48, seed=1)),
    ]
    names = {fingerprint(other) for other in others}
    assert len(names | {fingerprint(job)}) == len(others) + 1
    before = fingerprint(make_job(start_adapter=start))
    start.write_bytes(b"two")
    assert fingerprint(make_job(start_adapter=start)) != before


def test_a_full_disk_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, "f", STANDING, some_memory(3))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError) as caught:
            save_checkpoint(tmp_path, "f", STANDING, some_memory(4))
    assert "space" in caught.value.advice
    found = load_checkpoint(tmp_path, "f")
    assert found is not None
    assert_same(found[1], some_memory(3))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME], "nothing half written is left behind"


def test_a_folder_that_cannot_be_made_for_lack_of_room_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DiskFullError):
        save_checkpoint(tmp_path / "new", "f", STANDING, some_memory(1))
