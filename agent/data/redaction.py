"""Takes secrets and personal data out of documents before anything is made of them.

What is found is replaced by a placeholder that says what it was, such as ``<EMAIL>``, so that the text keeps its form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from agent.data.credentials import find_credentials
from agent.data.documents import Document, Documents
from agent.data.findings import Finding, Kind, Removed, mask
from agent.data.personal import find_personal

_EXAMPLES = 5
_ORDER: tuple[Kind, ...] = ("KEY", "TOKEN", "PASSWORD", "IBAN", "CARD", "EMAIL", "PHONE")


def find_private(text: str) -> list[Finding]:
    """Give what is private in a text, in order, without overlaps; of two that overlap, the graver kind is kept."""
    found = sorted(
        [*find_credentials(text), *find_personal(text)], key=lambda f: (_ORDER.index(f.kind), f.start, -f.end)
    )
    taken = bytearray(len(text))
    kept = []
    for finding in found:
        if not any(taken[finding.start : finding.end]):
            taken[finding.start : finding.end] = b"\1" * (finding.end - finding.start)
            kept.append(finding)
    return sorted(kept, key=lambda finding: finding.start)


def redact(text: str, findings: list[Finding]) -> str:
    """Put a placeholder in the place of each finding; they are in order and do not overlap."""
    parts, place = [], 0
    for finding in findings:
        parts += [text[place : finding.start], f"<{finding.kind}>"]
        place = finding.end
    return "".join([*parts, text[place:]])


def filter_documents(documents: Documents, *, check: Callable[[], None] = lambda: None) -> tuple[Documents, Removed]:
    """Take what is private out of all documents.

    Args:
        documents: what was read.
        check: called between documents; raises to stop.

    Returns:
        The documents without it, and what it was.
    """
    counts: Counter[Kind] = Counter()
    examples: dict[Kind, list[str]] = {}

    def clean(text: str) -> str:
        findings = find_private(text)
        for finding in findings:
            counts[finding.kind] += 1
            masked = mask(text[finding.start : finding.end])
            shown = examples.setdefault(finding.kind, [])
            if len(shown) < _EXAMPLES and masked not in shown:
                shown.append(masked)
        return redact(text, findings) if findings else text

    cleaned: list[Document] = []
    for document in documents.documents:
        check()
        if document.turns:
            turns = tuple(replace(turn, content=clean(turn.content)) for turn in document.turns)
            cleaned.append(Document.conversation(document.path, turns, size=document.size))
        else:
            cleaned.append(replace(document, text=clean(document.text)))
    removed = Removed(
        counts={kind: counts[kind] for kind in _ORDER if counts[kind]},
        examples={kind: tuple(examples[kind]) for kind in _ORDER if kind in examples},
    )
    return replace(documents, documents=tuple(cleaned)), removed
