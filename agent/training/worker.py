"""The worker process: ``python -m agent.training.worker JOBFILE``.

It does one job and ends, so that everything heavy (torch, llama.cpp) is gone when the work is done. JOBFILE holds a
job as JSON; with ``-`` the job is the first line of standard input, and the worker leaves when standard input ends,
which is how it ends with its parent. Standard output carries one JSON object a line: ``progress`` events, then
``result``, ``error`` or ``paused``. The exit status is 0, that of the error, or 75 for paused.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from agent.errors import BrambleError, DiskFullError, TrainingError, TrainingPausedError
from agent.training.job import (
    JOB,
    PAUSED_STATUS,
    ErrorEvent,
    EvaluateJob,
    Event,
    Job,
    MeasureJob,
    PausedEvent,
    PlanJob,
    PrepareJob,
    Progress,
    ProgressEvent,
    Result,
    ResultEvent,
    TrainJob,
)
from agent.training.leaving import Leaving

MAX_JOB_BYTES = 1 << 20

_SPINS = 3000
"""Turns that a thread waits for the others before it sleeps: about 60 microseconds.

The threads of one step meet some thousand times, and waking one that sleeps takes as long as most of what they do in
between. Spinning for longer gains nothing more on an idle machine, and costs much beside a program that takes one of
the cores: then a thread spins in the place of the one that it waits for. At the lowest priority it gives way to that
program itself.
"""


def main(arguments: list[str] | None = None) -> int:
    """Do the job that the command line names, and give the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m agent.training.worker JOBFILE\n")
        return 2
    emit = _take_stdout()
    leaving = Leaving()
    leaving.on_signals()
    latest = Progress(phase="load")

    def on_progress(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        emit(ProgressEvent(**progress.model_dump()))

    try:
        job = _read_job(arguments[0], leaving)
        _settle(job.threads)
        emit(ResultEvent(result=_do(job, on_progress, leaving)))
    except TrainingPausedError:
        emit(PausedEvent(step=latest.step, steps=latest.steps))
        return PAUSED_STATUS
    except BrambleError as error:
        emit(ErrorEvent(code=error.code, message=error.message, advice=error.advice))
        return error.exit_status
    except OSError as cause:
        if cause.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        full = DiskFullError(
            f"no room on the disk for {cause.filename or 'a file'}",
            advice="Free some space on this disk; the work goes on from its last checkpoint.",
        )
        emit(ErrorEvent(code=full.code, message=full.message, advice=full.advice))
        return full.exit_status
    return 0


def _take_stdout() -> Callable[[Event], None]:
    """Keep standard output for events: whatever else prints there, in Python or in C, goes to standard error."""
    sys.stdout.flush()
    own: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: Event) -> None:
        own.write(event.model_dump_json() + "\n")
        own.flush()

    return emit


def _read_job(where: str, leaving: Leaving) -> Job:
    """Read the job from a file, or from the parent."""
    if where == "-":
        with open(0, "rb", buffering=0, closefd=False) as parent:
            text = parent.readline(MAX_JOB_BYTES)
        leaving.with_parent()
    else:
        try:
            text = Path(where).read_bytes()
        except OSError as cause:
            raise TrainingError(
                f"cannot read the job {where}: {cause.strerror}", advice="Give the path of a job in JSON."
            ) from cause
    try:
        return JOB.validate_json(text)
    except ValidationError as cause:
        raise TrainingError(f"this is no job: {cause}", advice="Write the job with agent.training.job.") from cause


def _settle(threads: int) -> None:
    """Take the lowest priority, the agreed threads and their way to wait, before anything heavy is imported."""
    if hasattr(os, "nice"):
        os.nice(19)
    os.environ.update(
        {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # for other libraries than GNU's, which would spin for 200 milliseconds
            "GOMP_SPINCOUNT": str(_SPINS),
        }
    )


def _do(job: Job, on_progress: Callable[[Progress], None], leaving: Leaving) -> Result:
    """Import what this kind of job needs, and nothing more, then do it."""
    match job:
        case PrepareJob():
            from agent.training.prepare import prepare  # noqa: PLC0415 - torch stays out of this process

            return prepare(job, on_progress, leaving)
        case PlanJob():
            from agent.training.plan import plan  # noqa: PLC0415 - seconds of imports

            return plan(job, on_progress, leaving)
        case EvaluateJob():
            from agent.training.evaluate import evaluate  # noqa: PLC0415 - torch stays out of this process

            return evaluate(job, on_progress, leaving)
        case MeasureJob():
            from agent.training.measure import measure  # noqa: PLC0415 - seconds of imports

            return measure(job, on_progress, leaving)
        case TrainJob():
            from agent.training.trainer import train  # noqa: PLC0415 - only what this kind of job needs

            return train(job, on_progress, leaving)


if __name__ == "__main__":
    sys.exit(main())
