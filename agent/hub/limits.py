"""How much one device may ask of the hub, and newcomers together. Numbers with their reasons, and token buckets.

A bucket is emptied only by messages that carry their sender's valid signature: junk that merely names a device costs
that device nothing. `docs/limits.md` says what an honest device needs and how far away these numbers are from it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from agent.transport.bucket import Bucket
from agent.transport.transfer import CHUNK_BYTES

MIB = 1024 * 1024

UPDATES_AT_ONCE = 4
"""Whole updates, of the largest size that there can be, that a device may send in one burst."""

BURST_BYTES = 32 * MIB
"""The least burst of one device, where updates are small."""

BYTES_A_SECOND = 4 * MIB
"""What one device may send for ever; a hub takes in about twenty times as much."""

MESSAGES_AT_ONCE = 512
"""Messages in one burst, beside the chunks of :data:`UPDATES_AT_ONCE`."""

MESSAGES_A_SECOND = 64.0
"""Likewise, for ever: chunks at :data:`BYTES_A_SECOND`, and some."""

ASKS_AT_ONCE = 120
"""Messages that are no chunks, in one burst: each makes the hub work, answer, and look into its database."""

ASKS_A_SECOND = 2.0
"""Likewise, for ever. A device asks again after 15 s, then ever more rarely."""

DOWNLOADS_AT_ONCE = 8
"""Whole adapters that a device may fetch in one burst."""

DOWNLOAD_BURST_BYTES = 64 * MIB
"""The least of that, where adapters are small."""

DOWNLOAD_BYTES_A_SECOND = 1 * MIB
"""What one device may fetch for ever: what a `want` of 300 bytes can cost the hub."""

JOINS_AT_ONCE = 1024
"""Requests to join with one invite, in one burst: an invite may be for a whole fleet that asks at the same moment."""

JOINS_A_SECOND = 32.0
"""Likewise, for ever. Each costs the hub two seals, a millisecond or so."""

ALL_JOINS_AT_ONCE = 4096
ALL_JOINS_A_SECOND = 128.0
"""The same for all invites together: who may write on any join topic can name as many as it likes."""

INVITES_AT_HAND = 1024
"""Invites whose requests are counted; with more, the one that was silent longest is forgotten."""


@dataclass(slots=True)
class _Device:
    messages: Bucket
    bytes: Bucket
    asks: Bucket


class Allowances:
    """What is left to each device, and to newcomers.

    Args:
        adapter_bytes: of the community's adapter. An update is no larger, but for its header and seals.
        clock: monotonic seconds.
    """

    def __init__(self, *, adapter_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._adapter_bytes = adapter_bytes
        self._clock = clock
        self._devices: dict[str, _Device] = {}
        self._joins: OrderedDict[str, Bucket] = OrderedDict()
        self._all_joins = Bucket(burst=ALL_JOINS_AT_ONCE, rate=ALL_JOINS_A_SECOND)

    def is_spent(self, device: str, size: int) -> bool:
        """Say whether a message of so many bytes is too much, so that it need not even be read. Takes nothing."""
        left, now = self._devices.get(device), self._clock()
        return left is not None and not (left.messages.holds(1, now) and left.bytes.holds(size, now))

    def take(self, device: str, kind: str, size: int) -> bool:
        """Take a message of a device; False where that is too much. Only for one whose signature was checked.

        Args:
            device: a member.
            kind: of the message.
            size: of its envelope, bytes.
        """
        left, now = self._of(device), self._clock()
        if kind != "chunk" and not left.asks.take(1, now):
            return False
        return left.messages.take(1, now) and left.bytes.take(size, now)

    def join(self, invite: str) -> bool:
        """Take a request to join; False where there are too many. They are not signed by anybody who is known."""
        bucket = self._joins.setdefault(invite, Bucket(burst=JOINS_AT_ONCE, rate=JOINS_A_SECOND))
        self._joins.move_to_end(invite)
        while len(self._joins) > INVITES_AT_HAND:
            self._joins.popitem(last=False)
        return bucket.take(1, self._clock()) and self._all_joins.take(1, self._clock())

    def _of(self, device: str) -> _Device:
        known = self._devices.get(device)
        if known is None:
            burst = max(BURST_BYTES, UPDATES_AT_ONCE * (self._adapter_bytes + MIB))
            known = self._devices[device] = _Device(
                messages=Bucket(burst=MESSAGES_AT_ONCE + burst // CHUNK_BYTES, rate=MESSAGES_A_SECOND),
                bytes=Bucket(burst=burst, rate=BYTES_A_SECOND),
                asks=Bucket(burst=ASKS_AT_ONCE, rate=ASKS_A_SECOND),
            )
        return known


class DownloadAllowances:
    """How much each device may still fetch.

    Args:
        adapter_bytes: of the community's adapter.
        clock: monotonic seconds.
    """

    def __init__(self, *, adapter_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = max(DOWNLOAD_BURST_BYTES, DOWNLOADS_AT_ONCE * adapter_bytes)
        self._clock = clock
        self._devices: dict[str, Bucket] = {}

    def holds(self, device: str, size: int) -> bool:
        """Say whether a device may fetch so many bytes now. Takes nothing."""
        return self._of(device).holds(size, self._clock())

    def take(self, device: str, size: int) -> bool:
        """Take so many bytes of what a device may fetch; False where that is too much."""
        return self._of(device).take(size, self._clock())

    def _of(self, device: str) -> Bucket:
        return self._devices.setdefault(device, Bucket(burst=self._burst, rate=DOWNLOAD_BYTES_A_SECOND))
