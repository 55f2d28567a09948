"""From windows on disk to passes of the model."""

from __future__ import annotations

import numpy as np
import torch

from agent.data.packing import WindowSet
from agent.training.attention import Segments
from agent.training.decoder import Pass


def pass_of(windows: WindowSet) -> Pass:
    """Put windows one after another: every token but a window's last is a row, and its successor the target."""
    length = windows.length - 1
    follows = windows.targets[:, 1:]
    targets = np.where(follows, windows.tokens[:, 1:].astype(np.int64), -1)
    bounds = [
        (at * length + first, at * length + min(last, length))
        for at in range(len(windows))
        for first, last in windows.bounds(at)
        if first < length
    ]
    return Pass(
        tokens=torch.from_numpy(windows.tokens[:, :-1].reshape(-1).astype(np.int64)),
        segments=Segments(bounds),
        targets=torch.from_numpy(targets.reshape(-1)),
    )
