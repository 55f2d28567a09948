"""What is written down about a training: enough to do it again, and how far the plan was from what happened."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import agent
from agent.federation.alone.order import Order
from agent.training.job import EvaluateResult, PlanResult, PrepareResult, TrainJob, TrainResult

BASE, ADAPTER = "base", "adapter"
_PATHS = {"windows_path", "heldout_path", "checkpoint_dir", "out_dir", "start_adapter"}
_NOT_ABOUT_TEXT = {"kind", "train_path", "heldout_path", "examples", "samples", "skipped", "peak_rss_mb"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Trained(_Frozen):
    """A finished training, and how long its last worker took.

    Attributes:
        result: what the worker said.
        seconds: from its start to its end, start-up included.
    """

    result: TrainResult
    seconds: float


class Comparison(_Frozen):
    """A number of the plan, and what it came to.

    Attributes:
        planned: for the steps that were done.
        measured: likewise.
    """

    planned: float
    measured: float

    @property
    def error(self) -> float:
        """How far the plan was off, as a share of what was measured."""
        return self.planned / self.measured - 1 if self.measured else 0.0


class Heldout(_Frozen):
    """Mean loss on held-out text by llama.cpp, nats a token.

    Attributes:
        base: of the base alone.
        adapter: with the adapter.
        targets: over how many tokens.
    """

    base: float
    adapter: float
    targets: int


class TrainingRecord(_Frozen):
    """A training alone, from its text to what came of it.

    Attributes:
        bramble: version of the program.
        finished: Unix time, seconds.
        sources: what was read.
        text: counts of what was made of it.
        job: what the worker did; with the same text, base and seed it makes the same adapter.
        plan: what was expected.
        steps: optimiser steps done.
        resumed_from: the step at which the last worker took over; 0 where nothing interrupted it.
        best_step: whose adapter was kept.
        stopped_early: the held-out loss fell no more.
        losses: nats a token of every step.
        heldout_curve: step and held-out loss of every look, by the trainer.
        heldout: base and adapter on held-out text, by llama.cpp.
        memory_mb: peak of the worker, MiB.
        seconds: of the last worker, start-up included, against the plan for as many steps.
        tok_s: tokens a second while it trained.
        adapter_sha256: of ``adapter.safetensors``.
        use: commands that use the adapter.
    """

    bramble: str
    finished: int
    sources: tuple[Path, ...]
    text: dict[str, Any]
    job: dict[str, Any]
    plan: PlanResult
    steps: int
    resumed_from: int
    best_step: int | None
    stopped_early: bool
    losses: tuple[float, ...]
    heldout_curve: tuple[tuple[int, float], ...]
    heldout: Heldout
    memory_mb: Comparison
    seconds: Comparison
    tok_s: Comparison
    adapter_sha256: str
    use: tuple[str, ...]


def make_record(
    order: Order,
    job: TrainJob,
    out: Path,
    *,
    text: PrepareResult,
    plan: PlanResult,
    trained: Trained,
    judged: EvaluateResult,
) -> TrainingRecord:
    """Put together what is written down."""
    result = trained.result
    here = result.steps - result.resumed_from
    return TrainingRecord(
        bramble=agent.__version__,
        finished=int(time.time()),
        sources=order.sources,
        text=text.model_dump(mode="json", exclude=_NOT_ABOUT_TEXT),
        job=job.model_dump(mode="json", exclude=_PATHS),
        plan=plan,
        steps=result.steps,
        resumed_from=result.resumed_from,
        best_step=result.best_step,
        stopped_early=result.stopped_early,
        losses=result.losses,
        heldout_curve=result.heldout,
        heldout=Heldout(base=judged.losses[BASE], adapter=judged.losses[ADAPTER], targets=judged.targets),
        memory_mb=Comparison(planned=plan.peak_mb, measured=result.peak_rss_mb),
        seconds=Comparison(
            planned=max(0.0, plan.seconds - (plan.steps - here) * plan.step_seconds), measured=trained.seconds
        ),
        tok_s=Comparison(planned=plan.tok_s, measured=result.tok_s),
        adapter_sha256=result.adapter_sha256,
        use=_use(order.base_path, out),
    )


def _use(base: Path, out: Path) -> tuple[str, ...]:
    """Say with which commands the adapter is used."""
    quoted_base, quoted_gguf = shlex.quote(str(base)), shlex.quote(f"mine={out / 'adapter.gguf'}")
    return (
        f"bramble chat --base {quoted_base} --adapter {quoted_gguf}",
        f"bramble serve --base {quoted_base} --adapter {quoted_gguf}",
    )
