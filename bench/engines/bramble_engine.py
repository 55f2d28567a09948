"""This project's engine, through its own door: a train job in a worker process, as the daemon starts it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from agent.training.job import Progress, TrainJob
from agent.training.process import run_worker
from engines.run import ALPHA, GRAD_CLIP, PEAK_LEARNING_RATE, RANK, SEED, TARGETS, Outcome, Run

_NEVER = 1e9


def train(run: Run) -> Outcome:
    """Do all steps; the time of a step is from one progress event to the next.

    Raises:
        RuntimeError: the worker did not report every step.
        BrambleError: what the worker reports.
    """
    ends: dict[int, float] = {}
    losses: dict[int, float] = {}

    def on_progress(progress: Progress) -> None:
        if progress.phase == "train" and progress.step and progress.step not in ends:
            ends[progress.step] = time.perf_counter()
            losses[progress.step] = float("nan") if progress.loss is None else progress.loss

    with tempfile.TemporaryDirectory(prefix="bramble-bench-") as folder:
        job = _job(run, Path(folder))
        result = asyncio.run(run_worker(job, on_progress=on_progress))
    if sorted(ends) != list(range(1, run.steps + 1)):
        raise RuntimeError(f"the worker reported the steps {sorted(ends)} of {run.steps}")
    return Outcome(
        step_seconds=[ends[step + 1] - ends[step] for step in range(1, run.steps)],
        whole_seconds=result.seconds,
        losses=[losses[step] for step in sorted(losses)],
        peak_mb=result.peak_rss_mb,
        compute=result.compute,
        adapter_type="float32",
    )


def _job(run: Run, folder: Path) -> TrainJob:
    """Write the job; checkpoints on disk are left out, because the peer keeps none either."""
    return TrainJob(
        base_path=run.model,
        base_sha256=run.sha256,
        windows_path=run.windows,
        start_adapter=run.adapter,
        rank=RANK,
        alpha=ALPHA,
        target_modules=TARGETS,
        steps=run.steps,
        batch_size=run.batch,
        micro_batch=run.micro_batch,
        checkpointing=run.checkpointing,
        last_layers=run.last_layers,
        trunk_cache=run.trunk_cache,
        learning_rate=PEAK_LEARNING_RATE,
        grad_clip=GRAD_CLIP,
        seed=SEED,
        threads=run.threads,
        compute=run.compute,
        checkpoint_dir=folder / "checkpoint",
        checkpoint_seconds=_NEVER,
        out_dir=folder / "out",
    )
