"""What this machine can do with a base: tokens a second training and generating, memory, and time of a round."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.data.packing import WindowSet
from agent.llm.gguf_file import open_gguf, sha256_file
from agent.llm.runtime import Runtime
from agent.training.job import Compute, Progress, TrainJob
from agent.training.process import run_worker
from agent.training.resident import peak_rss_mb
from agent.training.windows_file import write_windows

PROMPT_TOKENS = 256
ANSWER_TOKENS = 32
TIMED_STEPS = 3
_NEVER = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSize:
    """How much a device does in one round.

    Attributes:
        steps: optimiser steps.
        batch: windows a step.
        window: tokens a window.
        judged: windows that are read to judge a release, for each of the models that are compared.
        rank: of the adapter.
        alpha: of the adapter.
        target_modules: last names of the layers it changes.
    """

    steps: int
    batch: int
    window: int
    judged: int
    rank: int
    alpha: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingSpeed:
    """How training went.

    Attributes:
        tok_s: tokens a second, start-up not included.
        start_seconds: from starting the worker to the first step's beginning.
        peak_mb: largest resident size of the worker, MiB.
        compute: the arithmetic that was used.
    """

    tok_s: float
    start_seconds: float
    peak_mb: float
    compute: str


@dataclass(frozen=True, slots=True)
class GeneratingSpeed:
    """How llama.cpp ran the base.

    Attributes:
        read_tok_s: tokens a second of a prompt.
        tok_s: tokens a second of an answer.
        peak_mb: largest resident size of this process, MiB.
    """

    read_tok_s: float
    tok_s: float
    peak_mb: float


_MODELS_COMPARED = 2


def round_seconds(size: RoundSize, training: TrainingSpeed, generating: GeneratingSpeed) -> float:
    """Estimate how long one round keeps this machine busy: starting, training, and judging what comes of it."""
    trained = size.steps * size.batch * size.window
    judged = _MODELS_COMPARED * size.judged * size.window
    return training.start_seconds + trained / training.tok_s + judged / generating.read_tok_s


async def measure_training(
    base: Path,
    size: RoundSize,
    *,
    threads: int,
    room: Path,
    compute: Compute = "auto",
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingSpeed:
    """Train a few steps on random tokens in a worker, as a round would.

    Args:
        base: the GGUF.
        size: of the round.
        threads: to compute on.
        room: an empty folder; its owner removes it.
        compute: arithmetic of the frozen layers.
        on_progress: called with the worker's progress.

    Raises:
        ModelError: the base cannot be trained.
        WorkerCrashedError: the worker ended; most likely memory ran out.
    """
    steps = TIMED_STEPS + 1  # the first one warms up
    vocab = open_gguf(base).config.vocab
    tokens = np.random.default_rng(0).integers(0, vocab, (steps * size.batch, size.window), dtype=np.uint32)
    windows = room / "windows.npz"
    write_windows(windows, WindowSet.plain(tokens))
    job = TrainJob(
        base_path=base,
        base_sha256=sha256_file(base),
        threads=threads,
        windows_path=windows,
        rank=size.rank,
        alpha=size.alpha,
        target_modules=size.target_modules,
        steps=steps,
        batch_size=size.batch,
        compute=compute,
        checkpoint_dir=room / "checkpoint",
        checkpoint_seconds=_NEVER,
        out_dir=room / "out",
    )
    ends: list[float] = []

    def hear(progress: Progress) -> None:
        if progress.phase == "train" and progress.step > len(ends):
            ends.append(time.monotonic())
        if on_progress is not None:
            on_progress(progress)

    began = time.monotonic()
    result = await run_worker(job, on_progress=hear)
    a_step = float(np.median(np.diff(ends)))
    return TrainingSpeed(
        tok_s=size.batch * size.window / a_step,
        start_seconds=max(0.0, ends[0] - began - a_step),
        peak_mb=result.peak_rss_mb,
        compute=result.compute,
    )


def measure_generating(base: Path, *, threads: int) -> GeneratingSpeed:
    """Read a prompt of random tokens and go on from it, with llama.cpp in this process.

    Raises:
        ModelError: llama.cpp cannot run the base.
    """
    with Runtime(
        base_path=base, n_ctx=PROMPT_TOKENS + ANSWER_TOKENS, n_threads=threads, n_batch=PROMPT_TOKENS, scoring=False
    ) as runtime:
        drawn = np.random.default_rng(0).integers(0, runtime.vocabulary.n_vocab, 2 * PROMPT_TOKENS + ANSWER_TOKENS)
        another, prompt, answer = np.split(drawn, (PROMPT_TOKENS, 2 * PROMPT_TOKENS))
        _read(runtime, another.tolist())  # the first touch of the weights is the disk's speed
        began = time.monotonic()
        _read(runtime, prompt.tolist())
        read = time.monotonic()
        for place, token in enumerate(answer.tolist(), start=PROMPT_TOKENS):
            runtime.advance(token, place)
        done = time.monotonic()
    return GeneratingSpeed(
        read_tok_s=PROMPT_TOKENS / (read - began), tok_s=ANSWER_TOKENS / (done - read), peak_mb=peak_rss_mb()
    )


def _read(runtime: Runtime, prompt: list[int]) -> None:
    """Compute a prompt of which nothing is known yet."""
    position = runtime.recall(prompt)
    while position < len(prompt):
        position = runtime.read(prompt, position)
