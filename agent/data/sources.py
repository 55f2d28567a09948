"""Reads the owner's files into documents.

A *source* knows how to read some kinds of file. The built-in ones read plain text, Markdown, HTML and source code, and
conversations and instructions as JSONL; others plug in through the entry point group ``bramble.sources`` and are asked
first, in order of name, so that a plug-in can take over a kind of file. ``agent.testing.check_source`` tells whether
one behaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from agent.data.decoding import NotTextError, decode_text, tidy
from agent.data.documents import Document, Documents, ReadLimits, Skipped, Survey
from agent.data.jsonl import RECORD_SUFFIXES, JsonlSource
from agent.data.markup import html_to_text
from agent.data.walking import walk
from agent.errors import DataError, NoTextError

ENTRY_POINTS = "bramble.sources"
_HTML = frozenset({".html", ".htm", ".xhtml"})
_SHOWN = 3


@runtime_checkable
class Source(Protocol):
    """Something that reads some kinds of file."""

    @property
    def name(self) -> str:
        """The entry point's name."""
        ...

    def accepts(self, path: Path) -> bool:
        """Tell, by its name alone, whether this source reads the file."""
        ...

    def read(self, path: Path, data: bytes) -> Sequence[Document | Skipped]:
        """Give the documents in a file's bytes, which are within the limits, and the parts of it that were left out.

        A document is text that was written as one, or a conversation (:meth:`Document.conversation`), of which only
        what the assistant says is learned.

        Raises:
            NotTextError: there is no text in them; its argument is the reason, as a phrase that follows the name.
        """
        ...


class FileSource:
    """Plain text, Markdown, reStructuredText, HTML and source code: a file is one document."""

    name = "files"

    def accepts(self, path: Path) -> bool:  # noqa: ARG002
        """Accept any name: content decides, since plain text carries every suffix or none."""
        return True

    def read(self, path: Path, data: bytes) -> Sequence[Document]:
        """Give the file's text, without the markup where it is HTML."""
        text = decode_text(data)
        if path.suffix.lower() in _HTML:
            text = tidy(html_to_text(text))
        if not text.strip():
            raise NotTextError("is empty")
        return (Document(path=path, text=text, size=len(data)),)


def load_sources() -> tuple[Source, ...]:
    """Give all installed sources: plug-ins in order of name, then the built-in ones.

    Raises:
        DataError: a plug-in cannot be loaded.
    """
    built_in: tuple[Source, ...] = (JsonlSource(), FileSource())
    found: list[Source] = []
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        if entry.name in {source.name for source in built_in}:
            continue
        try:
            source = entry.load()()
        except Exception as cause:
            raise DataError(
                f"the source plug-in {entry.name} ({entry.value}) does not load: {cause}",
                advice="Update or uninstall the package that brings it.",
            ) from cause
        found.append(source)
    return (*found, *built_in)


def read_documents(
    paths: Sequence[Path], *, limits: ReadLimits | None = None, sources: Sequence[Source] | None = None
) -> Documents:
    """Read all text under the paths, in the order in which :func:`~agent.data.walking.walk` finds it.

    Args:
        paths: files and folders that the owner named; files met twice are read once.
        limits: how much is read at most.
        sources: what reads the files; the installed ones if not given.

    Raises:
        NoTextError: nothing there holds text.
    """
    limits = limits or ReadLimits()
    sources = load_sources() if sources is None else sources
    documents: list[Document] = []
    skipped: list[Skipped] = []
    for found in _read(paths, limits, sources):
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            documents.append(found)
    if not documents:
        raise _no_text(paths, skipped)
    return Documents(documents=tuple(documents), skipped=tuple(skipped))


def survey(
    paths: Sequence[Path], *, limits: ReadLimits | None = None, sources: Sequence[Source] | None = None
) -> Survey:
    """Count what reading the paths would give, keeping none of it.

    Raises:
        NoTextError: nothing there holds text.
    """
    size = characters = 0
    by_suffix: Counter[str] = Counter()
    seen: set[Path] = set()
    skipped: list[Skipped] = []
    for found in _read(paths, limits or ReadLimits(), load_sources() if sources is None else sources):
        if isinstance(found, Skipped):
            skipped.append(found)
            continue
        characters += len(found.text)
        if found.path not in seen:
            seen.add(found.path)
            size += found.size
            by_suffix[found.path.suffix.lower()] += 1
    if not seen:
        raise _no_text(paths, skipped)
    return Survey(
        files=len(seen),
        size=size,
        characters=characters,
        by_suffix=dict(sorted(by_suffix.items())),
        skipped=tuple(skipped),
    )


def _read(paths: Sequence[Path], limits: ReadLimits, sources: Sequence[Source]) -> Iterator[Document | Skipped]:
    """Read file by file within the limits."""
    files = total = 0
    for found in walk(paths):
        if isinstance(found, Skipped):
            yield found
            continue
        try:
            size = found.stat().st_size
            largest = limits.records_bytes if found.suffix.lower() in RECORD_SUFFIXES else limits.file_bytes
            if size > largest:
                yield Skipped(found, f"is larger than {largest:,} bytes")
                continue
            if files >= limits.files or total + size > limits.total_bytes:
                yield Skipped(found, f"comes after the first {limits.files:,} files or {limits.total_bytes:,} bytes")
                continue
            with found.open("rb") as file:
                data = file.read(largest + 1)
        except OSError as cause:
            yield Skipped(found, f"cannot be read ({cause.strerror})")
            continue
        if len(data) > largest:  # it grew since it was measured
            yield Skipped(found, f"is larger than {largest:,} bytes")
            continue
        files, total = files + 1, total + len(data)
        yield from _documents(found, data, sources)


def _documents(path: Path, data: bytes, sources: Sequence[Source]) -> Iterator[Document | Skipped]:
    """Let the first source that accepts the file read it."""
    source = next((source for source in sources if source.accepts(path)), None)
    if source is None:
        yield Skipped(path, "is of a kind that no source reads")
        return
    try:
        yield from source.read(path, data)
    except NotTextError as reason:
        yield Skipped(path, str(reason))


def _no_text(paths: Sequence[Path], skipped: Sequence[Skipped]) -> NoTextError:
    """Say which paths hold no text, and the first reasons why."""
    names = ", ".join(str(path) for path in paths) or "no path"
    reasons = "; ".join(f"{item.path.name} {item.reason}" for item in skipped[:_SHOWN])
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    return NoTextError(
        f"found no text in {names}" + (f" ({reasons}{more})" if reasons else ""),
        advice="Name a folder or file with text, Markdown, HTML, source code or JSONL conversations in it.",
    )
