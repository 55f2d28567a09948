from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.data.packing import WindowSet
from agent.errors import DataError
from agent.training.evaluate import evaluate
from agent.training.job import EvaluateJob, EvaluateResult, Progress, Variant
from agent.training.leaving import Leaving
from agent.training.windows_file import write_windows


def measure(base: Path, windows: WindowSet, path: Path) -> tuple[EvaluateResult, list[Progress]]:
    write_windows(path, windows)
    seen: list[Progress] = []
    job = EvaluateJob(base_path=base, windows_path=path, variants=(Variant(name="base"),))
    return evaluate(job, seen.append, Leaving()), seen


def test_packed_segments_cost_what_they_cost_alone(tiny_f32: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 300, (2, 32)).astype(np.uint32)
    segments = np.zeros((2, 32), dtype=np.uint16)
    segments[0, 10:] = 1
    segments[0, 11:] = 2
    targets = rng.random((2, 32)) < 0.5
    targets[:, 0] = targets[0, 10] = targets[0, 11] = False
    packed, seen = measure(tiny_f32, WindowSet(tokens, targets, segments), tmp_path / "packed.npz")
    assert packed.targets == targets.sum()
    assert seen[-1].step == seen[-1].steps == 2

    total = 0.0
    for row, start, end in ((0, 0, 10), (0, 11, 32), (1, 0, 32)):
        piece = tokens[None, row, start:end]
        alone = WindowSet(piece, targets[None, row, start:end], np.zeros(piece.shape, dtype=np.uint16))
        found, _ = measure(tiny_f32, alone, tmp_path / "alone.npz")
        total += found.losses["base"] * found.targets
    assert packed.losses["base"] == pytest.approx(total / packed.targets, rel=1e-5)

    together, _ = measure(tiny_f32, WindowSet(tokens, targets, np.zeros_like(segments)), tmp_path / "together.npz")
    assert abs(together.losses["base"] - packed.losses["base"]) > 1e-3


def test_windows_in_which_nothing_counts_are_refused(tiny_f32: Path, tmp_path: Path) -> None:
    windows = WindowSet.plain(np.zeros((1, 8), dtype=np.uint32))
    with pytest.raises(DataError, match="counts"):
        measure(tiny_f32, WindowSet(windows.tokens, windows.targets & False, windows.segments), tmp_path / "w.npz")
