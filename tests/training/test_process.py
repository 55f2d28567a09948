from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import BaseMismatchError, NoTextError, TrainingPausedError, UnreadableModelError, WorkerCrashedError
from agent.training.checkpoint import FILE_NAME
from agent.training.job import (
    EVENT,
    PAUSED_STATUS,
    ErrorEvent,
    EvaluateJob,
    PausedEvent,
    PrepareJob,
    Progress,
    ResultEvent,
    TrainJob,
    Variant,
)
from agent.training.leaving import Leaving
from agent.training.process import run_worker
from agent.training.trainer import train
from agent.training.windows_file import read_windows

MakeJob = Callable[..., TrainJob]
LONG = {"steps": 100_000, "checkpoint_seconds": 0.0}


def evaluate_job(make_job: MakeJob, **changes: object) -> EvaluateJob:
    job = make_job()
    given = {"base_path": job.base_path, "windows_path": job.windows_path, "variants": (Variant(name="base"),)}
    return EvaluateJob.model_validate(given | changes)


async def test_a_worker_evaluates_and_reports_its_progress(make_job: MakeJob) -> None:
    seen: list[Progress] = []
    pids: list[int] = []
    result = await run_worker(evaluate_job(make_job), on_progress=seen.append, on_start=pids.append)
    assert 4 < result.losses["base"] < 12
    assert result.targets == 12 * 47
    assert seen[-1].step == seen[-1].steps == 12
    assert 10 < result.peak_rss_mb < 200, "torch has no place in this worker"
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_a_worker_prepares_windows_by_the_tokenizer_of_the_base(tiny_q8: Path, tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for number in range(40):
        words = " ".join(f"word{number * 31 + place} and the other" for place in range(60))
        (source / f"{number}.txt").write_text(f"Chapter {number}. {words}.")
    (source / "noise.bin").write_bytes(bytes(range(256)) * 20)
    job = PrepareJob(base_path=tiny_q8, sources=(source,), out_dir=tmp_path / "out", window=64)
    result = await run_worker(job)
    train_windows = read_windows(result.train_path, n_vocab=320)
    assert train_windows.tokens.shape == (result.train_windows, 64)
    assert read_windows(result.heldout_path, n_vocab=320).tokens.shape == (result.heldout_windows, 64)
    assert result.documents == 40
    assert result.skipped[0][0].endswith("noise.bin")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(NoTextError) as caught:
        await run_worker(job.model_copy(update={"sources": (empty,)}))
    assert caught.value.advice


async def test_an_error_in_the_worker_is_raised_here_as_what_it_was(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(UnreadableModelError, match=r"missing\.gguf") as caught:
        await run_worker(evaluate_job(make_job, base_path=tmp_path / "missing.gguf"))
    assert "path" in caught.value.advice


@pytest.mark.slow
async def test_a_killed_worker_is_reported_and_the_same_job_goes_on_from_its_checkpoint(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(steps=8, checkpoint_seconds=0.0)
    pids: list[int] = []

    def kill_at_three(progress: Progress) -> None:
        if progress.phase == "train" and progress.step == 4:
            os.kill(pids[0], signal.SIGKILL)

    with pytest.raises(WorkerCrashedError, match="signal 9") as caught:
        await run_worker(job, on_progress=kill_at_three, on_start=pids.append)
    assert "checkpoint" in caught.value.advice
    result = await run_worker(job)
    assert result.resumed_from >= 3
    assert result.steps == 8
    whole = train(job.model_copy(update={"checkpoint_dir": tmp_path / "other"}), lambda _: None, Leaving())
    assert result.adapter_sha256 == whole.adapter_sha256


@pytest.mark.slow
async def test_a_paused_worker_keeps_a_checkpoint_and_leaves(make_job: MakeJob) -> None:
    job = make_job(**LONG | {"checkpoint_seconds": 1000.0})
    pause = asyncio.Event()

    def pause_early(progress: Progress) -> None:
        if progress.phase == "train":
            pause.set()

    with pytest.raises(TrainingPausedError, match="of 100000"):
        await run_worker(job, on_progress=pause_early, pause=pause)
    assert (job.checkpoint_dir / FILE_NAME).is_file()


@pytest.mark.slow
async def test_cancelling_ends_the_worker(make_job: MakeJob) -> None:
    job = make_job(**LONG)
    pids: list[int] = []
    training = asyncio.Event()

    def note(progress: Progress) -> None:
        if progress.phase == "train":
            training.set()

    task = asyncio.create_task(run_worker(job, on_progress=note, on_start=pids.append))
    await training.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert (job.checkpoint_dir / FILE_NAME).is_file()


async def test_a_pause_that_came_first_is_a_pause_all_the_same(make_job: MakeJob) -> None:
    pause = asyncio.Event()
    pause.set()
    with pytest.raises(TrainingPausedError, match="at step 0"):
        await run_worker(make_job(), pause=pause)


async def test_a_worker_that_does_not_leave_is_killed(make_job: MakeJob) -> None:
    pids: list[int] = []
    pause = asyncio.Event()

    def stop(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, signal.SIGSTOP)
        pause.set()

    with pytest.raises(WorkerCrashedError, match="signal 9"):
        await run_worker(evaluate_job(make_job), on_start=stop, pause=pause, grace_seconds=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_a_crash_shows_the_last_words_of_the_worker(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.stderr.write('out of wits\\n')\nraise SystemExit(9)\n")
    with pytest.raises(WorkerCrashedError, match="out of wits"):
        await run_worker(evaluate_job(make_job), environment={"PYTHONPATH": str(tmp_path)})


def worker(job: str, *, stdin: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent.training.worker", job],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_job_file_is_done_from_a_terminal_and_output_is_json_lines_alone(make_job: MakeJob, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(evaluate_job(make_job).model_dump_json())
    with worker(str(path), stdin=subprocess.DEVNULL) as process:
        out, err = process.communicate()
    assert process.returncode == 0
    assert err == ""
    events = [EVENT.validate_json(line) for line in out.splitlines()]
    assert isinstance(events[-1], ResultEvent)


def test_the_exit_status_is_that_of_the_error(make_job: MakeJob, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    cases = {
        "not json": 80,
        evaluate_job(make_job, base_path=tmp_path / "no.gguf").model_dump_json(): UnreadableModelError.exit_status,
    }
    for text, status in cases.items():
        path.write_text(text)
        with worker(str(path), stdin=subprocess.DEVNULL) as process:
            out, _ = process.communicate()
        assert process.returncode == status
        assert isinstance(EVENT.validate_json(out.splitlines()[-1]), ErrorEvent)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["signal", "parent"])
def test_a_signal_or_the_end_of_the_parent_makes_it_keep_a_checkpoint_and_leave(make_job: MakeJob, how: str) -> None:
    job = make_job(**LONG | {"checkpoint_seconds": 1000.0})
    with worker("-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(job.model_dump_json() + "\n")
        process.stdin.flush()
        for line in process.stdout:
            if '"phase":"train"' in line:
                break
        if how == "signal":
            process.send_signal(signal.SIGTERM)
        else:
            process.stdin.close()  # what the system does when the parent is no more
        last = list(process.stdout)[-1]
        assert isinstance(EVENT.validate_json(last), PausedEvent)
        assert process.wait() == PAUSED_STATUS
    assert (job.checkpoint_dir / FILE_NAME).is_file()


async def test_a_wrong_base_is_refused_before_anything_is_trained(make_job: MakeJob, tiny_f32: Path) -> None:
    seen: list[Progress] = []
    with pytest.raises(BaseMismatchError):
        await run_worker(make_job(base_path=tiny_f32), on_progress=seen.append)
    assert {progress.phase for progress in seen} == {"load"}
