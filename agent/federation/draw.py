"""Which devices take part in a round when there are more than it wants: a draw that everybody can check.

Every device has a lot for every round: a hash over the community, the round, the release that the round starts from,
and the device. The hub announces one number, and the devices whose lot lies below it are drawn. So a device finds out
by itself whether it is wanted; and the hub cannot choose whom it likes, because it chooses only the number, and the
release that goes into the lots is the outcome of the merge before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from agent.crypto import canonical

LOT_LIMIT = 2**63
"""Lots lie in ``0 .. LOT_LIMIT - 1``: what a database and CBOR hold as a signed integer."""


def lot(device: str, *, community: str, round_number: int, release: str) -> int:
    """Give a device's lot for a round.

    Args:
        device: its id.
        community: 32 hexadecimal digits.
        round_number: from 1.
        release: hex SHA-256 of the release that the round starts from.
    """
    said = canonical.encode(["bramble/draw/1", community, round_number, release, device])
    return int.from_bytes(hashlib.sha256(said).digest()[:8], "big") >> 1


def limit_for(
    devices: Iterable[str], wanted: int, *, community: str, round_number: int, release: str
) -> tuple[int | None, int]:
    """Give the number below which exactly ``wanted`` of these devices lie, and how many are drawn.

    Returns:
        None, and how many there are, where there are no more devices than wanted: then nobody is left out.
    """
    lots = sorted(lot(device, community=community, round_number=round_number, release=release) for device in devices)
    if len(lots) <= wanted:
        return None, len(lots)
    return lots[wanted - 1] + 1, wanted
