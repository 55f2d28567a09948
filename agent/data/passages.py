"""Cuts documents into passages: the pieces that are compared, and kept for training or for judging.

Borders are found from the text itself: a passage may end only after a paragraph, and does so early where a hash of that
paragraph says so. Where text is put in or taken out, the borders after it fall where they fell before (content-defined
chunking: Muthitacharoen et al. 2001, *A Low-bandwidth Network File System*, section 3.1).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from zlib import crc32

from agent.data.documents import Turn

PASSAGE_CHARACTERS = 1500
_LONGEST = 2 * PASSAGE_CHARACTERS
_BREAK_ONE_IN = 3
_PARAGRAPHS = re.compile(r"\n\n+")
_BLANKS = re.compile(r"\s+")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?;:。！？])\s+|\n")  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, or a whole conversation.

    Attributes:
        document: index of its document.
        text: as written; of a conversation, what user and assistant say, since its instructions may be the same in all.
        position: a number in [0, 1) from the SHA-256 of its normalised text: the same wherever and whenever that text
            is met, and spread evenly. Passages below the held-out fraction are held out.
        digest: that SHA-256.
    """

    document: int
    text: str
    position: float
    digest: bytes


def normalise(text: str) -> str:
    """Give text as it is compared: NFKC, case folded, blanks collapsed."""
    return _BLANKS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def make_passage(document: int, text: str) -> Passage:
    """Give the passage with its digest and position."""
    return _passage(document, text, b"bramble/passage/1\0" + _bytes(text))


def make_conversation(document: int, turns: Sequence[Turn]) -> Passage:
    """Give the passage that is a whole conversation; its digest is that of all turns and who says them."""
    said = "\n\n".join(turn.content for turn in turns if turn.role != "system")
    hashed = b"".join(turn.role.encode() + b"\0" + _bytes(turn.content) + b"\0" for turn in turns)
    return _passage(document, said, b"bramble/conversation/1\0" + hashed)


def _passage(document: int, text: str, hashed: bytes) -> Passage:
    digest = sha256(hashed).digest()
    position = int.from_bytes(digest[:6], "big") / float(1 << 48)
    return Passage(document=document, text=text, position=position, digest=digest)


def _bytes(text: str) -> bytes:
    return normalise(text).encode("utf-8", "surrogatepass")


def split_passages(text: str) -> Iterator[str]:
    """Cut text into passages of about ``PASSAGE_CHARACTERS``, at paragraph borders where there are any."""
    waiting: list[str] = []
    length = 0
    for paragraph in _paragraphs(text):
        if waiting and length + len(paragraph) > _LONGEST:
            yield "\n\n".join(waiting)
            waiting, length = [], 0
        waiting.append(paragraph)
        length += len(paragraph)
        if length >= PASSAGE_CHARACTERS or (length >= PASSAGE_CHARACTERS // 2 and _ends_here(paragraph)):
            yield "\n\n".join(waiting)
            waiting, length = [], 0
    if waiting:
        yield "\n\n".join(waiting)


def _ends_here(paragraph: str) -> bool:
    """Tell from the paragraph alone whether a passage ends after it."""
    return crc32(normalise(paragraph).encode("utf-8", "surrogatepass")) % _BREAK_ONE_IN == 0


def _paragraphs(text: str) -> Iterator[str]:
    """Give the paragraphs, those longer than a passage may be in parts."""
    for paragraph in _PARAGRAPHS.split(text):
        if not paragraph.strip():
            continue
        if len(paragraph) <= _LONGEST:
            yield paragraph
        else:
            yield from _parts(paragraph)


def _parts(paragraph: str) -> Iterator[str]:
    """Cut a long paragraph after lines or sentences, or anywhere where it has neither."""
    start = 0
    while len(paragraph) - start > _LONGEST:
        ends = [match.end() for match in _SENTENCE_ENDS.finditer(paragraph, start + 1, start + PASSAGE_CHARACTERS)]
        end = ends[-1] if ends and ends[-1] > start else start + PASSAGE_CHARACTERS
        yield paragraph[start:end]
        start = end
    if paragraph[start:].strip():
        yield paragraph[start:]
