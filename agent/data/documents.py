"""What reading the owner's text gives: documents, what was left out and why, and limits on both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Document:
    """One piece of the owner's text that hangs together.

    Attributes:
        path: the file it came from.
        text: Unicode, lines ended by newlines, no control characters but those and tabs; never blank.
        size: bytes of the file that it came from.
    """

    path: Path
    text: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that was not read.

    Attributes:
        path: the file or folder.
        reason: why, as a phrase for a person: ``is not text``, ``is larger than 4 MiB``.
    """

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """How much is read at most, so that a wrong folder costs neither the memory nor the day.

    Attributes:
        file_bytes: a larger file is skipped.
        total_bytes: files after this many bytes in all are skipped.
        files: files after this many are skipped.
    """

    file_bytes: int = 4 * MIB
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
