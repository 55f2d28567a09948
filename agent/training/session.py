"""One worker's part in a training: the model, the optimiser, and the steps that are left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.data.packing import WindowSet
from agent.errors import DataError, TrainingDivergedError, TrainingPausedError
from agent.llm.adapter import Adapter
from agent.llm.gguf_file import GgufModel
from agent.paths import write_atomically
from agent.training.adamw import AdamW
from agent.training.batches import pass_of
from agent.training.checkpoint import Memory, Standing, fingerprint, load_checkpoint, save_checkpoint
from agent.training.compute import resolve_compute, resolve_elementwise
from agent.training.decoder import Decoder
from agent.training.job import Progress, TrainJob
from agent.training.leaving import Leaving
from agent.training.lora import LoraModel
from agent.training.schedule import learning_rate_at, windows_at
from agent.training.trunk import TrunkCache

LAST_GOOD = "last_good.safetensors"


class Session:
    """One worker's part in a training.

    Args:
        job: what to learn.
        base: the opened base.
        windows: what to learn from.
        heldout: what to stop early by, or None.
        start: the adapter to go on from; None for a new one.
        on_progress: hears of every step.
        leaving: looked at before every use of a weight.

    Raises:
        DataError: no token of the windows counts.
    """

    def __init__(
        self,
        *,
        job: TrainJob,
        base: GgufModel,
        windows: WindowSet,
        heldout: WindowSet | None,
        start: Adapter | None,
        on_progress: Callable[[Progress], None],
        leaving: Leaving,
    ) -> None:
        torch.set_num_threads(job.threads)
        torch.set_flush_denormal(True)
        looked_at = None if heldout is None else heldout.take(slice(job.max_heldout_windows))
        for path, given in ((job.windows_path, windows), (job.heldout_path, looked_at)):
            if given is not None and not given.counted:
                raise DataError(f"no token in {path} counts", advice="Prepare the text again.")
        self.job = job
        self._fingerprint = fingerprint(job)
        found = load_checkpoint(job.checkpoint_dir, self._fingerprint)
        dtype = resolve_compute(job.compute if found is None else found[0].compute)
        self.compute: Literal["float32", "bfloat16"] = "bfloat16" if dtype == torch.bfloat16 else "float32"
        longest = max(windows.length, 0 if looked_at is None else looked_at.length)
        self._elementwise = resolve_elementwise(None if found is None else found[0].elementwise)
        self.model = Decoder(
            base,
            compute=dtype,
            threads=job.threads,
            context=longest,
            before_use=leaving.check,
            elementwise=self._elementwise,
        )
        self.model.checkpointing = job.checkpointing
        self.lora = LoraModel(
            model=self.model,
            rank=job.rank,
            alpha=job.effective_alpha,
            target_modules=job.target_modules,
            base_sha256=job.base_sha256,
            seed=job.seed,
            last_layers=job.last_layers,
            factors=job.factors,
        )
        if start is not None:
            self.lora.load(start)
        self.losses: list[float] = []
        self.heldout: list[tuple[int, float]] = []
        self.tokens = 0
        self.resumed_from = 0
        self._windows, self._heldout_windows = windows, looked_at
        self._on_progress = on_progress
        self._leaving = leaving
        self._parameters = self.lora.parameters()
        self._optimiser = AdamW(self._parameters, weight_decay=job.weight_decay)
        self._partial = _Partial([torch.zeros_like(parameter) for parameter in self._parameters])
        self._best: list[Tensor] = []
        self._saved = self._began = time.monotonic()
        if found is not None:
            self._restore(*found)
        self._trunk = self._make_trunk()

    @property
    def best_step(self) -> int | None:
        """The step whose adapter has the lowest held-out loss; None where nobody looked."""
        return min(self.heldout, key=lambda look: look[1])[0] if self.heldout else None

    @property
    def stopped_early(self) -> bool:
        """Whether the held-out loss has not fallen for as many looks as the job is patient."""
        best = self.best_step
        return best is not None and sum(step > best for step, _ in self.heldout) >= self.job.patience

    def run(self) -> None:
        """Do all steps that are left, or those until the held-out loss falls no more; keep the best adapter."""
        job = self.job
        try:
            if self._trunk is not None:
                self._trunk.fill(self.model, self._on_trunk)
            self._began = self._saved = time.monotonic()
            self._look_at_heldout()
            for step in range(len(self.losses), job.steps):
                if self.stopped_early:
                    break
                self._step(step)
                self._look_at_heldout()
                if step + 1 < job.steps:
                    self._leaving.check()
        except TrainingPausedError:
            self._pause()
        self._save()
        if self._best:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, self._best, strict=True):
                    parameter.copy_(value)

    def _step(self, step: int) -> None:
        """Do one step; where it raises, the parameters have not changed and the gradients are of whole passes."""
        job = self.job
        chosen = windows_at(step, batch_size=job.batch_size, count=len(self._windows), seed=job.seed)
        counted = self._windows.take(chosen).counted
        partial = self._partial
        for which in self._passes(chosen[partial.windows :]):
            if self._windows.take(which).counted:
                self._pass(step, which, counted)
            partial.windows += len(which)
            if partial.windows < len(chosen) and time.monotonic() - self._saved >= job.checkpoint_seconds:
                self._save()
        value = partial.nats / max(1, counted)
        for parameter, gradient in zip(self._parameters, partial.gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, job.grad_clip, error_if_nonfinite=False).item()
        if not math.isfinite(norm):
            self._diverged(step, value, norm)
        if counted:
            rate = learning_rate_at(step, steps=job.steps, warmup_steps=job.warmup_steps, peak=job.learning_rate)
            self._optimiser.step(partial.gradients, learning_rate=rate)
        partial.clear()
        self.losses.append(value)
        self.tokens += counted
        self._report(step)
        if step + 1 < job.steps and time.monotonic() - self._saved >= job.checkpoint_seconds:
            self._save()

    def _pass(self, step: int, which: NDArray[np.int64], counted: int) -> None:
        """Add up the gradients of some windows of a step in which so many tokens count."""
        loss = self._loss(which)
        if not math.isfinite(loss.item()):
            self._diverged(step, loss.item(), math.nan)
        gradients = torch.autograd.grad(loss / counted, self._parameters)
        for total, gradient in zip(self._partial.gradients, gradients, strict=True):
            total.add_(gradient)
        self._partial.nats += loss.item()

    def _passes(self, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        size = self.job.micro_batch or self.job.batch_size
        for first in range(0, len(chosen), size):
            yield chosen[first : first + size]

    def _loss(self, which: NDArray[np.int64]) -> Tensor:
        given = pass_of(self._windows.take(which))
        if self._trunk is None:
            return self.model.loss(given)
        return self.model.loss(given, trunk=self._trunk.take(which), first=self.lora.first_layer)

    def _report(self, step: int) -> None:
        seconds = max(time.monotonic() - self._began, 1e-9)
        rows = self.job.batch_size * (self._windows.length - 1)
        speed = (step + 1 - self.resumed_from) * rows / seconds
        self._on_progress(
            Progress(phase="train", step=step + 1, steps=self.job.steps, loss=self.losses[-1], tok_s=speed)
        )

    def _look_at_heldout(self) -> None:
        """Measure the held-out loss where it is time to, and remember the adapter if it is the best so far."""
        step = len(self.losses)
        due = step % self.job.evaluate_every == 0 or step == self.job.steps
        windows = self._heldout_windows
        if windows is None or not due or (self.heldout and self.heldout[-1][0] == step):
            return
        size = self.job.micro_batch or self.job.batch_size
        nats = 0.0
        with torch.no_grad():
            for first in range(0, len(windows), size):
                nats += self.model.loss(pass_of(windows.take(slice(first, first + size)))).item()
        loss = nats / windows.counted
        if not self.heldout or loss < min(known for _, known in self.heldout):
            self._best = [parameter.detach().clone() for parameter in self._parameters]
        self.heldout.append((step, loss))
        self._on_progress(Progress(phase="evaluate", step=step, steps=self.job.steps, loss=loss))

    def _diverged(self, step: int, loss: float, norm: float) -> NoReturn:
        job = self.job
        job.out_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(job.out_dir / LAST_GOOD, self.lora.extract().to_bytes())
        raise TrainingDivergedError(
            f"training diverged at step {step + 1} of {job.steps}: loss {loss:g}, gradient norm {norm:g}",
            advice="Use a lower learning rate. The adapter as it was before this step is kept beside the output.",
        )

    def _pause(self) -> NoReturn:
        """Keep a checkpoint of what is done, and leave."""
        self._save()
        raise TrainingPausedError(
            f"training paused at step {len(self.losses)} of {self.job.steps}",
            advice="Start the same job again to go on from there.",
        )

    def _save(self) -> None:
        partial = self._partial
        standing = Standing(
            losses=tuple(self.losses),
            updates=self._optimiser.updates,
            tokens=self.tokens,
            compute=self.compute,
            heldout=tuple(self.heldout),
            windows=partial.windows,
            nats=partial.nats,
            elementwise=self._elementwise.name,
        )
        memory = Memory(
            values=self._parameters,
            moments=self._optimiser.moments,
            gradients=partial.gradients if partial.windows else (),
            best=self._best,
        )
        save_checkpoint(self.job.checkpoint_dir, self._fingerprint, standing, memory)
        self._saved = time.monotonic()

    def _restore(self, standing: Standing, memory: Memory) -> None:
        """Go back to a checkpoint of this job."""
        with torch.no_grad():
            for parameter, value in zip(self._parameters, memory.values, strict=True):
                parameter.copy_(value)
        self._optimiser.restore(standing.updates, memory.moments)
        self.losses, self.tokens, self.heldout = list(standing.losses), standing.tokens, list(standing.heldout)
        self.resumed_from = len(self.losses)
        self._best = list(memory.best)
        if memory.gradients:
            self._partial = _Partial(list(memory.gradients), standing.windows, standing.nats)

    def _make_trunk(self) -> TrunkCache | None:
        """Prepare the cache for the windows that the steps will ask for, where the job wants one."""
        job = self.job
        if not job.trunk_cache or self.lora.first_layer == 0:
            return None
        wanted = {
            int(window)
            for step in range(job.steps)
            for window in windows_at(step, batch_size=job.batch_size, count=len(self._windows), seed=job.seed)
        }
        return TrunkCache(
            directory=job.checkpoint_dir,
            key=f"{self._fingerprint} {self.compute} {self._elementwise.name}",
            windows=self._windows,
            wanted=sorted(wanted),
            layer=self.lora.first_layer,
            group=job.micro_batch or job.batch_size,
            flush_seconds=job.checkpoint_seconds,
        )

    def _on_trunk(self, done: int, of: int) -> None:
        self._on_progress(Progress(phase="trunk", step=done, steps=of))
        self._leaving.check()


class _Partial:
    """Gradients added up in the step under way, of whole passes only."""

    def __init__(self, gradients: list[Tensor], windows: int = 0, nats: float = 0.0) -> None:
        self.gradients = gradients
        self.windows = windows
        self.nats = nats

    def clear(self) -> None:
        """Begin the next step."""
        self.windows, self.nats = 0, 0.0
        for gradient in self.gradients:
            gradient.zero_()
