"""How much each device counts: by its tokens, and never more than half, because tokens are what a device says."""

from __future__ import annotations

MAX_WEIGHT_SHARE = 0.5
"""No device has more than this share of a merge, however much text it says it has (with three or more devices)."""


def capped_weights(tokens: list[int], *, share: float = MAX_WEIGHT_SHARE) -> list[float]:
    """Give each device's weight from its tokens, none above ``share`` of the sum; they sum to 1.

    Weights are clipped and the rest scaled up until the cap holds for all (it can only with ``1 / share`` devices or
    more; with fewer, all weigh the same).
    """
    count = len(tokens)
    if count * share <= 1.0:
        return [1.0 / count] * count
    weights = [max(value, 1) / sum(max(item, 1) for item in tokens) for value in tokens]
    for _ in range(count):
        over = [index for index, weight in enumerate(weights) if weight > share + 1e-12]
        if not over:
            break
        free = [index for index, weight in enumerate(weights) if weight < share - 1e-12]
        spare = sum(weights[index] - share for index in over)
        room = sum(weights[index] for index in free)
        for index in over:
            weights[index] = share
        for index in free:
            weights[index] += spare * weights[index] / room
    return weights
