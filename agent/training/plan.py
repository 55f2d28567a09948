"""The plan job: what a training will take, said before it starts, and fitted into the memory that there is.

Memory follows from dimensions (:mod:`agent.training.footprint`), on top of what this process, which has imported the
same libraries, takes already. Time is measured: each kind of block, and the loss, on windows of the planned length, on
this machine as busy as it is now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from agent.data.packing import WindowSet
from agent.device.footprint import age_seconds, available_mb, free_disk_mb, present_mb
from agent.errors import DataError
from agent.llm.gguf_file import GgufModel, open_gguf, target_modules, target_shapes
from agent.training.compute import resolve_compute
from agent.training.footprint import MIB, Shape, footprint
from agent.training.job import PlanJob, PlanResult, Progress
from agent.training.leaving import Leaving
from agent.training.resident import peak_rss_mb
from agent.training.timing import Timing, measure_speed
from agent.training.windows_file import read_windows

_AS_FAST = 1.03  # so much longer is no reason to take more memory
MARGIN = 1.08
"""What is planned must fit with this to spare: predictions are some hundredths off, and a budget is a promise."""
_SPARE = 0.85  # share of the free memory that is planned with where no budget is given
_HASH_BYTES_PER_SECOND = 1.0e9
_DISK_BYTES_PER_SECOND = 200e6
_NUMBERS_PER_SECOND = 3e8  # that the optimiser updates


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to do the same training.

    Attributes:
        micro_batch: windows a pass.
        checkpointing: keep only the input of each layer.
        trunk_cache: keep hidden states below the changed layers on disk.
        peak_mb: memory it takes.
        seconds: of all steps.
        disk_mb: what it writes.
    """

    micro_batch: int
    checkpointing: bool
    trunk_cache: bool
    peak_mb: float
    seconds: float
    disk_mb: float


def plan(job: PlanJob, on_progress: Callable[[Progress], None], leaving: Leaving) -> PlanResult:
    """Say what a training will take, and choose the fastest way that fits.

    Raises:
        ModelError, AdapterError: the base cannot be trained, or has no such layers.
        DataError: the windows cannot be used.
        TrainingPausedError: it was asked to leave.
    """
    start_seconds = age_seconds()
    on_progress(Progress(phase="load"))
    base = open_gguf(job.base_path)
    target_shapes(base, job.target_modules)
    windows = read_windows(job.windows_path, n_vocab=base.config.vocab)
    heldout = None if job.heldout_path is None else read_windows(job.heldout_path, n_vocab=base.config.vocab)
    if not windows.counted:
        raise DataError(f"no token in {job.windows_path} counts", advice="Prepare the text again.")
    torch.set_num_threads(job.threads)
    process = present_mb() * MIB
    dtype = resolve_compute(job.compute)
    timing = measure_speed(
        base,
        windows,
        compute=dtype,
        threads=job.threads,
        rank=job.rank,
        target_modules=job.target_modules,
        on_progress=on_progress,
        leaving=leaving,
    )
    planner = _Planner(job, base, windows, heldout, dtype=dtype, process=process, timing=timing)
    return planner.result(start_seconds + base.path.stat().st_size / _HASH_BYTES_PER_SECOND)


class _Planner:
    """Weighs the ways to do one training."""

    def __init__(
        self,
        job: PlanJob,
        base: GgufModel,
        windows: WindowSet,
        heldout: WindowSet | None,
        *,
        dtype: torch.dtype,
        process: float,
        timing: Timing,
    ) -> None:
        self.job, self.base, self.windows, self.heldout = job, base, windows, heldout
        self.dtype, self.process, self.timing = dtype, process, timing
        self.layers = base.config.n_layers
        self.first_layer = 0 if job.last_layers is None else max(0, self.layers - job.last_layers)
        self.steps = job.steps or max(1, math.ceil(job.epochs * len(windows) / job.batch_size))
        self.seen = min(len(windows), self.steps * job.batch_size)
        self.counted = windows.counted / len(windows)
        free = _SPARE * available_mb() + process / MIB
        most = free if job.max_memory_mb is None else min(free, job.max_memory_mb)
        self.memory_mb = most if job.memory_mb is None else float(job.memory_mb)
        self.most_windows = min(job.batch_size, job.max_micro_batch or job.batch_size)
        self.disk_mb = min(job.disk_mb, free_disk_mb(job.windows_path.parent))

    def result(self, start_seconds: float) -> PlanResult:
        """Choose, and say why."""
        choices = sorted(self._choices(), key=lambda choice: (choice.seconds, choice.peak_mb))
        fitting = [choice for choice in choices if choice.peak_mb * MARGIN <= self.memory_mb]
        as_fast = [choice for choice in fitting if choice.seconds <= _AS_FAST * fitting[0].seconds]
        best = min(as_fast or choices, key=lambda choice: choice.peak_mb)
        rows = self.windows.length - 1
        looks = 0 if self.heldout is None else self.steps // self.job.evaluate_every + 1
        looking = 0.0 if self.heldout is None else looks * self._heldout_seconds(self.heldout)
        seconds = start_seconds + best.seconds + looking
        fill = self._fill_seconds() if best.trunk_cache else 0.0
        return PlanResult(
            windows=len(self.windows),
            window=self.windows.length,
            steps=self.steps,
            epochs=self.steps * self.job.batch_size / len(self.windows),
            tokens=self.steps * self.job.batch_size * rows,
            batch_size=self.job.batch_size,
            micro_batch=best.micro_batch,
            accumulation=math.ceil(self.job.batch_size / best.micro_batch),
            compute="bfloat16" if self.dtype == torch.bfloat16 else "float32",
            checkpointing=best.checkpointing,
            trunk_cache=best.trunk_cache,
            parameters=self._numbers(),
            seconds=seconds,
            step_seconds=(best.seconds - fill) / self.steps,
            tok_s=self.steps * self.job.batch_size * rows / best.seconds,
            peak_mb=best.peak_mb,
            disk_mb=best.disk_mb,
            memory_mb=self.memory_mb,
            fits=bool(fitting),
            reasons=tuple(self._reasons(best, choices)),
            instead=() if fitting else tuple(self._instead(best)),
            peak_rss_mb=peak_rss_mb(),
        )

    def _choices(self) -> Iterator[Choice]:
        """Give every way that the job leaves open."""
        job = self.job
        halves = [max(1, self.most_windows >> power) for power in range(self.most_windows.bit_length())]
        micros = [min(job.micro_batch, job.batch_size)] if job.micro_batch else sorted(set(halves), reverse=True)
        checkpoints = [False, True] if job.checkpointing is None else [job.checkpointing]
        caches = [False, True] if job.trunk_cache is None else [job.trunk_cache]
        for micro in micros:
            for checkpointing in checkpoints:
                for cache in caches:
                    if cache and (self.first_layer == 0 or self._cache_mb() > self.disk_mb):
                        continue
                    yield Choice(
                        micro_batch=micro,
                        checkpointing=checkpointing,
                        trunk_cache=cache,
                        peak_mb=self._peak_mb(micro, checkpointing=checkpointing),
                        seconds=self._seconds(micro, checkpointing=checkpointing, cache=cache),
                        disk_mb=self._kept_mb() + (self._cache_mb() if cache else 0.0),
                    )

    def _shape(self, micro: int, *, checkpointing: bool) -> Shape:
        return Shape(
            rows=micro * (self.windows.length - 1),
            length=self.windows.length - 1,
            itemsize=self.dtype.itemsize,
            rank=self.job.rank,
            target_modules=self.job.target_modules,
            first_layer=self.first_layer,
            checkpointing=checkpointing,
            keeps_best=self.heldout is not None,
        )

    def _peak_mb(self, micro: int, *, checkpointing: bool) -> float:
        """Predict the memory; a trunk cache changes nothing: filling it touches the weights of the layers below."""
        return (self.process + footprint(self.base, self._shape(micro, checkpointing=checkpointing)).total) / MIB

    def _seconds(self, micro: int, *, checkpointing: bool, cache: bool) -> float:
        """Predict the seconds of all steps, and of filling the cache."""
        timing, rows = self.timing, self.windows.length - 1
        passes = [micro] * (self.job.batch_size // micro)
        if self.job.batch_size % micro:
            passes.append(self.job.batch_size % micro)
        step = self._numbers() / _NUMBERS_PER_SECOND
        for count in passes:
            below = 0.0 if cache else timing.forward(range(self.first_layer), count * rows)
            above = range(self.first_layer, self.layers)
            again = timing.forward(above, count * rows) if checkpointing else 0.0
            step += below + timing.both(above, count * rows) + again + timing.head * self.counted * count
        return step * self.steps + (self._fill_seconds() if cache else 0.0)

    def _fill_seconds(self) -> float:
        forward = self.timing.forward(range(self.first_layer), self.windows.length - 1)
        return self.seen * forward + self._cache_mb() * MIB / _DISK_BYTES_PER_SECOND

    def _heldout_seconds(self, heldout: WindowSet) -> float:
        count = min(len(heldout), self.job.max_heldout_windows)
        rows = heldout.length - 1
        forward = self.timing.forward(range(self.layers), rows)
        return count * (forward + 0.5 * self.timing.head * heldout.counted / len(heldout))

    def _cache_mb(self) -> float:
        return self.seen * (self.windows.length - 1) * self.base.config.hidden * 2 / MIB

    def _kept_mb(self) -> float:
        """Give the size of checkpoints and of the adapter in all its forms, in MiB."""
        return self._numbers() * 4 * (4 + 2 + 3) / MIB

    def _numbers(self) -> int:
        wanted = set(self.job.target_modules)
        return self.job.rank * sum(
            target.out_features + target.in_features
            for path, target in target_modules(self.base).items()
            if target.layer >= self.first_layer and path.rsplit(".", 1)[-1] in wanted
        )

    def _reasons(self, best: Choice, choices: Sequence[Choice]) -> Iterator[str]:
        """Say why it is as it is."""
        job = self.job
        if job.compute == "auto":
            ratio = self.timing.seconds_float32 / self.timing.seconds_bfloat16
            taken = "bfloat16" if self.dtype == torch.bfloat16 else "float32"
            yield f"{taken}: products in bfloat16 take 1/{ratio:.1f} of the time of float32 here."
        else:
            yield f"{job.compute}: asked for."
        most = self.most_windows
        some, whole_step = f"{best.micro_batch} of {job.batch_size} windows at a time", most == job.batch_size
        as_many = "all at once" if whole_step else f"{most} at once"
        if best.micro_batch < most and not job.micro_batch:
            whole = next(c for c in choices if c.micro_batch == most and c.checkpointing == best.checkpointing)
            if whole.peak_mb * MARGIN > self.memory_mb:
                yield f"{some}: {as_many} would take {whole.peak_mb:,.0f} MiB of the {self.memory_mb:,.0f}."
            else:
                yield f"{some}: as fast as {as_many}, and smaller."
        elif not whole_step and not job.micro_batch:
            yield f"{some}: no pass may take more on this machine."
        elif not job.micro_batch:
            yield f"all {job.batch_size} windows of a step in one pass: it fits, and unpacks every weight least often."
        yield from self._why_checkpointing(best, choices)
        yield from self._why_cache(best, choices)

    def _why_checkpointing(self, best: Choice, choices: Sequence[Choice]) -> Iterator[str]:
        if self.job.checkpointing is not None:
            return
        other = min(
            (c for c in choices if c.checkpointing != best.checkpointing and c.trunk_cache == best.trunk_cache),
            key=lambda choice: choice.peak_mb,
        )
        if best.checkpointing:
            yield f"checkpointing: without it, it takes at least {other.peak_mb:,.0f} of {self.memory_mb:,.0f} MiB."
        else:
            yield "no checkpointing: what the backward pass needs fits into memory, so nothing is computed twice."

    def _why_cache(self, best: Choice, choices: Sequence[Choice]) -> Iterator[str]:
        if self.first_layer == 0:
            if self.job.trunk_cache:
                yield "no trunk cache: every layer is changed, so nothing stays the same (--last-layers changes fewer)."
            return
        if self._cache_mb() > self.disk_mb:
            yield f"no trunk cache: it would take {self._cache_mb():,.0f} MiB of {self.disk_mb:,.0f} allowed on disk."
            return
        if self.job.trunk_cache is not None:
            return
        other = next(
            c
            for c in choices
            if c.trunk_cache != best.trunk_cache
            and (c.micro_batch, c.checkpointing) == (best.micro_batch, best.checkpointing)
        )
        saved = abs(other.seconds - best.seconds)
        if best.trunk_cache:
            yield (
                f"trunk cache: the {self.first_layer} unchanged layers are computed once instead of "
                f"{self.steps * self.job.batch_size / self.seen:.1f} times, which saves {saved:,.0f} s."
            )
        else:
            yield f"no trunk cache: each window is seen too seldom; filling it would cost {saved:,.0f} s more."

    def _instead(self, best: Choice) -> Iterator[str]:
        """Say what would have to give."""
        yield f"Give it more memory: {math.ceil(best.peak_mb * MARGIN):,} MiB are the least that this training takes."
        rows = (self.windows.length - 1) // 2
        shape = replace(
            self._shape(best.micro_batch, checkpointing=best.checkpointing), rows=best.micro_batch * rows, length=rows
        )
        shorter = (self.process + footprint(self.base, shape).total) / MIB
        if shorter < best.peak_mb - 1 and best.micro_batch == 1:
            yield f"Use windows of half the length: {shorter:,.0f} MiB."
        if self.first_layer == 0 and self.layers > 1:
            fewer = replace(shape, rows=2 * rows, length=2 * rows, first_layer=self.layers - self.layers // 2)
            half = (self.process + footprint(self.base, fewer).total) / MIB
            yield f"Change only the last {self.layers // 2} layers: {half:,.0f} MiB."
        weights = footprint(self.base, shape).weights / MIB
        yield f"Use a smaller base, or one with smaller blocks: this one takes {weights:,.0f} MiB of it."
