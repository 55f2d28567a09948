"""One worker's part in a training: the model, the optimiser, and the steps that are left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal, NoReturn

import numpy as np
import torch

from agent.errors import TrainingDivergedError, TrainingPausedError
from agent.llm.adapter import Adapter
from agent.llm.gguf_file import GgufModel
from agent.paths import write_atomically
from agent.training.checkpoint import Standing, fingerprint, load_checkpoint, save_checkpoint
from agent.training.job import Progress, TrainJob
from agent.training.leaving import Leaving
from agent.training.lora import LoraModel
from agent.training.model import build_packed_model, mean_loss, resolve_compute
from agent.training.schedule import learning_rate_at, windows_at
from agent.training.windows_file import WindowArray

LAST_GOOD = "last_good.safetensors"


class Session:
    """One worker's part in a training.

    Args:
        job: what to learn.
        base: the opened base.
        windows: what to learn from.
        start: the adapter to go on from; None for a new one.
        on_progress: hears of every step.
        leaving: looked at after every step.
    """

    def __init__(
        self,
        *,
        job: TrainJob,
        base: GgufModel,
        windows: WindowArray,
        start: Adapter | None,
        on_progress: Callable[[Progress], None],
        leaving: Leaving,
    ) -> None:
        torch.set_num_threads(job.threads)
        torch.set_flush_denormal(True)
        self.job = job
        dtype = resolve_compute(job.compute)
        self.compute: Literal["float32", "bfloat16"] = "bfloat16" if dtype == torch.bfloat16 else "float32"
        model = build_packed_model(base, compute=dtype, threads=job.threads, before_use=leaving.check)
        self.lora = LoraModel(
            model=model,
            rank=job.rank,
            alpha=job.alpha,
            target_modules=job.target_modules,
            base_sha256=job.base_sha256,
            seed=job.seed,
        )
        if start is not None:
            self.lora.load(start)
        self.losses: list[float] = []
        self.tokens = 0
        self._windows = windows
        self._on_progress = on_progress
        self._leaving = leaving
        self._parameters = self.lora.parameters()
        self._optimiser = torch.optim.AdamW(
            self._parameters, lr=job.learning_rate, weight_decay=job.weight_decay, fused=True
        )
        self._fingerprint = fingerprint(job)

    def resume(self) -> int:
        """Go back to the checkpoint of this job, where there is one; give the step to go on from."""
        standing = load_checkpoint(self.job.checkpoint_dir, self._fingerprint, self._parameters, self._optimiser)
        if standing is not None:
            self.losses, self.tokens = list(standing.losses), standing.tokens
        return len(self.losses)

    def run(self) -> None:
        """Do all steps that are left."""
        job = self.job
        first = len(self.losses)
        began = saved = time.monotonic()
        for step in range(first, job.steps):
            try:
                loss = self._step(step)
            except TrainingPausedError:
                self._pause()
            self.losses.append(loss)
            self.tokens += job.batch_size * (self._windows.shape[1] - 1)
            now = time.monotonic()
            speed = (step + 1 - first) * job.batch_size * (self._windows.shape[1] - 1) / max(now - began, 1e-9)
            self._on_progress(Progress(phase="train", step=step + 1, steps=job.steps, loss=loss, tok_s=speed))
            if self._leaving.asked and step + 1 < job.steps:
                self._pause()
            if step + 1 == job.steps or now - saved >= job.checkpoint_seconds:
                self._save()
                saved = time.monotonic()

    def _step(self, step: int) -> float:
        """Do one step and give its loss; nothing has changed where it raises."""
        job = self.job
        chosen = windows_at(step, batch_size=job.batch_size, count=len(self._windows), seed=job.seed)
        tokens = torch.from_numpy(self._windows[chosen].astype(np.int64))
        self._optimiser.zero_grad(set_to_none=True)
        loss = mean_loss(self.lora.packed, tokens)
        value = loss.item()
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, job.grad_clip, error_if_nonfinite=False).item()
        else:
            norm = value
        if not math.isfinite(norm):
            job.out_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(job.out_dir / LAST_GOOD, self.lora.extract().to_bytes())
            raise TrainingDivergedError(
                f"training diverged at step {step + 1} of {job.steps}: loss {value:g}, gradient norm {norm:g}",
                advice="Use a lower learning rate. The adapter as it was before this step is kept beside the output.",
            )
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate_at(step, steps=job.steps, warmup_steps=job.warmup_steps, peak=job.learning_rate)
        self._optimiser.step()
        return value

    def _pause(self) -> NoReturn:
        """Keep a checkpoint of the steps that are done, and leave."""
        if self.losses:
            self._save()
        raise TrainingPausedError(
            f"training paused at step {len(self.losses)} of {self.job.steps}",
            advice="Start the same job again to go on from there.",
        )

    def _save(self) -> None:
        standing = Standing(len(self.losses), tuple(self.losses), self.tokens)
        save_checkpoint(self.job.checkpoint_dir, self._fingerprint, standing, self._parameters, self._optimiser)
