"""Reads chat exports and instructions: JSON Lines, one object a line (https://jsonlines.org).

An object is known by its keys; kinds may be mixed in a file:

- ``messages``: a list of ``{"role", "content"}`` (or ``conversations`` of ``{"from", "value"}``);
- ``prompt`` and ``completion``, or ``question`` and ``answer``, each with an optional ``system``;
- ``instruction`` and ``output``, with an optional ``input``;
- ``text``: text that was written as one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from agent.data.decoding import NotTextError, tidy
from agent.data.documents import Document, Role, Skipped, Turn

RECORD_SUFFIXES = frozenset({".jsonl", ".ndjson"})
_KNOWN = "messages, prompt/completion, question/answer, instruction/output, text"
_NAMED = 20
_PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


class _UnusableError(ValueError):
    """A line cannot be used; the argument says what it is, as a phrase that follows ``line 3``."""


class JsonlSource:
    """Conversations and instructions, a document a line."""

    name = "jsonl"

    def accepts(self, path: Path) -> bool:
        """Accept ``.jsonl`` and ``.ndjson``."""
        return path.suffix.lower() in RECORD_SUFFIXES

    def read(self, path: Path, data: bytes) -> Sequence[Document | Skipped]:
        """Give a document for each line that can be used, and the reason for each that cannot.

        Raises:
            NotTextError: no line can be used.
        """
        try:
            lines = data.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as cause:
            raise NotTextError("is not UTF-8, as JSON is") from cause
        found: list[Document] = []
        broken: list[tuple[int, str]] = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found.append(_document(path, line, len(data)))
            except _UnusableError as cause:
                broken.append((number, str(cause)))
        if not found and not broken:
            raise NotTextError("is empty")
        if not found:
            number, reason = broken[0]
            raise NotTextError(f"has no line that can be used: line {number} {reason} (known are {_KNOWN})")
        return [*found, *_skipped(path, broken)]


def _skipped(path: Path, broken: Sequence[tuple[int, str]]) -> Iterator[Skipped]:
    """Name the first lines that cannot be used, and count the rest."""
    for number, reason in broken[:_NAMED]:
        yield Skipped(path, f"line {number} {reason}")
    if len(broken) > _NAMED:
        yield Skipped(path, f"{len(broken) - _NAMED} more lines cannot be used")


def _document(path: Path, line: str, size: int) -> Document:
    """Give the document that a line holds.

    Raises:
        _UnusableError: it holds none.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as cause:
        raise _UnusableError("is not JSON") from cause
    if not isinstance(record, dict):
        raise _UnusableError("is not a JSON object")
    if "text" in record and not any(first in record for first, _ in _PAIRS) and "messages" not in record:
        text = _text(record["text"])
        if not text:
            raise _UnusableError("has no text")
        return Document(path=path, text=text, size=size)
    return Document.conversation(path, _ended(_turns(record)), size=size)


def _turns(record: Mapping[str, Any]) -> Iterator[Turn]:
    """Give what each side says, blanks left out."""
    for role, content in _said(record):
        text = _text(content)
        if text:
            yield Turn(role, text)


def _said(record: Mapping[str, Any]) -> Iterator[tuple[Role, object]]:
    """Give roles and contents in the form of the record."""
    for key, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if key in record:
            yield from _messages(record[key], key, role, content)
            return
    for question, answer in _PAIRS:
        if question in record and answer in record:
            yield "system", record.get("system") or ""
            given = _text(record.get("input") or "") if question == "instruction" else ""
            asked = _text(record[question])
            yield "user", f"{asked}\n\n{given}" if given else asked
            yield "assistant", record[answer]
            return
    raise _UnusableError("has none of the known keys")


def _messages(messages: object, key: str, role: str, content: str) -> Iterator[tuple[Role, object]]:
    """Give roles and contents of a list of messages."""
    if not isinstance(messages, list):
        raise _UnusableError(f"has no list of {key}")
    for message in messages:
        if not isinstance(message, dict) or role not in message:
            raise _UnusableError(f"has a message without {role!r}")
        said_by = _ROLES.get(str(message[role]))
        if said_by is None:
            raise _UnusableError(f"has the role {str(message[role])[:20]!r}, not one of {', '.join(_ROLES)}")
        yield said_by, message.get(content) or ""


def _text(content: object) -> str:
    """Give the text of a content: a string, or a list of parts of which those of text count."""
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "\n".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        raise _UnusableError("has a content that is not text")
    return tidy(content.encode("utf-8", "replace").decode("utf-8")).strip()


def _ended(turns: Iterator[Turn]) -> Sequence[Turn]:
    """Join what one side says in a row, and leave out what nobody answers.

    Raises:
        _UnusableError: the assistant says nothing, or nobody spoke before.
    """
    joined = [
        Turn(role, "\n\n".join(turn.content for turn in group))
        for role, group in groupby(turns, lambda turn: turn.role)
    ]
    while joined and joined[-1].role != "assistant":
        joined.pop()
    if not joined:
        raise _UnusableError("has no answer")
    asked = next((place for place, turn in enumerate(joined) if turn.role == "user"), None)
    if asked is None:
        raise _UnusableError("has an answer without a question")
    return [turn for place, turn in enumerate(joined) if place > asked or turn.role != "assistant"]
