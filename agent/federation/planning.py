"""Fitting a training into the memory that its owner allows."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

from agent.errors import DoesNotFitError
from agent.federation.once import once
from agent.federation.store import Membership
from agent.federation.text import PreparedText
from agent.governance.charter import Charter
from agent.llm.gguf_file import open_gguf
from agent.settings import DeviceSettings
from agent.training.footprint import MIB, Shape, footprint
from agent.training.job import PlanJob, PlanResult
from agent.training.process import Workers, run_worker

_WORKER_MB = 600
"""More than a worker takes by itself, MiB: half as much has been seen."""


def require_fit(plan: PlanResult) -> PlanResult:
    """Give a plan back where it fits.

    Raises:
        DoesNotFitError: it does not; the advice says what would have to give.
    """
    if plan.fits:
        return plan
    raise DoesNotFitError(
        f"this training needs {plan.peak_mb:,.0f} MiB of memory at least, and may take {plan.memory_mb:,.0f} MiB",
        advice=" ".join(plan.instead) or "Allow more memory, or use a smaller base.",
    )


async def plan_round(
    membership: Membership,
    settings: DeviceSettings,
    text: PreparedText,
    *,
    rank: int,
    directory: Path,
    workers: Workers = run_worker,
    pause: asyncio.Event | None = None,
    on_start: Callable[[int], None] | None = None,
) -> PlanResult | None:
    """Say how a round's training fits into the memory limit; None where there is none, or where it surely fits.

    What surely fits is not measured: that would take some seconds of every round.

    The plan is kept in the round's directory, so that a round that goes on after a crash does so with the same one.

    Raises:
        TrainingPausedError: ``pause`` was set.
        DoesNotFitError: it does not fit, whatever is done.
    """
    if settings.memory_mb is None:
        return None
    charter = membership.charter
    most_mb = await asyncio.to_thread(
        most_memory_mb, membership.base, charter, rank=rank, micro_batch=settings.micro_batch
    )
    if most_mb <= settings.memory_mb:
        return None
    job = PlanJob(
        base_path=membership.base,
        threads=settings.threads,
        windows_path=text.train,
        rank=rank,
        target_modules=charter.target_modules,
        batch_size=charter.training.batch_size,
        steps=charter.training.steps,
        memory_mb=settings.memory_mb,
        compute=settings.compute,
        max_micro_batch=settings.micro_batch,
        trunk_cache=False,
    )
    return require_fit(
        await once(directory / "plan.json", job, PlanResult, lambda: workers(job, pause=pause, on_start=on_start))
    )


def most_memory_mb(base: Path, charter: Charter, *, rank: int, micro_batch: int | None) -> int:
    """Give more than a round's training takes in the most generous way: everything kept, in float32, MiB.

    Raises:
        ModelError: the base cannot be read or trained.
    """
    length = charter.training.window - 1
    windows = min(charter.training.batch_size, micro_batch or charter.training.batch_size)
    shape = Shape(rows=windows * length, length=length, itemsize=4, rank=rank, target_modules=charter.target_modules)
    return _WORKER_MB + math.ceil(footprint(open_gguf(base), shape).total / MIB)
