"""The evaluate job: losses by llama.cpp, one loaded base for all variants."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from agent.errors import DataError
from agent.llm.gguf_file import open_gguf
from agent.llm.runtime import AdapterHandle, Runtime
from agent.training.job import EvaluateJob, EvaluateResult, Progress
from agent.training.leaving import Leaving
from agent.training.resident import peak_rss_mb
from agent.training.windows_file import read_windows


def evaluate(job: EvaluateJob, on_progress: Callable[[Progress], None], leaving: Leaving) -> EvaluateResult:
    """Measure every variant of the job on all of its windows: each segment alone, the loss of its targets.

    Raises:
        ModelError: the base or an adapter cannot be used.
        DataError: the windows cannot be used, or no token in them counts.
        TrainingPausedError: it was asked to leave.
    """
    base = open_gguf(job.base_path)
    windows = read_windows(job.windows_path, n_vocab=base.config.vocab, at_most=job.max_windows)
    targets = windows.counted
    if not targets:
        raise DataError(f"no token in {job.windows_path} counts", advice="Prepare the text again.")
    steps = len(job.variants) * len(windows)
    losses: dict[str, float] = {}
    done = 0
    on_progress(Progress(phase="load", steps=steps))
    with ExitStack() as stack:
        runtime = stack.enter_context(
            Runtime(base_path=job.base_path, n_ctx=job.n_ctx or windows.length, n_threads=job.threads)
        )
        loaded: dict[Path, AdapterHandle] = {}
        began = time.monotonic()
        for variant in job.variants:
            for adapter in variant.adapters:
                if adapter.path not in loaded:
                    loaded[adapter.path] = runtime.load_adapter(adapter.path)
            runtime.use([(loaded[adapter.path], adapter.scale) for adapter in variant.adapters])
            nll, counted = 0.0, 0
            for index in range(len(windows)):
                leaving.check()
                one = windows.take(slice(index, index + 1))
                found = runtime.losses(one.tokens, masks=one.targets, segments=one.segments)
                nll += float(found.nll[0])
                counted += int(found.targets[0])
                done += 1
                on_progress(Progress(phase="evaluate", step=done, steps=steps, loss=nll / max(1, counted)))
            losses[variant.name] = nll / targets
    return EvaluateResult(losses=losses, targets=targets, seconds=time.monotonic() - began, peak_rss_mb=peak_rss_mb())
