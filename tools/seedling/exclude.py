"""What the seedling must never have read, and how a paragraph that repeats it is recognised.

The project demonstrates itself by fine-tuning on the docstrings and comments of Python's standard library (and on other
texts given on the command line). A demonstration is worth nothing on a model that has read its text before. Python's
documentation repeats many docstrings, so paths alone do not keep them out: any training paragraph that shares ten words
in a row with them, or that is as a whole one of their short lines, is dropped.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SHINGLE = 10
"""Words in a row that count as a repetition."""
SHORTEST_WHOLE = 4
"""A paragraph of at least this many words, up to a shingle, is also dropped when it is exactly an excluded line."""

_WORD = re.compile(r"\w+")
_SOURCE_FOLDERS_NOT_OF_PYTHON = frozenset({"site-packages", "dist-packages"})


def words_of(text: str) -> list[str]:
    """The lowercased words of a text, without punctuation."""
    return _WORD.findall(text.lower())


def standard_library_prose(root: Path | None = None) -> Iterator[str]:
    """Every docstring and every block of comments below ``root`` (default: the running Python's standard library)."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if _SOURCE_FOLDERS_NOT_OF_PYTHON.isdisjoint(path.parts):
            yield from _prose_of(path.read_bytes())
    for name in sys.builtin_module_names:
        yield from _built_in_docstrings(name)


def _prose_of(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # the standard library's tests hold files that are broken on purpose
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
    block: list[str] = []
    last = -1
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1 and block:
                yield "\n".join(block)
                block = []
            block.append(token.string.lstrip("#: "))
            last = token.start[0]
    if block:
        yield "\n".join(block)


def _built_in_docstrings(module: str) -> Iterator[str]:
    namespace = vars(__import__(module))
    for value in namespace.values():
        for thing in (value, *(vars(value).values() if isinstance(value, type) else ())):
            docstring = getattr(thing, "__doc__", None)
            if isinstance(docstring, str):
                yield docstring


class Excluded:
    """Recognises repetitions of a set of texts. Hashes only, 8 bytes a shingle."""

    def __init__(self) -> None:
        self._shingles: set[int] = set()
        self._lines: set[int] = set()
        self.words = 0

    def add(self, text: str) -> None:
        """Exclude whatever repeats ``text``."""
        words = words_of(text)
        self.words += len(words)
        for start in range(len(words) - SHINGLE + 1):
            self._shingles.add(hash(tuple(words[start : start + SHINGLE])))
        for part in re.split(r"\n\s*\n|\n", text):
            line = words_of(part)
            if SHORTEST_WHOLE <= len(line) < SHINGLE:
                self._lines.add(hash(tuple(line)))

    def update(self, texts: Iterable[str]) -> None:
        """Exclude whatever repeats one of ``texts``."""
        for text in texts:
            self.add(text)

    def repeated(self, paragraphs: Sequence[str]) -> set[int]:
        """Indices of the paragraphs that repeat an excluded text.

        The paragraphs are read as one stream, so a repetition that runs over a paragraph's end is seen in both.
        """
        found: set[int] = set()
        stream: list[str] = []
        owner: list[int] = []
        for index, paragraph in enumerate(paragraphs):
            words = words_of(paragraph)
            if SHORTEST_WHOLE <= len(words) < SHINGLE and hash(tuple(words)) in self._lines:
                found.add(index)
            stream += words
            owner += [index] * len(words)
        for start in range(len(stream) - SHINGLE + 1):
            if hash(tuple(stream[start : start + SHINGLE])) in self._shingles:
                found.update(owner[start : start + SHINGLE])
        return found
