"""Which paragraphs are worth reading: English prose, said once."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tools.seedling.exclude import words_of
from tools.seedling.extract import Block, Document

_COMMON = frozenset(  # a text reads better than a hundred quoted words
    "the of to and a in is that for it as with on be are this you not or by an can from if have at which will but was "  # noqa: SIM905
    "all has when your no one we they there their may do he his her she i me my so what who how into out use up then "
    "them been must should any does more than only other its were had our these those would could about".split()
)
_LEAST_COMMON = 0.2
_LONG = 8
_LEGAL = re.compile(
    r"permission is (?:hereby )?granted|without warranty|free documentation license|all rights reserved|"
    r"copyright \(?[c©]|lorem ipsum|INFO-DIR-SECTION|START-INFO-DIR|see the changelog|merchantability",
    re.IGNORECASE,
)
_LETTERS = re.compile(r"[A-Za-z ]")
_ODD = re.compile(r"[^\x20-\x7e]")


def is_prose(text: str) -> bool:
    """Whether a paragraph reads as English: mostly letters, enough small words, no licence boilerplate."""
    if len(_LETTERS.findall(text)) < 0.8 * len(text) or len(_ODD.findall(text)) > 0.05 * len(text) + 1:
        return False
    if _LEGAL.search(text):
        return False
    words = words_of(text)
    if len(words) < _LONG:
        return True
    return sum(word in _COMMON for word in words) >= _LEAST_COMMON * len(words)


def prose_blocks(document: Document) -> list[Block]:
    """The blocks worth keeping: prose, and the headings and terms that introduce it."""
    kept: list[Block] = []
    waiting: list[Block] = []
    for block in document.blocks:
        words = len(words_of(block.text))
        if block.kind in {"heading", "term"}:
            if words and len(block.text) < 120:
                # Only the nearest heading and term before a paragraph say what it is about.
                waiting = [*[b for b in waiting if b.kind == "heading" and block.kind == "term"], block]
        elif words >= (5 if block.kind == "text" else 3) and is_prose(block.text):
            kept += waiting
            waiting = []
            kept.append(block)
    return kept


_SHINGLE = 8
_SAMPLE = 4
_MOSTLY = 0.5


class SeenBefore:
    """Recognises paragraphs that repeat, wholly or mostly, what was read before."""

    def __init__(self) -> None:
        self._whole: set[int] = set()
        self._parts: set[int] = set()

    def repeats(self, text: str) -> bool:
        """Whether more than half of the text was seen before; remembers it either way.

        Shingles of eight words with numbers set aside, of which one in four (by hash) is compared.
        """
        words = ["0" if word.isdigit() else word for word in words_of(text)]
        whole = hash(tuple(words))
        if whole in self._whole:
            return len(words) > 3
        self._whole.add(whole)
        hashes = (hash(tuple(words[i : i + _SHINGLE])) for i in range(len(words) - _SHINGLE + 1))
        sample = [value for value in hashes if value % _SAMPLE == 0]
        seen = sum(value in self._parts for value in sample)
        self._parts.update(sample)
        return seen > _MOSTLY * len(sample)


def render(blocks: Iterable[Block]) -> str:
    """Blocks as plain text: paragraphs apart, items as ``- item``, terms on a line above their explanation."""
    lines: list[str] = []
    before = ""
    for block in blocks:
        tight = before == "term" or (before == block.kind == "item")
        lines.append("" if not lines else "\n" if tight else "\n\n")
        lines.append(f"- {block.text}" if block.kind == "item" else block.text)
        before = block.kind
    return "".join(lines)
