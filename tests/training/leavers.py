"""Trainings that are asked to leave, and text of which not everything counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent.data.packing import WindowSet
from agent.training.job import (
    Progress,
    TrainJob,
)
from agent.training.leaving import Leaving
from agent.training.trainer import train
from agent.training.windows_file import read_windows, write_windows
from tests.models import windows


def ignore(_progress: Progress) -> None:
    pass


class LeaveAfter(Leaving):
    """Asks to leave once a step, or another phase, is so far."""

    def __init__(self, step: int, phase: str = "train") -> None:
        super().__init__()
        self.step, self.phase = step, phase

    def watch(self, progress: Progress) -> None:
        if (progress.phase, progress.step) == (self.phase, self.step):
            self._asked.set()


class LeaveInside(Leaving):
    """Asks to leave in the middle of a step, after so many looks whether to."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = 0
        self.last = looks

    def check(self) -> None:
        self.looks += 1
        if self.looks == self.last:
            self._asked.set()
        super().check()


def looks_of(job: TrainJob) -> int:
    """Count how often a whole training looks whether to leave."""
    leaving = LeaveInside(-1)
    train(job, ignore, leaving)
    return leaving.looks


def masked_windows(path: Path, *, counting: Sequence[float], length: int = 48) -> Path:
    """Write windows of which only a share of the tokens counts, for each window its own."""
    plain = read_windows(windows(path, count=len(counting), length=length), n_vocab=320)
    rng = np.random.default_rng(1)
    targets = rng.random(plain.targets.shape) < np.array(counting)[:, None]
    targets[:, 0] = False
    write_windows(path, WindowSet(plain.tokens, targets, plain.segments))
    return path
