"""Gradients from one single-threaded process a core, which take micro-batches as they get to them.

Two threads inside one operation wait for each other hundreds of times a step, so on a machine that others use as well
both go at the speed of whichever is interrupted. Processes that meet once a step, and of which the quicker one takes
more of the work, lose a tenth of that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch.multiprocessing as mp
from torch import Tensor

from tools.seedling.model import Seedling
from tools.seedling.sequences import Sequences


def _shared_zeros(like: Tensor) -> Tensor:
    zeros: Tensor = torch.zeros_like(like).share_memory_()  # type: ignore[no-untyped-call]
    return zeros


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to start."""

    model: Seedling
    gradients: list[Tensor]
    tokens: Path
    micro_batch: int
    seed: int
    orders: SimpleQueue[int | None]
    results: SimpleQueue[float]


def _work(job: _Job) -> None:
    """A worker process: takes the number of a micro-batch's first window, gives its loss; ``None`` ends it."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    model = job.model
    sequences = Sequences(job.tokens, length=model.shape.context, seed=job.seed)
    loss_of: Callable[[Tensor, Tensor], Tensor] = torch.compile(model.loss)
    for parameter, gradient in zip(model.parameters(), job.gradients, strict=True):
        parameter.grad = gradient  # backward adds straight into the memory that the trainer reads
    while (first := job.orders.get()) is not None:
        batch = torch.stack([sequences.deal(first + offset) for offset in range(job.micro_batch)])
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(batch[:, :-1], batch[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        job.results.put(float(loss.detach()))


class GradientWorkers:
    """Worker processes over a model whose parameters they share. A context manager."""

    def __init__(self, model: Seedling, tokens: Path, *, workers: int, micro_batch: int, seed: int) -> None:
        self.model = model
        self.micro_batch = micro_batch
        model.share_memory()
        context = mp.get_context("spawn")
        self._orders: SimpleQueue[int | None] = context.SimpleQueue()
        self._results: SimpleQueue[float] = context.SimpleQueue()
        self._buffers = [[_shared_zeros(p) for p in model.parameters()] for _ in range(workers)]
        jobs = [_Job(model, own, tokens, micro_batch, seed, self._orders, self._results) for own in self._buffers]
        self._processes = [context.Process(target=_work, args=(job,), daemon=True) for job in jobs]

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._processes:
            self._orders.put(None)
        for process in self._processes:
            process.join(timeout=10)
            process.terminate()

    def step(self, first: int, batches: int) -> float:
        """Leave in each parameter's ``grad`` the mean gradient over ``batches`` micro-batches; returns the mean loss.

        Windows ``first`` to ``first + batches * micro_batch`` of the deal are read.
        """
        for number in range(batches):
            self._orders.put(first + number * self.micro_batch)
        loss = sum(self._results.get() for _ in range(batches)) / batches
        for parameter, *gradients in zip(self.model.parameters(), *self._buffers, strict=True):
            parameter.grad = torch.stack(gradients).sum(0) / batches
            for gradient in gradients:
                gradient.zero_()
        return loss
