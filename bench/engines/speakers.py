"""A community of ten speakers: each device has what one character of Shakespeare says, and nothing else.

Speakers differ in words, mood and length, so the split is as uneven as that of real owners: no device has seen what the
others hold back.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.data.packing import WindowSet
from agent.llm.tokenizer import Vocabulary

_SPEECH = re.compile(r"^([A-Z][^\n:]*):\n(.+)$", re.DOTALL)
_HELD_BACK = 38
"""Of 256 speeches, so many are held back, by the hash of their content."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """One device's text.

    Attributes:
        name: of the character.
        train: windows to learn from.
        heldout: windows to judge by.
    """

    name: str
    train: WindowSet
    heldout: WindowSet


def speakers(path: Path, vocabulary: Vocabulary, *, count: int, window: int) -> list[Speaker]:
    """Give the ``count`` characters who say most, the most talkative first.

    Args:
        path: of the plays; ``NAME:`` begins a speech, an empty line ends it.
        vocabulary: of the base.
        count: devices.
        window: tokens.
    """
    speeches: dict[str, list[str]] = defaultdict(list)
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        found = _SPEECH.match(block)
        if found is not None:
            speeches[found[1]].append(found[2].strip() + "\n\n")
    names = sorted(speeches, key=lambda name: (-sum(map(len, speeches[name])), name))
    return [_speaker(name, speeches[name], vocabulary, window) for name in names[:count]]


def _speaker(name: str, speeches: list[str], vocabulary: Vocabulary, window: int) -> Speaker:
    train: list[int] = []
    heldout: list[int] = []
    for speech in speeches:
        held_back = hashlib.sha256(speech.encode()).digest()[0] < _HELD_BACK
        (heldout if held_back else train).extend(vocabulary.encode(speech))
    return Speaker(name=name, train=_windows(train, window), heldout=_windows(heldout, window))


def _windows(tokens: list[int], window: int) -> WindowSet:
    whole = len(tokens) // window * window
    cut: NDArray[np.uint32] = np.array(tokens[:whole], np.uint32).reshape(-1, window)
    return WindowSet.plain(cut)


def pooled(windows: list[WindowSet]) -> WindowSet:
    """Give all windows as one set."""
    return WindowSet.plain(np.concatenate([each.tokens for each in windows]))
