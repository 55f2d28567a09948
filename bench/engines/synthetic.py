"""Workers that train nothing: everything about a device is real but the numbers in its adapter.

What :func:`agent.training.process.run_worker` does in a process of its own, with a model, is drawn at random here, in
the event loop, without either: windows of text are empty files, a trained adapter is its start with noise added, and a
held-out loss falls with the size of the adapter. So a device prepares, trains and judges in milliseconds, and whatever
happens to its updates on their way happens to real updates.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np

from agent.errors import TrainingPausedError
from agent.llm.adapter import Adapter, FloatArray, LoraFactors, read_adapter
from agent.training.job import (
    EvaluateJob,
    EvaluateResult,
    PlanJob,
    PrepareJob,
    PrepareResult,
    Progress,
    TrainJob,
    TrainResult,
    Variant,
)
from agent.training.process import Workers
from agent.update.delta import Factors

TOKENS_A_WINDOW = 64
TARGETS = 1000
_STEP = 0.02


def synthetic_workers(*, seconds: float = 0.0, quarrel: float = 0.0) -> Workers:
    """Give workers that draw what others compute.

    Args:
        seconds: how long each job takes.
        quarrel: how far devices' judgements differ, nats a token: 0 and every candidate is better for all.
    """

    async def work(job: Any, **options: Any) -> Any:
        await _pass_time(job.kind, seconds, options.get("pause"), options.get("on_progress"))
        match job:
            case PrepareJob():
                return _prepare(job)
            case TrainJob():
                return await asyncio.to_thread(_train, job)
            case EvaluateJob():
                return await asyncio.to_thread(_evaluate, job, quarrel)
            case _:
                kind = "a plan" if isinstance(job, PlanJob) else job.kind
                raise NotImplementedError(f"synthetic workers know nothing of {kind}")

    return cast("Workers", work)


async def _pass_time(
    kind: str, seconds: float, pause: asyncio.Event | None, on_progress: Callable[[Progress], None] | None
) -> None:
    """Take as long as was asked for, and leave when a pause is asked for."""
    steps = max(1, round(seconds / _STEP))
    for step in range(1, steps + 1):
        if seconds:
            await asyncio.sleep(seconds / steps)
        if pause is not None and pause.is_set():
            raise TrainingPausedError(f"the {kind} worker paused", advice="Start the same job again.")
        if on_progress is not None:
            on_progress(Progress(phase=kind, step=step, steps=steps))


def _prepare(job: PrepareJob) -> PrepareResult:
    train, heldout = job.out_dir / "train.npz", job.out_dir / "heldout.npz"
    for path in (train, heldout):
        path.touch()
    return PrepareResult(
        train_path=train,
        heldout_path=heldout,
        documents=1,
        passages=10,
        repeats=0,
        train_windows=9,
        heldout_windows=1,
        tokens=10 * TOKENS_A_WINDOW,
    )


def _train(job: TrainJob) -> TrainResult:
    assert job.start_adapter is not None
    start = read_adapter(job.start_adapter)
    trained = noisy(start, seed=job.seed, factors=job.factors)
    data = trained.to_bytes()
    job.out_dir.mkdir(parents=True, exist_ok=True)
    path = job.out_dir / "adapter.safetensors"
    path.write_bytes(data)
    return TrainResult(
        steps=job.steps,
        resumed_from=0,
        tokens=job.steps * job.batch_size * TOKENS_A_WINDOW,
        first_loss=5.0,
        last_loss=4.9,
        seed=job.seed,
        seconds=0.0,
        tok_s=0.0,
        compute="float32",
        peak_rss_mb=0.0,
        adapter_path=path,
        gguf_path=job.out_dir / "adapter.gguf",
        peft_path=job.out_dir / "peft",
        adapter_sha256=hashlib.sha256(data).hexdigest(),
    )


def noisy(start: Adapter, *, seed: int, size: float = 0.01, factors: Factors = "both") -> Adapter:
    """Give an adapter with noise of a standard deviation of ``size`` in some factors; the same for the same seed."""
    generator = np.random.default_rng(seed)

    def moved(values: FloatArray) -> FloatArray:
        return values + generator.normal(0, size, values.shape).astype(np.float32)

    modules = {
        name: LoraFactors(a=f.a if factors == "b" else moved(f.a), b=f.b if factors == "a" else moved(f.b))
        for name, f in sorted(start.modules.items())
    }
    return Adapter(rank=start.rank, alpha=start.alpha, modules=modules, base_sha256=start.base_sha256)


def _evaluate(job: EvaluateJob, quarrel: float) -> EvaluateResult:
    place = str(job.windows_path)
    losses = {variant.name: _loss(variant, place, quarrel) for variant in job.variants}
    return EvaluateResult(losses=losses, targets=TARGETS, seconds=0.0, peak_rss_mb=0.0)


def _loss(variant: Variant, place: str, quarrel: float) -> float:
    """Give a loss that falls with the size of the adapters, and of which each place thinks a little differently."""
    squares = sum(_squares(scaled.path) for scaled in variant.adapters)
    names = "\0".join((place, *(scaled.path.name for scaled in variant.adapters)))
    opinion = int.from_bytes(hashlib.sha256(names.encode()).digest()[:4], "big") / 2**32 - 0.5
    return 5.0 / (1.0 + 0.01 * float(np.log1p(squares))) + quarrel * opinion


def _squares(path: Path) -> float:
    """Sum the squares of all B in a GGUF adapter: they are zero in release 0."""
    tensors = gguf.GGUFReader(path).tensors
    return sum(float(np.square(tensor.data).sum()) for tensor in tensors if tensor.name.endswith("lora_b"))
