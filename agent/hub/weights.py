"""How much an update counts: by its tokens up to the median, less if it is late, and never more than half of a merge.

Tokens are what a device says of itself. So in a merge none counts for more than the median number of tokens: whoever
says more gains nothing, and fewer than half of the devices cannot move the median beyond what an honest one says. Where
a charter fixes how many steps a round has, honest devices say about the same, and lose next to nothing by it. A late
update was trained from an older release; it weighs less by a power of its lateness (Xie et al. 2019, *Asynchronous
federated optimization*, section 5.2; Nguyen et al. 2022, *FedBuff*, use 1/2 as here).
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_WEIGHT_SHARE = 0.5
"""No update has more than this share of a merge (with three or more of them)."""


def capped_weights(tokens: Sequence[int], *, share: float = MAX_WEIGHT_SHARE) -> list[float]:
    """Give each device's weight from its tokens, none above ``share`` of the sum; they sum to 1."""
    return capped([float(max(count, 1)) for count in tokens], share=share)


def staleness_weight(lateness: int, power: float) -> float:
    """Give what an update weighs that is so many releases late: ``(1 + lateness) ^ -power``.

    Args:
        lateness: releases between the one that it started from and the one that it is merged into; 0 is in time.
        power: the charter's ``staleness_power``; 0 makes late updates weigh as others do.
    """
    if lateness < 0:
        raise ValueError(f"an update cannot be {lateness} releases late")
    return float((1.0 + lateness) ** -power)


def merge_weights(
    tokens: Sequence[int], lateness: Sequence[int], *, power: float, share: float = MAX_WEIGHT_SHARE
) -> list[float]:
    """Give each update's share of a merge: its share of tokens, times its staleness weight; they sum to 1.

    Tokens count up to the median of the merge, of two middle ones the larger.

    The cap is held in the end as well: where the others are late, what they lose must not lift one above it.

    Args:
        tokens: of each update.
        lateness: of each, in releases.
        power: the charter's ``staleness_power``.
        share: the cap.
    """
    usual = sorted(tokens)[len(tokens) // 2]
    by_tokens = capped_weights([min(count, usual) for count in tokens], share=share)
    late = [staleness_weight(count, power) for count in lateness]
    return capped([weight * factor for weight, factor in zip(by_tokens, late, strict=True)], share=share)


def capped(weights: Sequence[float], *, share: float) -> list[float]:
    """Give positive weights as shares of their sum, none above ``share``.

    Weights are clipped and the rest scaled up until the cap holds for all (it can only with ``1 / share`` devices or
    more; with fewer, all weigh the same).
    """
    count = len(weights)
    if count * share <= 1.0:
        return [1.0 / count] * count
    total = sum(weights)
    shares = [weight / total for weight in weights]
    for _ in range(count):
        over = [index for index, weight in enumerate(shares) if weight > share + 1e-12]
        if not over:
            break
        free = [index for index, weight in enumerate(shares) if weight < share - 1e-12]
        spare = sum(shares[index] - share for index in over)
        room = sum(shares[index] for index in free)
        for index in over:
            shares[index] = share
        for index in free:
            shares[index] += spare * shares[index] / room
    return shares
