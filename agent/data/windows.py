"""Turns documents into windows of tokens: those to train on, and those held out to judge by.

Passages are held out by the hash of their own text, so whether one is trained on does not depend on what else is there:
adding text never moves a passage from training to held-out. (While there is so little text that its share would not
fill one window, the passages with the lowest hashes are held out in addition; more text gives those back to training,
which is the harmless direction.) Of passages that are alike one is kept, and none is held out that resembles one in
training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.data.documents import Documents
from agent.data.likeness import group_alike
from agent.data.passages import Passage, make_passage, normalise, split_passages
from agent.errors import NoTextError

Tokens: TypeAlias = NDArray[np.uint32]
_MOST_HELD_OUT = 0.5


class Tokenizer(Protocol):
    """What the windows need of a tokenizer."""

    @property
    def eos_id(self) -> int:
        """The token that ends a document."""
        ...

    def encode(self, text: str) -> list[int]:
        """Give the tokens of plain text; control tokens written in it stay plain text."""
        ...


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """What became of the text.

    Attributes:
        documents: documents read.
        passages: passages they were cut into.
        repeats: passages left out because another one is equal or alike.
        train_passages: passages trained on.
        heldout_passages: passages held out.
        tokens: tokens of the passages kept, with one end token for each unbroken run of them.
    """

    documents: int
    passages: int
    repeats: int
    train_passages: int
    heldout_passages: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of tokens.

    Attributes:
        train: uint32, shape ``(n, window)``, in an order drawn by the seed; n is at least 1.
        heldout: uint32, shape ``(m, window)``, in order of the documents; m is at least 1.
        counts: what became of the text.
    """

    train: Tokens
    heldout: Tokens
    counts: WindowCounts


def build_windows(
    documents: Documents,
    tokenizer: Tokenizer,
    *,
    window: int,
    holdout_fraction: float,
    seed: int = 0,
    max_windows: int | None = None,
    max_heldout_windows: int | None = None,
) -> Windows:
    """Cut the documents into windows of ``window`` tokens.

    Args:
        documents: what was read.
        tokenizer: the base's tokenizer.
        window: tokens in a window, at least 2.
        holdout_fraction: share of the passages that is held out, in (0, 0.5].
        seed: draws the order of the training windows, and which are kept where there are more than ``max_windows``.
        max_windows: training windows at most.
        max_heldout_windows: held-out windows at most; those with the lowest passage hashes are kept.

    Raises:
        NoTextError: the text does not fill one window of each kind.
    """
    if window < 2 or not 0 < holdout_fraction <= _MOST_HELD_OUT:
        raise ValueError(f"window {window} or held-out fraction {holdout_fraction} is out of range")
    passages = [
        make_passage(index, text)
        for index, document in enumerate(documents.documents)
        for text in split_passages(document.text)
    ]
    groups = _groups(passages)
    fraction = holdout_fraction
    while True:
        train, heldout = partition(passages, groups, fraction)
        heldout_tokens = _join(heldout, passages, tokenizer, window, max_heldout_windows)
        raised = _raise(passages, fraction)
        if len(heldout_tokens) or raised is None:
            break
        fraction = raised
    train_tokens = _join(train, passages, tokenizer, window)
    counts = WindowCounts(
        documents=len(documents.documents),
        passages=len(passages),
        repeats=len(passages) - len(train) - len(heldout),
        train_passages=len(train),
        heldout_passages=len(heldout),
        tokens=int(train_tokens.size + heldout_tokens.size),
    )
    if not len(train_tokens) or not len(heldout_tokens):
        raise _too_little(documents, counts, window)
    order = np.random.default_rng(seed).permutation(len(train_tokens))[:max_windows]
    return Windows(train=train_tokens[order], heldout=heldout_tokens, counts=counts)


def partition(passages: Sequence[Passage], groups: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """Give the indices of the passages to train on and of those held out, each in order.

    Of a group of passages that are alike, the one with the highest hash is kept; it is trained on unless all are below
    the fraction. So nothing held out resembles anything in training, whatever was read first.
    """
    kept: dict[int, int] = {}
    for index, passage in enumerate(passages):
        best = kept.get(groups[index])
        if best is None or passage.position > passages[best].position:
            kept[groups[index]] = index
    indices = sorted(kept.values())
    return (
        [index for index in indices if passages[index].position >= fraction],
        [index for index in indices if passages[index].position < fraction],
    )


def _groups(passages: Sequence[Passage]) -> list[int]:
    """Give each passage the number of its group: equal passages first, then those that are alike."""
    first: dict[bytes, int] = {}
    for passage in passages:
        first.setdefault(passage.digest, len(first))
    texts: dict[bytes, str] = {}
    for passage in passages:
        if passage.digest not in texts:
            texts[passage.digest] = normalise(passage.text)
    alike = group_alike(list(texts.values()))
    return [alike[first[passage.digest]] for passage in passages]


def _raise(passages: Sequence[Passage], fraction: float) -> float | None:
    """Give the fraction that holds out one passage more, or None where half of them are held out already."""
    positions = sorted({passage.position for passage in passages})
    above = [position for position in positions if position >= fraction]
    if not above or len(positions) - len(above) >= _MOST_HELD_OUT * len(positions):
        return None
    return float(np.nextafter(above[0], 2.0))


def _join(
    indices: Sequence[int],
    passages: Sequence[Passage],
    tokenizer: Tokenizer,
    window: int,
    at_most: int | None = None,
) -> Tokens:
    """Give the windows of the passages: runs that follow one another stay together, an end token closes each run."""
    budget = None if at_most is None else at_most * window
    chosen = set(indices) if budget is None else _lowest(indices, passages, tokenizer, budget)
    runs = [
        np.asarray([*tokenizer.encode(run), tokenizer.eos_id], dtype=np.uint32)
        for run in _runs(sorted(chosen), passages)
    ]
    tokens = np.concatenate([np.empty(0, np.uint32), *runs])
    count = len(tokens) // window
    if at_most is not None:
        count = min(count, at_most)
    return tokens[: count * window].reshape(count, window)


def _lowest(indices: Iterable[int], passages: Sequence[Passage], tokenizer: Tokenizer, tokens: int) -> set[int]:
    """Give the passages of lowest hash that fill so many tokens: the same ones while the text grows elsewhere."""
    chosen: set[int] = set()
    for index in sorted(indices, key=lambda index: passages[index].position):
        if tokens <= 0:
            break
        chosen.add(index)
        tokens -= len(tokenizer.encode(passages[index].text)) + 1
    return chosen


def _runs(indices: Sequence[int], passages: Sequence[Passage]) -> Iterable[str]:
    """Give the text of each unbroken run of passages of one document."""
    run: list[str] = []
    for place, index in enumerate(indices):
        run.append(passages[index].text)
        following = indices[place + 1] if place + 1 < len(indices) else None
        if following != index + 1 or passages[following].document != passages[index].document:
            yield "\n\n".join(run)
            run = []


def _too_little(documents: Documents, counts: WindowCounts, window: int) -> NoTextError:
    """Say how much text there is and how much is needed."""
    needed = 16 * window
    repeats = f", {counts.repeats} of its {counts.passages} passages repeat others" if counts.repeats else ""
    return NoTextError(
        f"{documents.characters:,} characters of text are too little for one window of {window} tokens to train on "
        f"and one to judge by{repeats}",
        advice=f"Add text: about {needed:,} characters of it that differ are enough to begin.",
    )
