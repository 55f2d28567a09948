"""The prepare job: the owner's text becomes windows of tokens, by the base's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable

from agent.data.sources import read_documents
from agent.data.windows import build_windows
from agent.llm.tokenizer import LlamaTokenizer
from agent.training.job import PrepareJob, PrepareResult, Progress
from agent.training.leaving import Leaving
from agent.training.resident import peak_rss_mb
from agent.training.windows_file import write_windows


def prepare(job: PrepareJob, on_progress: Callable[[Progress], None], leaving: Leaving) -> PrepareResult:
    """Read, split, tokenise and write the text of a job.

    Raises:
        NoTextError: there is no text, or too little.
        ModelError: the base's tokenizer cannot be used.
        TrainingPausedError: it was asked to leave.
    """
    on_progress(Progress(phase="read"))
    documents = read_documents(list(job.sources))
    leaving.check()
    on_progress(Progress(phase="tokenise"))
    with LlamaTokenizer(base_path=job.base_path) as tokenizer:
        windows = build_windows(
            documents,
            tokenizer,
            window=job.window,
            holdout_fraction=job.holdout_fraction,
            seed=job.seed,
            max_windows=job.max_windows,
            max_heldout_windows=job.max_heldout_windows,
        )
    leaving.check()
    on_progress(Progress(phase="write"))
    job.out_dir.mkdir(parents=True, exist_ok=True)
    train_path, heldout_path = job.out_dir / "train.npz", job.out_dir / "heldout.npz"
    write_windows(train_path, windows.train)
    write_windows(heldout_path, windows.heldout)
    return PrepareResult(
        train_path=train_path,
        heldout_path=heldout_path,
        documents=len(documents.documents),
        passages=windows.counts.passages,
        repeats=windows.counts.repeats,
        train_windows=len(windows.train),
        heldout_windows=len(windows.heldout),
        tokens=int(windows.train.size + windows.heldout.size),
        skipped=tuple((str(skipped.path), skipped.reason) for skipped in documents.skipped),
        peak_rss_mb=peak_rss_mb(),
    )
