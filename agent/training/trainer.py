"""The train job: AdamW on an adapter over packed weights, in steps that can be left and taken up again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from agent.llm.adapter import Adapter, read_adapter, write_peft
from agent.llm.adapter_gguf import check_fits, write_gguf_adapter
from agent.llm.gguf_file import GgufModel, check_base, open_gguf, target_shapes
from agent.paths import explained_disk, write_atomically
from agent.training.job import Progress, TrainJob, TrainResult
from agent.training.leaving import Leaving
from agent.training.resident import peak_rss_mb
from agent.training.windows_file import read_windows


def train(job: TrainJob, on_progress: Callable[[Progress], None], leaving: Leaving) -> TrainResult:
    """Train the adapter of a job, from its checkpoint where there is one, and write it in every form.

    Raises:
        BaseMismatchError: the base is another file than the job's.
        ModelError, DataError: the base, the start adapter or the windows cannot be used.
        TrainingDivergedError: a loss or gradient was not finite; ``last_good.safetensors`` holds the adapter before it.
        TrainingPausedError: it was asked to leave; a checkpoint is kept.
    """
    on_progress(Progress(phase="load", steps=job.steps))
    check_base(job.base_path, job.base_sha256)
    base = open_gguf(job.base_path)
    target_shapes(base, job.target_modules)
    windows = read_windows(job.windows_path, n_vocab=base.config.vocab)
    heldout = None if job.heldout_path is None else read_windows(job.heldout_path, n_vocab=base.config.vocab)
    start = None if job.start_adapter is None else read_adapter(job.start_adapter)
    if start is not None:
        check_fits(start, base)
    leaving.check()

    from agent.training.session import Session  # noqa: PLC0415 - seconds of imports, once nothing cheap can fail

    session = Session(
        job=job, base=base, windows=windows, heldout=heldout, start=start, on_progress=on_progress, leaving=leaving
    )
    began = time.monotonic()
    session.run()
    seconds = time.monotonic() - began
    steps = len(session.losses)
    on_progress(Progress(phase="write", step=steps, steps=job.steps, loss=session.losses[-1]))
    tail = session.losses[-max(1, steps // 10) :]
    rows = (steps - session.resumed_from) * job.batch_size * (windows.length - 1)
    return TrainResult(
        steps=steps,
        resumed_from=session.resumed_from,
        tokens=session.tokens,
        first_loss=session.losses[0],
        last_loss=sum(tail) / len(tail),
        final_loss=session.losses[-1],
        losses=tuple(session.losses),
        heldout=tuple(session.heldout),
        best_step=session.best_step,
        stopped_early=session.stopped_early,
        seed=job.seed,
        seconds=seconds,
        tok_s=rows / max(seconds, 1e-9),
        compute=session.compute,
        peak_rss_mb=peak_rss_mb(),
        adapter_path=job.out_dir / "adapter.safetensors",
        gguf_path=job.out_dir / "adapter.gguf",
        peft_path=job.out_dir / "peft",
        adapter_sha256=_write(session.lora.extract(), base, job),
        moments_path=session.write_moments() if job.keep_moments else None,
    )


def _write(adapter: Adapter, base: GgufModel, job: TrainJob) -> str:
    """Write the adapter for Bramble, for PEFT and for llama.cpp; give the SHA-256 of the first."""
    data = adapter.to_bytes()
    with explained_disk(job.out_dir):
        job.out_dir.mkdir(parents=True, exist_ok=True)
        write_peft(adapter, job.out_dir / "peft", base_name=base.path.name)
    write_gguf_adapter(adapter, base, job.out_dir / "adapter.gguf")
    write_atomically(job.out_dir / "adapter.safetensors", data)
    return hashlib.sha256(data).hexdigest()
