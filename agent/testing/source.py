"""The kit for sources of text."""

from __future__ import annotations

from pathlib import Path

from agent.data.decoding import NotTextError
from agent.data.documents import Document, Skipped
from agent.data.sources import Source
from agent.testing.promises import expecting, promise


def check_source(source: Source, path: Path) -> None:
    """Check what every source promises, on a file that it is meant to read.

    Raises:
        BrokenPromiseError: the first promise that is broken.
    """
    promise(isinstance(source, Source), "a source has a name, accepts() and read()")
    promise(source.accepts(path), f"a source accepts the file it is meant for ({path.name})")
    data = path.read_bytes()
    found = source.read(path, data)
    documents = [item for item in found if not isinstance(item, Skipped)]
    promise(bool(documents), "a file with text gives at least one document")
    for skipped in [item for item in found if isinstance(item, Skipped)]:
        promise(skipped.path == path and bool(skipped.reason), "what is left out names the file and the reason")
    for document in documents:
        promise(isinstance(document, Document), "read() gives Document and Skipped objects")
        promise(document.path == path, "a document names the file it came from")
        promise(bool(document.text.strip()), "a document's text is never blank")
        promise("\r" not in document.text and "\0" not in document.text, "lines end with a newline alone")
        _check_turns(document)
    promise(list(found) == list(source.read(path, data)), "reading the same bytes again gives the same documents")
    with expecting(NotTextError, "bytes without text raise NotTextError"):
        source.read(path, b"")


def _check_turns(document: Document) -> None:
    """Check that a conversation can be learned from: somebody asks, the assistant answers, and nobody is silent."""
    if not document.turns:
        return
    roles = [turn.role for turn in document.turns]
    promise(set(roles) <= {"system", "user", "assistant"}, "a turn's role is system, user or assistant")
    promise(
        roles[0] != "assistant" and roles[-1] == "assistant", "a conversation ends, and does not begin, with an answer"
    )
    promise(all(turn.content.strip() for turn in document.turns), "a turn is never blank")
    whole = Document.conversation(document.path, document.turns, size=document.size)
    promise(document == whole, "a conversation's text is what its turns say (make it with Document.conversation)")
