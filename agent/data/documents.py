"""What reading the owner's text gives: documents, what was left out and why, and limits on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, TypeAlias

MIB = 1024 * 1024

Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says in a conversation.

    Attributes:
        role: who says it.
        content: what, as in :attr:`Document.text`; never blank.
    """

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """One piece of the owner's text that hangs together.

    Attributes:
        path: the file it came from.
        text: Unicode, lines ended by newlines, no control characters but those and tabs; never blank.
        size: bytes of the file that it came from.
        turns: of a conversation, ended by the assistant; empty for text that was written as one. Only what the
            assistant says is learned. :meth:`conversation` makes the text that belongs to them.
    """

    path: Path
    text: str
    size: int = 0
    turns: tuple[Turn, ...] = ()

    @classmethod
    def conversation(cls, path: Path, turns: Sequence[Turn], *, size: int = 0) -> Self:
        """Make a document of a conversation; its text is what was said, without who said it."""
        return cls(path=path, text="\n\n".join(turn.content for turn in turns), size=size, turns=tuple(turns))


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder, or a line of a file, that was not read.

    Attributes:
        path: the file or folder.
        reason: why, as a phrase for a person: ``is not text``, ``is larger than 4 MiB``, ``has a broken line 3``.
    """

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """How much is read at most, so that a wrong folder costs neither the memory nor the day.

    Attributes:
        file_bytes: a larger file is skipped.
        records_bytes: the same for files of one object a line, which are many documents.
        total_bytes: files after this many bytes in all are skipped.
        files: files after this many are skipped.
    """

    file_bytes: int = 4 * MIB
    records_bytes: int = 32 * MIB
    total_bytes: int = 64 * MIB
    files: int = 50_000


@dataclass(frozen=True, slots=True)
class Documents:
    """All that was read from the owner's sources.

    Attributes:
        documents: at least one.
        skipped: what was left out.
    """

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def characters(self) -> int:
        """Characters of text in all."""
        return sum(len(document.text) for document in self.documents)


@dataclass(frozen=True, slots=True)
class Survey:
    """What a source holds, as the owner is shown it before saying yes.

    Attributes:
        files: how many files hold text.
        size: their bytes.
        characters: characters of text in them.
        by_suffix: files by suffix such as ``.md``; the empty string for none.
        skipped: what would be left out.
    """

    files: int
    size: int
    characters: int
    by_suffix: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
