"""The prepare job: the owner's text becomes windows of tokens, by the base's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby

import numpy as np

from agent.data.documents import Documents, Turn
from agent.data.findings import Removed
from agent.data.packing import WindowSet
from agent.data.sources import read_documents
from agent.data.windows import Windows, build_windows
from agent.llm.answers import ChatEncoder
from agent.llm.chat import ChatMessage
from agent.llm.tokenizer import LlamaTokenizer
from agent.training.job import (
    PrepareJob,
    PrepareResult,
    Progress,
    SampleSpan,
    SampleWindow,
)
from agent.training.leaving import Leaving
from agent.training.resident import peak_rss_mb
from agent.training.windows_file import write_windows

_MOST_SAMPLED = 1 << 18  # tokens
_MOST_SKIPPED = 2000


class BaseTokenizer:
    """What windows need of a base: its tokens, and its chat template around conversations."""

    def __init__(self, *, tokenizer: LlamaTokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def begin_id(self) -> int | None:
        """The token that the base wants before everything that it reads; None where it wants none."""
        return self._tokenizer.begin_id

    @property
    def eos_id(self) -> int:
        """The token that ends a document."""
        return self._tokenizer.eos_id

    def encode(self, text: str) -> list[int]:
        """Give the tokens of plain text; control tokens written in it stay plain text."""
        return self._tokenizer.encode(text)

    def encode_turns(self, turns: Sequence[Turn]) -> tuple[Sequence[int], Sequence[bool]]:
        """Give the tokens of a conversation that ends with an answer, and which of them count: only the answers.

        Raises:
            UnsupportedModelError: llama.cpp does not know the base's template.
        """
        encoded = self._chat.encode([ChatMessage(turn.role, turn.content) for turn in turns])
        return encoded.tokens, encoded.counted

    def spell(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens, control tokens spelt out."""
        vocabulary = self._tokenizer.vocabulary
        return b"".join(vocabulary.piece(token, special=True) for token in tokens).decode("utf-8", "replace")

    @cached_property
    def _chat(self) -> ChatEncoder:
        return ChatEncoder(vocabulary=self._tokenizer.vocabulary, template=self._tokenizer.chat_template)


def prepare(job: PrepareJob, on_progress: Callable[[Progress], None], leaving: Leaving) -> PrepareResult:
    """Read, filter, split, tokenise and write the text of a job.

    Raises:
        NoTextError: there is no text, or too little.
        ModelError: the base's tokenizer or chat template cannot be used.
        TrainingPausedError: it was asked to leave.
    """
    on_progress(Progress(phase="read"))
    documents = read_documents(list(job.sources))
    leaving.check()
    removed = Removed()
    if job.filter_secrets:
        from agent.data.redaction import filter_documents  # noqa: PLC0415 (brings an HTTP client, never called)

        documents, removed = filter_documents(documents, check=leaving.check)
    on_progress(Progress(phase="tokenise"))
    with LlamaTokenizer(base_path=job.base_path) as opened:
        tokenizer = BaseTokenizer(tokenizer=opened)
        windows = build_windows(
            documents,
            tokenizer,
            window=job.window,
            holdout_fraction=job.holdout_fraction,
            seed=job.seed,
            max_windows=job.max_windows,
            max_heldout_windows=job.max_heldout_windows,
            check=leaving.check,
        )
        samples = tuple(_samples(windows.train, job.samples, tokenizer))
    leaving.check()
    on_progress(Progress(phase="write"))
    job.out_dir.mkdir(parents=True, exist_ok=True)
    write_windows(job.out_dir / "train.npz", windows.train)
    write_windows(job.out_dir / "heldout.npz", windows.heldout)
    return _result(job, documents, removed, windows, samples)


def _result(
    job: PrepareJob, documents: Documents, removed: Removed, windows: Windows, samples: tuple[SampleWindow, ...]
) -> PrepareResult:
    counts = windows.counts
    return PrepareResult(
        train_path=job.out_dir / "train.npz",
        heldout_path=job.out_dir / "heldout.npz",
        documents=counts.documents,
        conversations=counts.conversations,
        cut=counts.cut,
        passages=counts.passages,
        repeats=counts.repeats,
        train_passages=counts.train_passages,
        heldout_passages=counts.heldout_passages,
        train_windows=len(windows.train),
        heldout_windows=len(windows.heldout),
        tokens=counts.tokens,
        targets=counts.targets,
        padding=counts.padding,
        removed={str(kind): count for kind, count in removed.counts.items()},
        examples={str(kind): shown for kind, shown in removed.examples.items()},
        samples=samples,
        skipped=tuple((str(skipped.path), skipped.reason) for skipped in documents.skipped[:_MOST_SKIPPED]),
        skipped_count=len(documents.skipped),
        peak_rss_mb=peak_rss_mb(),
    )


def _samples(windows: WindowSet, count: int, tokenizer: BaseTokenizer) -> Iterator[SampleWindow]:
    """Give the first windows as text, as many as a line of a worker's output can carry."""
    for row in range(min(count, len(windows), _MOST_SAMPLED // windows.length)):
        padding = int(windows.padding[row])
        segments = [
            tuple(_spans(windows.tokens[row, start:end], windows.targets[row, start:end], tokenizer))
            for start, end in windows.bounds(row)
            if start < windows.length - padding
        ]
        yield SampleWindow(segments=tuple(segments), padding=padding)


def _spans(
    tokens: np.ndarray[tuple[int], np.dtype[np.uint32]],
    targets: np.ndarray[tuple[int], np.dtype[np.bool_]],
    tokenizer: BaseTokenizer,
) -> Iterator[SampleSpan]:
    """Give the text of a segment, cut where what counts begins and ends."""
    pairs = zip(targets.tolist(), tokens.tolist(), strict=True)
    for counts, group in groupby(pairs, key=lambda pair: pair[0]):
        yield SampleSpan(text=tokenizer.spell([token for _, token in group]), counts=counts)
