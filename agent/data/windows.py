"""Turns documents into windows of tokens: those to train on, and those held out to judge by.

Passages are held out by the hash of their own text, so whether one is trained on does not depend on what else is there:
adding text never moves a passage from training to held-out. (While there is so little text that its share would not
fill one window, the passages with the lowest hashes are held out in addition; more text gives those back to training,
which is the harmless direction.) Of passages that are alike one is kept, and none is held out that resembles one in
training. A conversation is one passage.

In a window, documents and conversations stand side by side without seeing one another, each a segment of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from agent.data.documents import Document, Documents
from agent.data.likeness import group_alike
from agent.data.packing import Piece, WindowSet, arrange, pack
from agent.data.passages import Passage, make_conversation, make_passage, normalise, split_passages
from agent.data.pieces import Tokenizer, conversation_pieces, text_pieces
from agent.errors import NoTextError

_MOST_HELD_OUT = 0.5


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """What became of the text.

    Attributes:
        documents: documents read, conversations included.
        conversations: how many of these are conversations.
        passages: passages they were cut into; a conversation is one.
        repeats: passages left out because another one is equal or alike.
        train_passages: passages trained on.
        heldout_passages: passages held out.
        cut: conversations that no window holds whole: cut between exchanges, or in one that is longer by itself.
        tokens: tokens in all windows, padding left out.
        targets: how many of these count.
        padding: tokens of padding in all windows.
    """

    documents: int
    conversations: int
    passages: int
    repeats: int
    train_passages: int
    heldout_passages: int
    cut: int
    tokens: int
    targets: int
    padding: int


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of tokens.

    Attributes:
        train: at least one, in an order drawn by the seed.
        heldout: at least one, in order of the documents.
        counts: what became of the text.
    """

    train: WindowSet
    heldout: WindowSet
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
    check: Callable[[], None] = lambda: None,
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
        check: called now and then; raises to stop.

    Raises:
        NoTextError: the text does not fill one window of each kind.
    """
    if window < 2 or not 0 < holdout_fraction <= _MOST_HELD_OUT:
        raise ValueError(f"window {window} or held-out fraction {holdout_fraction} is out of range")
    passages = list(_passages(documents))
    groups = _groups(passages)
    check()
    cutting = _Cutting(documents.documents, passages, tokenizer, window, check)
    fraction = holdout_fraction
    while True:
        train, heldout = partition(passages, groups, fraction)
        heldout_pieces = cutting.pieces(heldout, max_heldout_windows)
        raised = _raise(passages, fraction)
        if _fills(heldout_pieces, window) or raised is None:
            break
        fraction = raised
    train_pieces = cutting.pieces(train)
    repeats = len(passages) - len(train) - len(heldout)
    if not _fills(train_pieces, window) or not _fills(heldout_pieces, window):
        raise _too_little(documents, window, passages=len(passages), repeats=repeats)
    arranged = arrange(train_pieces, window)
    order = np.random.default_rng(seed).permutation(len(arranged))[:max_windows]
    train_windows = pack(train_pieces, [arranged[at] for at in order], window=window, padding=tokenizer.eos_id)
    arranged = arrange(heldout_pieces, window)[:max_heldout_windows]
    heldout_windows = pack(heldout_pieces, arranged, window=window, padding=tokenizer.eos_id)
    padding = int(train_windows.padding.sum() + heldout_windows.padding.sum())
    counts = WindowCounts(
        documents=len(documents.documents),
        conversations=sum(1 for document in documents.documents if document.turns),
        passages=len(passages),
        repeats=repeats,
        train_passages=len(train),
        heldout_passages=len(heldout),
        cut=cutting.cut,
        tokens=int(train_windows.tokens.size + heldout_windows.tokens.size) - padding,
        targets=train_windows.counted + heldout_windows.counted,
        padding=padding,
    )
    return Windows(train=train_windows, heldout=heldout_windows, counts=counts)


class _Cutting:
    """Cuts passages into pieces; conversations are cut once, whichever side they turn out to be on."""

    def __init__(
        self,
        documents: Sequence[Document],
        passages: Sequence[Passage],
        tokenizer: Tokenizer,
        window: int,
        check: Callable[[], None],
    ) -> None:
        self._documents = documents
        self._passages = passages
        self._tokenizer = tokenizer
        self._window = window
        self._check = check
        self._conversations: dict[int, tuple[list[Piece], bool]] = {}

    @property
    def cut(self) -> int:
        """How many of the conversations so far no window holds whole."""
        return sum(1 for _, whole in self._conversations.values() if not whole)

    def pieces(self, indices: Sequence[int], at_most: int | None = None) -> list[Piece]:
        """Give the pieces of some passages, in order: those that follow one another in a document stay together.

        Args:
            indices: of the passages, in order.
            at_most: how many windows they are for; those of lowest hash that fill so many. None for all.
        """
        chosen = indices if at_most is None else sorted(self._lowest(indices, at_most * self._window))
        found: list[Piece] = []
        for run in _runs(chosen, self._passages):
            self._check()
            if self._is_conversation(run[0]):
                found += self._conversation(run[0])
            else:
                text = "\n\n".join(self._passages[index].text for index in run)
                found += text_pieces(text, self._tokenizer, self._window)
        return found

    def _is_conversation(self, index: int) -> bool:
        return bool(self._documents[self._passages[index].document].turns)

    def _conversation(self, index: int) -> list[Piece]:
        if index not in self._conversations:
            turns = self._documents[self._passages[index].document].turns
            self._conversations[index] = conversation_pieces(turns, self._tokenizer, self._window)
        return self._conversations[index][0]

    def _lowest(self, indices: Iterable[int], tokens: int) -> set[int]:
        """Give the passages of lowest hash that fill so many tokens: the same ones while the text grows elsewhere."""
        chosen: set[int] = set()
        for index in sorted(indices, key=lambda index: self._passages[index].position):
            if tokens <= 0:
                break
            chosen.add(index)
            if self._is_conversation(index):
                tokens -= sum(len(piece) for piece in self._conversation(index))
            else:
                tokens -= len(self._tokenizer.encode(self._passages[index].text)) + 1
        return chosen


def _passages(documents: Documents) -> Iterator[Passage]:
    """Cut text into passages; a conversation is one."""
    for index, document in enumerate(documents.documents):
        if document.turns:
            yield make_conversation(index, document.turns)
        else:
            for text in split_passages(document.text):
                yield make_passage(index, text)


def _fills(pieces: Sequence[Piece], window: int) -> bool:
    """Tell whether some pieces are a window of tokens."""
    return sum(len(piece) for piece in pieces) >= window


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


def _runs(indices: Sequence[int], passages: Sequence[Passage]) -> Iterator[list[int]]:
    """Give each unbroken run of passages of one document."""
    run: list[int] = []
    for index in indices:
        if run and (index != run[-1] + 1 or passages[index].document != passages[run[-1]].document):
            yield run
            run = []
        run.append(index)
    if run:
        yield run


def _too_little(documents: Documents, window: int, *, passages: int, repeats: int) -> NoTextError:
    """Say how much text there is and how much is needed."""
    needed = 16 * window
    said = f", {repeats} of its {passages} passages repeat others" if repeats else ""
    return NoTextError(
        f"{documents.characters:,} characters of text are too little for one window of {window} tokens to train on "
        f"and one to judge by{said}",
        advice=f"Add text: about {needed:,} characters of it that differ are enough to begin.",
    )
