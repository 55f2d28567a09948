"""What happens at which step: learning rate and windows. Pure, so that resumed training does what was left."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Schedule: TypeAlias = Literal["cosine", "constant"]

FLOOR = 0.1
"""The learning rate at the end of a cosine, as a share of its highest."""


def learning_rate_at(step: int, *, steps: int, warmup_steps: int, peak: float, schedule: Schedule = "cosine") -> float:
    """Give the learning rate of a step, counted from 0: a linear rise, then half a cosine down to a tenth, or no fall.

    The cosine is that of Loshchilov & Hutter 2017, *SGDR*, equation 5, without restarts.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    share = (step - warmup_steps) / max(1, steps - warmup_steps - 1)
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def windows_at(step: int, *, batch_size: int, count: int, seed: int) -> NDArray[np.int64]:
    """Give which of ``count`` windows a step trains on, int64 ``(batch_size,)``.

    Windows are taken in a fresh random order each time all of them have been seen.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = {
        int(epoch): np.random.default_rng([seed, int(epoch)]).permutation(count) for epoch in set(places // count)
    }
    return np.array([epochs[place // count][place % count] for place in places.tolist()], dtype=np.int64)
