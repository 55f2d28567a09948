"""Turns text and conversations into pieces: runs of tokens no longer than a window, each of which is read alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from agent.data.documents import Turn
from agent.data.packing import Piece

_TEMPLATE_TOKENS = 8
"""Tokens that a chat template puts around a turn, about."""
_LONGEST_TOKEN = 32
"""Characters of a token, above which a conversation is taken for too long without tokenising it as a whole."""


class Tokenizer(Protocol):
    """What pieces need of a tokenizer."""

    @property
    def begin_id(self) -> int | None:
        """The token that the base wants before everything that it reads; None where it wants none."""
        ...

    @property
    def eos_id(self) -> int:
        """The token that ends a document."""
        ...

    def encode(self, text: str) -> list[int]:
        """Give the tokens of plain text; control tokens written in it stay plain text."""
        ...

    def encode_turns(self, turns: Sequence[Turn]) -> tuple[Sequence[int], Sequence[bool]]:
        """Give the tokens of a conversation that ends with an answer, and which of them count: only the answers."""
        ...


def text_pieces(text: str, tokenizer: Tokenizer, window: int) -> Iterator[Piece]:
    """Cut text into pieces in which every token counts but the first; an end token closes the last one."""
    begin = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    tokens = np.asarray([*tokenizer.encode(text), tokenizer.eos_id], dtype=np.uint32)
    room = window - len(begin)
    for start in range(0, len(tokens), room):
        part = np.concatenate([np.asarray(begin, dtype=np.uint32), tokens[start : start + room]])
        if len(part) > 1:
            targets = np.ones(len(part), dtype=np.bool_)
            targets[0] = False
            yield Piece(part, targets)


def conversation_pieces(turns: Sequence[Turn], tokenizer: Tokenizer, window: int) -> tuple[list[Piece], bool]:
    """Give the pieces of a conversation, and whether all of it is in the first.

    A conversation that fits a window is one piece. A longer one is cut between exchanges, each part after the
    instructions that it began with; of an exchange that is longer by itself, the end of the question and the beginning
    of the answer are kept.
    """
    if sum(len(turn.content) for turn in turns) <= _LONGEST_TOKEN * window:
        whole = _piece(turns, tokenizer)
        if len(whole) <= window:
            return [whole], True
    system = list(turns[:1]) if turns[0].role == "system" else []
    if system and _size(system, tokenizer) > window // 2:
        system = []
    waiting = [(exchange, _size(exchange, tokenizer)) for exchange in _exchanges(turns)]
    found: list[Piece] = []
    while waiting:
        count, room = 0, window - _size(system, tokenizer)
        while count < len(waiting) and waiting[count][1] <= room:
            room -= waiting[count][1]
            count += 1
        piece = _together(system, waiting[: max(1, count)], tokenizer)
        while len(piece) > window and count > 1:
            count -= 1
            piece = _together(system, waiting[:count], tokenizer)
        found.append(piece if len(piece) <= window else _shortened(piece, window))
        del waiting[: max(1, count)]
    return found, False


def _size(turns: Sequence[Turn], tokenizer: Tokenizer) -> int:
    """Give about how many tokens some turns are."""
    return sum(len(tokenizer.encode(turn.content)) + _TEMPLATE_TOKENS for turn in turns)


def _together(system: Sequence[Turn], exchanges: Sequence[tuple[Sequence[Turn], int]], tokenizer: Tokenizer) -> Piece:
    """Tokenise some exchanges as one conversation."""
    return _piece([*system, *(turn for exchange, _ in exchanges for turn in exchange)], tokenizer)


def _piece(turns: Sequence[Turn], tokenizer: Tokenizer) -> Piece:
    """Tokenise a conversation that may be longer than a window."""
    tokens, counted = tokenizer.encode_turns(turns)
    return Piece(np.asarray(tokens, dtype=np.uint32), np.asarray(counted, dtype=np.bool_))


def _exchanges(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """Give what is said up to each answer, instructions at the beginning left out."""
    waiting: list[Turn] = []
    for turn in turns[1:] if turns[0].role == "system" else turns:
        waiting.append(turn)
        if turn.role == "assistant":
            yield waiting
            waiting = []


def _shortened(piece: Piece, window: int) -> Piece:
    """Cut an exchange down to a window: as much of the answer as leaves half of the window to the question's end."""
    first = int(piece.targets.argmax())
    kept = max(window - first, min(len(piece) - first, window // 2))
    start = max(0, first + kept - window)
    targets = piece.targets[start : start + window].copy()
    targets[0] = False
    return Piece(piece.tokens[start : start + window], targets)
