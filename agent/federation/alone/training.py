"""Training on this machine alone: text, plan, training, and a judgement by llama.cpp. Nothing is sent anywhere."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from agent.errors import ConsentMissingError, TrainingDivergedError
from agent.federation.alone.order import Order, require_consent
from agent.federation.alone.record import ADAPTER, BASE, Trained, TrainingRecord, make_record
from agent.federation.alone.room import RECORD, OutRoom
from agent.federation.once import once
from agent.federation.planning import require_fit
from agent.paths import Home, explained_disk, write_atomically
from agent.training.job import (
    EvaluateJob,
    EvaluateResult,
    PlanResult,
    PrepareResult,
    Progress,
    ScaledAdapter,
    TrainJob,
    Variant,
)
from agent.training.process import run_worker

Stage: TypeAlias = Literal["prepare", "plan", "train", "judge"]
OnProgress: TypeAlias = Callable[[Stage, Progress], None]


async def plan_alone(
    order: Order, *, on_progress: OnProgress, on_text: Callable[[PrepareResult], None] = lambda _: None
) -> PlanResult:
    """Say what a training will take; nothing is kept.

    Args:
        order: what would be trained.
        on_progress: hears how far each stage is.
        on_text: hears what the text became.

    Raises:
        NoTextError: there is no text, or too little.
        ModelError: the base cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="bramble-plan-") as directory:
        text = await run_worker(order.prepare_job(Path(directory)), on_progress=partial(on_progress, "prepare"))
        on_text(text)
        job = order.plan_job(train=text.train_path, heldout=text.heldout_path, windows=text.train_windows)
        return await run_worker(job, on_progress=partial(on_progress, "plan"))


async def train_alone(
    home: Home,
    order: Order,
    room: OutRoom,
    *,
    on_progress: OnProgress,
    on_text: Callable[[PrepareResult], None] = lambda _: None,
    on_plan: Callable[[PlanResult], None] = lambda _: None,
) -> TrainingRecord:
    """Train an adapter and put it into a folder, from where an earlier call for the same order stopped.

    An interrupted training goes on with the text as it was when it began.

    Args:
        home: of the device whose owner consented to the text; it need not exist where text was named.
        order: what to train.
        room: the folder; an order of another kind that was begun there is thrown away.
        on_progress: hears how far each stage is.
        on_text: hears what the text became.
        on_plan: hears what the training will take, before it begins.

    Raises:
        DoesNotFitError: it does not fit into the memory that it may take.
        NoTextError: there is no text, or too little.
        ModelError: the base cannot be used.
        TrainingDivergedError: the learning rate is too high.
        ConsentMissingError: consent for the text was withdrawn meanwhile; what was learned is thrown away.
    """
    with room.working(order):
        text = await _prepared(order, room, on_progress)
        on_text(text)
        plan = await _planned(order, room, text, on_progress)
        on_plan(plan)
        job = order.train_job(
            plan, train=text.train_path, heldout=text.heldout_path, checkpoint=room.checkpoint, out=room.trained
        )
        trained = await _trained(job, room, on_progress)
        judged = await _judged(order, room, trained, text.heldout_path, on_progress)
        try:
            require_consent(home, order)
        except ConsentMissingError:
            room.discard()
            raise
        record = make_record(order, job, room.out, text=text, plan=plan, trained=trained, judged=judged)
        room.trained.mkdir(exist_ok=True)
        write_atomically(room.trained / RECORD, record.model_dump_json(indent=2).encode())
        room.publish()
    return record


async def _prepared(order: Order, room: OutRoom, on_progress: OnProgress) -> PrepareResult:
    directory = room.work / "text"
    with explained_disk(directory):
        directory.mkdir(exist_ok=True)
    job = order.prepare_job(directory)
    return await once(
        room.work / "prepared.json",
        job,
        PrepareResult,
        lambda: run_worker(job, on_progress=partial(on_progress, "prepare")),
    )


async def _planned(order: Order, room: OutRoom, text: PrepareResult, on_progress: OnProgress) -> PlanResult:
    job = order.plan_job(train=text.train_path, heldout=text.heldout_path, windows=text.train_windows)

    async def fit() -> PlanResult:
        return require_fit(await run_worker(job, on_progress=partial(on_progress, "plan")))

    return await once(room.work / "plan.json", job, PlanResult, fit)


async def _trained(job: TrainJob, room: OutRoom, on_progress: OnProgress) -> Trained:
    async def train() -> Trained:
        began = time.monotonic()
        result = await run_worker(job, on_progress=partial(on_progress, "train"))
        return Trained(result=result, seconds=time.monotonic() - began)

    try:
        return await once(room.work / "trained.json", job, Trained, train)
    except TrainingDivergedError as cause:
        raise TrainingDivergedError(
            cause.message,
            advice="Use a lower --lr (half of it, say). The adapter as it was before that step is in"
            f" {room.trained / 'last_good.safetensors'}.",
        ) from cause


async def _judged(
    order: Order, room: OutRoom, trained: Trained, heldout: Path, on_progress: OnProgress
) -> EvaluateResult:
    adapters = (ScaledAdapter(path=trained.result.gguf_path),)
    job = EvaluateJob(
        base_path=order.base_path,
        threads=order.threads,
        windows_path=heldout,
        variants=(Variant(name=BASE), Variant(name=ADAPTER, adapters=adapters)),
        max_windows=order.max_heldout_windows,
    )
    return await once(
        room.work / "judged.json",
        job,
        EvaluateResult,
        lambda: run_worker(job, on_progress=partial(on_progress, "judge")),
    )
