"""How long the parts of a training step take on this machine, measured on a few windows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from agent.data.packing import WindowSet
from agent.llm.gguf_file import GgufModel
from agent.training.batches import pass_of
from agent.training.compute import time_products
from agent.training.decoder import Block, Decoder, Pass, gradients_by
from agent.training.job import Progress
from agent.training.leaving import Leaving
from agent.training.lora import LoraModel

_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a block: so many for any pass, and so many for each row."""

    fixed: float
    each: float

    def at(self, rows: int) -> float:
        """Give the seconds of a pass of so many rows."""
        return self.fixed + self.each * rows


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the parts of a step.

    Attributes:
        kinds: kind of each layer; layers of a kind take the same time.
        forwards: by kind, of a block that is only passed through.
        boths: by kind, of a block forward and backward.
        head: of loss and gradient of one target.
        seconds_float32: of a typical product in float32.
        seconds_bfloat16: of the same in bfloat16.
    """

    kinds: Sequence[int]
    forwards: Sequence[Line]
    boths: Sequence[Line]
    head: float
    seconds_float32: float
    seconds_bfloat16: float

    def forward(self, layers: Iterable[int], rows: int) -> float:
        """Give the seconds of passing through some layers."""
        return sum(self.forwards[self.kinds[layer]].at(rows) for layer in layers)

    def both(self, layers: Iterable[int], rows: int) -> float:
        """Give the seconds of some layers forward and backward."""
        return sum(self.boths[self.kinds[layer]].at(rows) for layer in layers)


def measure_speed(
    base: GgufModel,
    windows: WindowSet,
    *,
    compute: torch.dtype,
    threads: int,
    rank: int,
    target_modules: Sequence[str],
    on_progress: Callable[[Progress], None],
    leaving: Leaving,
) -> Timing:
    """Time each kind of block on one window and on two, and the loss on one.

    Raises:
        TrainingPausedError: it was asked to leave.
    """
    model = Decoder(base, compute=compute, threads=threads, context=windows.length, before_use=leaving.check)
    LoraModel(model=model, rank=rank, alpha=rank, target_modules=target_modules, base_sha256="0" * 64)
    first, more = (pass_of(windows.take(slice(0, count))) for count in (1, 2))
    samples = [first] if len(more.tokens) == len(first.tokens) else [first, more]
    names = [_kind(block) for block in model.blocks]
    distinct = list(dict.fromkeys(names))
    forwards, boths = [], []
    for place, name in enumerate(distinct):
        on_progress(Progress(phase="measure", step=place, steps=len(distinct) + 1))
        block = model.blocks[names.index(name)]
        timed = [_time_block(model, block, sample) for sample in samples]
        rows = [len(sample.tokens) for sample in samples]
        forwards.append(_line(rows, [forward for forward, _ in timed]))
        boths.append(_line(rows, [both for _, both in timed]))
    on_progress(Progress(phase="measure", step=len(distinct), steps=len(distinct) + 1))
    wide, narrow = time_products()
    return Timing(
        kinds=[distinct.index(name) for name in names],
        forwards=forwards,
        boths=boths,
        head=_time_head(model, base.config.hidden, first),
        seconds_float32=wide,
        seconds_bfloat16=narrow,
    )


def _kind(block: Block) -> tuple[object, ...]:
    """Name what decides how long a block takes: block formats, and how far it sees."""
    formats = [layer.weight.tensor.format.name for part in block.projections for layer in part.layers]
    return (*formats, block.heads.window)


def _time_block(model: Decoder, block: Block, sample: Pass) -> tuple[float, float]:
    """Give the median seconds of a block without gradient, and forward and backward."""
    index = model.blocks.index(block)
    given = torch.randn(len(sample.tokens), model.gguf.config.hidden)

    def forward() -> None:
        with torch.no_grad():
            model.hidden(sample, trunk=given, first=index, last=index + 1)

    def both() -> None:
        x = given.clone().requires_grad_()
        out = model.hidden(sample, trunk=x, first=index, last=index + 1)
        gradients_by(out, [x, *block.parameters()], torch.ones_like(out))

    return _median(forward), _median(both)


def _time_head(model: Decoder, width: int, sample: Pass) -> float:
    """Give the median seconds of loss and gradient of one target."""
    count = min(len(sample.tokens), 4 * model.head.rows)
    hidden = torch.randn(count, width, requires_grad=True)
    targets = sample.tokens[:count]

    def both() -> None:
        torch.autograd.grad(model.head.loss(hidden, targets), hidden)

    return _median(both) / count


def _median(work: Callable[[], None]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _line(rows: Sequence[int], seconds: Sequence[float]) -> Line:
    """Lay a line through one or two measurements, neither part of it below zero."""
    if len(rows) == 1:
        return Line(0.0, seconds[0] / rows[0])
    each = max(0.0, (seconds[1] - seconds[0]) / (rows[1] - rows[0]))
    fixed = seconds[0] - each * rows[0]
    return Line(fixed, each) if fixed >= 0 else Line(0.0, seconds[1] / rows[1])
