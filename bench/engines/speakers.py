"""A community of ten readers of Shakespeare: each device holds what some characters say, and nothing else.

The characters of a play stand together, so a device knows one or two plays: their people, places and mood. No device
has seen what the others hold back. That is as uneven as the text of real owners.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.data.packing import WindowSet
from agent.llm.tokenizer import Vocabulary

LEAST_SPEECHES = 20
"""Characters who say less are left out."""

_SPEECH = re.compile(r"([A-Z][^\n:]*):\n(.+)", re.DOTALL)
_HELD_BACK = 26
"""Of 256 speeches, so many are held back, by the hash of their content."""


@dataclass(frozen=True, slots=True)
class Owner:
    """One device's text.

    Attributes:
        speakers: the characters whose speeches it has.
        train: windows to learn from.
        heldout: windows to judge by.
    """

    speakers: tuple[str, ...]
    train: WindowSet
    heldout: WindowSet


def owners(path: Path, vocabulary: Vocabulary, *, count: int, window: int, heldout: int) -> list[Owner]:
    """Deal the characters to devices, in the order of their first word, the same amount of text to each.

    Args:
        path: of the plays; ``NAME:`` begins a speech, an empty line ends it.
        vocabulary: of the base.
        count: devices.
        window: tokens.
        heldout: windows that a device judges by, at most.
    """
    speeches: dict[str, list[str]] = defaultdict(list)
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        found = _SPEECH.match(block)
        if found is not None:
            speeches[found[1]].append(found[2].strip() + "\n\n")
    kept = {name: said for name, said in speeches.items() if len(said) >= LEAST_SPEECHES}
    whole = sum(len(speech) for said in kept.values() for speech in said)
    dealt: list[list[str]] = [[] for _ in range(count)]
    before = 0
    for name, said in kept.items():
        dealt[before * count // whole].append(name)
        before += sum(map(len, said))
    return [_owner(tuple(names), kept, vocabulary, window, heldout) for names in dealt]


def _owner(
    names: tuple[str, ...], speeches: dict[str, list[str]], vocabulary: Vocabulary, window: int, heldout: int
) -> Owner:
    train: list[int] = []
    judged: list[int] = []
    for speech in (speech for name in names for speech in speeches[name]):
        held_back = hashlib.sha256(speech.encode()).digest()[0] < _HELD_BACK
        (judged if held_back else train).extend(vocabulary.encode(speech))
    return Owner(speakers=names, train=_windows(train, window), heldout=_windows(judged[: heldout * window], window))


def _windows(tokens: list[int], window: int) -> WindowSet:
    whole = len(tokens) // window * window
    return WindowSet.plain(np.array(tokens[:whole], np.uint32).reshape(-1, window))


def pooled(windows: list[WindowSet]) -> WindowSet:
    """Give all windows as one set."""
    return WindowSet.plain(np.concatenate([each.tokens for each in windows]))
