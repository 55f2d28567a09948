"""The parent's side of a worker process: start it, hear it, pause it, and turn its end into a result or an error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol, TypedDict, Unpack, overload

from pydantic import ValidationError

from agent.errors import BrambleError, TrainingPausedError, WorkerCrashedError, error_classes
from agent.training.job import (
    EVENT,
    ErrorEvent,
    EvaluateJob,
    EvaluateResult,
    Event,
    Job,
    MeasureJob,
    PausedEvent,
    PlanJob,
    PlanResult,
    PrepareJob,
    PrepareResult,
    Progress,
    ProgressEvent,
    Result,
    ResultEvent,
    TrainJob,
    TrainResult,
)

GRACE_SECONDS = 8.0
STDERR_TAIL_LINES = 40
_LINE_LIMIT = 4 << 20


class WorkerOptions(TypedDict, total=False):
    """What may be said beside a job; :func:`run_worker` has the meaning of each."""

    on_progress: Callable[[Progress], None] | None
    pause: asyncio.Event | None
    grace_seconds: float
    environment: Mapping[str, str] | None
    on_start: Callable[[int], None] | None


class Workers(Protocol):
    """Whatever does jobs: :func:`run_worker`, or what stands in for it where nothing is to be trained."""

    @overload
    async def __call__(self, job: TrainJob, **options: Unpack[WorkerOptions]) -> TrainResult: ...
    @overload
    async def __call__(self, job: PrepareJob, **options: Unpack[WorkerOptions]) -> PrepareResult: ...
    @overload
    async def __call__(self, job: PlanJob, **options: Unpack[WorkerOptions]) -> PlanResult: ...
    @overload
    async def __call__(self, job: EvaluateJob | MeasureJob, **options: Unpack[WorkerOptions]) -> EvaluateResult: ...


@overload
async def run_worker(job: TrainJob, **options: Unpack[WorkerOptions]) -> TrainResult: ...
@overload
async def run_worker(job: PrepareJob, **options: Unpack[WorkerOptions]) -> PrepareResult: ...
@overload
async def run_worker(job: PlanJob, **options: Unpack[WorkerOptions]) -> PlanResult: ...
@overload
async def run_worker(job: EvaluateJob | MeasureJob, **options: Unpack[WorkerOptions]) -> EvaluateResult: ...
async def run_worker(
    job: Job,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    pause: asyncio.Event | None = None,
    grace_seconds: float = GRACE_SECONDS,
    environment: Mapping[str, str] | None = None,
    on_start: Callable[[int], None] | None = None,
) -> Result:
    """Do a job in a process of its own. Cancelling the call ends the process, with a checkpoint where it can.

    Args:
        job: what to do.
        on_progress: called with every progress event.
        pause: once set, the worker is asked to keep a checkpoint and leave.
        grace_seconds: how long a worker that was asked to leave may take, before it is killed.
        environment: variables for the worker, over those of this process.
        on_start: called with the worker's process id.

    Raises:
        TrainingPausedError: it left because ``pause`` was set; the same job goes on from there.
        WorkerCrashedError: it ended without a result; its last words are in the message.
        BrambleError: whatever the worker reported, as the class that it was there.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent.training.worker",
        "-",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        limit=_LINE_LIMIT,
    )
    if on_start is not None:
        on_start(process.pid)
    complaints: deque[str] = deque(maxlen=STDERR_TAIL_LINES)
    listener = asyncio.create_task(_hear_complaints(process, complaints), name="worker-stderr")
    pauser = None
    try:
        await _send(process, job)
        pauser = asyncio.create_task(_pause_when_set(process, pause, grace_seconds), name="worker-pause")
        last = await _hear_events(process, on_progress)
        status = await process.wait()
        await listener
    except BaseException:
        await asyncio.shield(_end(process, grace_seconds))
        raise
    finally:
        tasks = [task for task in (pauser, listener) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if process.stdin is not None:
            process.stdin.close()
    return _conclude(job, last, status, complaints)


async def _send(process: asyncio.subprocess.Process, job: Job) -> None:
    """Hand over the job; standard input stays open, because its end tells the worker to leave."""
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(job.model_dump_json().encode() + b"\n")
        await process.stdin.drain()


async def _hear_events(
    process: asyncio.subprocess.Process, on_progress: Callable[[Progress], None] | None
) -> Event | None:
    """Pass progress on until the worker closes its output; give the event that ended it."""
    assert process.stdout is not None
    last: Event | None = None
    async for line in process.stdout:
        try:
            event = EVENT.validate_json(line)
        except ValidationError:
            continue
        if isinstance(event, ProgressEvent):
            if on_progress is not None:
                on_progress(Progress(**event.model_dump(exclude={"event"})))
        else:
            last = event
    return last


async def _hear_complaints(process: asyncio.subprocess.Process, complaints: deque[str]) -> None:
    """Keep the last lines that the worker wrote to standard error."""
    assert process.stderr is not None
    while chunk := await process.stderr.read(65_536):
        complaints.extend(chunk.decode("utf-8", "replace").splitlines())


async def _pause_when_set(
    process: asyncio.subprocess.Process, pause: asyncio.Event | None, grace_seconds: float
) -> None:
    if pause is not None:
        await pause.wait()
        await _end(process, grace_seconds)


async def _end(process: asyncio.subprocess.Process, grace_seconds: float) -> None:
    """Ask the worker to leave by ending its input, which works on every system; kill it where it does not."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), grace_seconds)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _conclude(job: Job, last: Event | None, status: int, complaints: deque[str]) -> Result:
    """Turn the last event and the exit status into a result or an error."""
    if isinstance(last, ResultEvent) and status == 0:
        return last.result
    if isinstance(last, ErrorEvent):
        cls = error_classes().get(last.code, BrambleError)
        raise cls(last.message, advice=last.advice)
    if isinstance(last, PausedEvent):
        raise TrainingPausedError(
            f"the {job.kind} worker paused at step {last.step} of {last.steps}",
            advice="Start the same job again to go on from there.",
        )
    ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    words = "\n".join(complaints)
    raise WorkerCrashedError(
        f"the {job.kind} worker {ended} without a result" + (f"; its last words:\n{words}" if words else ""),
        advice="Start it again: it goes on from its last checkpoint. If it was killed, the machine may lack memory.",
    )
