"""The learning rate as a function of the share of the time budget that is spent."""

from __future__ import annotations

WARM_UP = 0.02
DECAY = 0.6


def rate(progress: float, *, decay: float = DECAY) -> float:
    """Factor on the peak learning rate: warm-up, stable, then linear decay to zero (WSD, arXiv:2404.06395).

    ``progress`` runs from 0 to 1 over the budget. The stable part can be cut short or drawn out by changing the budget
    between two runs, which suits a machine that others use as well.
    """
    if progress < WARM_UP:
        return max(progress, 1e-4) / WARM_UP
    if progress > 1 - decay:
        return max(0.0, (1 - progress) / decay)
    return 1.0
