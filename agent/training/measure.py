"""The measure job: losses by the model that trains, to hold against llama.cpp's."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from agent.llm.adapter import Adapter, read_adapter
from agent.llm.gguf_file import GgufModel, open_gguf
from agent.training.job import EvaluateResult, MeasureJob, Progress
from agent.training.leaving import Leaving
from agent.training.lora import LoraModel
from agent.training.model import PackedModel, build_packed_model, mean_loss
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
    targets = len(windows) * (windows.shape[1] - 1)
    batches = [windows[at : at + job.batch_size] for at in range(0, len(windows), job.batch_size)]
    steps = len(batches) * len(job.variants)
    on_progress(Progress(phase="load", steps=steps))
    began = time.monotonic()
    losses: dict[str, float] = {}
    done = 0
    for variant in job.variants:
        adapter = None if variant.adapter is None else read_adapter(variant.adapter)
        model = _model(job, base, adapter)
        nll = 0.0
        for batch in batches:
            leaving.check()
            with torch.inference_mode():
                loss = mean_loss(model, torch.from_numpy(batch.astype(np.int64))).item()
            nll += loss * len(batch) * (windows.shape[1] - 1)
            done += 1
            on_progress(Progress(phase="evaluate", step=done, steps=steps, loss=loss))
        losses[variant.name] = nll / targets
    return EvaluateResult(losses=losses, targets=targets, seconds=time.monotonic() - began, peak_rss_mb=peak_rss_mb())


def _model(job: MeasureJob, base: GgufModel, adapter: Adapter | None) -> PackedModel:
    """Build the base with an adapter; building is cheap, because weights stay where they are."""
    model = build_packed_model(base, compute=job.compute, threads=job.threads)
    if adapter is not None:
        lora = LoraModel(
            model=model,
            rank=adapter.rank,
            alpha=adapter.alpha,
            target_modules=adapter.target_modules,
            base_sha256=adapter.base_sha256,
        )
        lora.load(adapter)
    return model
