"""What a fuzz target is, and the one way to run it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from agent.errors import BrambleError

Form: TypeAlias = Literal["bytes", "cbor", "text"]
"""How a target's inputs are mutated, beside the fuzzer's own ways: as CBOR values, or as text with long repetitions."""

LIMIT_SECONDS = 1.0
"""Of processor time for one input. Time on the wall would blame inputs for what else the machine does."""

CORPUS = Path(__file__).parent / "corpus"
REGRESSIONS = Path(__file__).parent / "regressions"


class FindingError(AssertionError):
    """A decoder did with an input what it must not do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One decoder, as whoever is outside reaches it.

    Attributes:
        name: of the folders of its inputs, too.
        run: takes any bytes. It may return, or raise one of ``refusals``; anything else is a finding.
        seeds: gives inputs to start from, most of them good ones, the same each time.
        refusals: what it may raise. The narrower, the better: an error that its caller does not expect stops a process.
        max_bytes: of an input.
        form: how inputs are mutated.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    refusals: tuple[type[Exception], ...] = (BrambleError,)
    max_bytes: int = 4096
    form: Form = "bytes"

    def check(self, data: bytes) -> None:
        """Give a target one input.

        Raises:
            FindingError: it took longer than it may, or refused without words for a person.
            Exception: whatever came out of the decoder and is no refusal.
        """
        began = time.perf_counter()
        self._try(data)
        if time.perf_counter() - began > LIMIT_SECONDS:  # was it the input, or whatever else the machine does?
            began = time.process_time()
            self._try(data)
            took = time.process_time() - began
            if took > LIMIT_SECONDS:
                raise FindingError(f"{self.name} took {took:.1f} s of processor time for {len(data):,} bytes")

    def _try(self, data: bytes) -> None:
        try:
            self.run(data)
        except self.refusals as error:
            _check_words(error)

    def kept(self) -> list[Path]:
        """Give the committed inputs: seeds, and inputs that were findings once."""
        folders = (CORPUS / self.name, REGRESSIONS / self.name)
        return [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]


def _check_words(error: Exception) -> None:
    """Check that an error can be told to a person: it says something, and a terminal can print it."""
    words = f"{error}{error.advice if isinstance(error, BrambleError) else ''}"
    if not str(error) or (isinstance(error, BrambleError) and not error.advice):
        raise FindingError(f"{type(error).__name__} says nothing")
    try:
        words.encode()
    except UnicodeEncodeError as cause:
        raise FindingError(f"{type(error).__name__} cannot be printed: {words!a}") from cause
