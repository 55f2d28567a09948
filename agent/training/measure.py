"""The measure job: losses by the model that trains, to hold against llama.cpp's."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from agent.llm.adapter import read_adapter
from agent.llm.gguf_file import open_gguf
from agent.training.batches import pass_of
from agent.training.compute import resolve_compute
from agent.training.decoder import Decoder
from agent.training.job import EvaluateResult, MeasureJob, Progress
from agent.training.leaving import Leaving
from agent.training.lora import put_on
from agent.training.resident import peak_rss_mb
from agent.training.windows_file import read_windows


def measure(job: MeasureJob, on_progress: Callable[[Progress], None], leaving: Leaving) -> EvaluateResult:
    """Measure every variant of the job on all of its windows.

    Raises:
        ModelError: the base or an adapter cannot be used.
        DataError: the windows cannot be used.
        TrainingPausedError: it was asked to leave.
    """
    base = open_gguf(job.base_path)
    windows = read_windows(job.windows_path, n_vocab=base.config.vocab, at_most=job.max_windows)
    torch.set_num_threads(job.threads)
    batches = [windows.take(slice(at, at + job.batch_size)) for at in range(0, len(windows), job.batch_size)]
    steps = len(batches) * len(job.variants)
    on_progress(Progress(phase="load", steps=steps))
    began = time.monotonic()
    losses: dict[str, float] = {}
    done = 0
    for variant in job.variants:
        adapter = None if variant.adapter is None else read_adapter(variant.adapter)
        model = Decoder(
            base,
            compute=resolve_compute(job.compute),
            threads=job.threads,
            context=windows.length,
            before_use=leaving.check,
        )
        if adapter is not None:
            put_on(model, adapter)
        nll = 0.0
        for batch in batches:
            with torch.no_grad():
                loss = model.loss(pass_of(batch)).item()
            nll += loss
            done += 1
            on_progress(Progress(phase="evaluate", step=done, steps=steps, loss=loss / max(1, batch.counted)))
        losses[variant.name] = nll / max(1, windows.counted)
    return EvaluateResult(
        losses=losses, targets=windows.counted, seconds=time.monotonic() - began, peak_rss_mb=peak_rss_mb()
    )
