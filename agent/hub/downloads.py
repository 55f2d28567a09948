"""The forms in which adapters are sent: made once each, sealed, and kept at hand while they are asked for.

A device that says which releases it has gets the difference from one of them where that is smaller. A form's chunks are
the same for every device, under a key that follows from the release's own secret and from what is in them: two forms,
or one that another version of the compressor made, never share a key.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from agent.crypto.sealing import seal_stream
from agent.errors import StateError
from agent.federation.sealing import PLAIN_CHUNK_BYTES, adapter_key
from agent.hub.store import ReleaseRow
from agent.paths import BlobStore
from agent.update.release import pack_difference, pack_whole

MAX_BASES = 2
"""Releases a device has, of which differences are considered."""

AT_HAND_BYTES = 64 * 1024 * 1024
"""Sealed chunks that stay in memory; at least the form that was asked for last."""


@dataclass(frozen=True, slots=True)
class Download:
    """One adapter in one form, sealed.

    Attributes:
        content_sha256: of the form before it was sealed; 32 bytes.
        key: that opens the chunks.
        chunks: the same for every device.
    """

    content_sha256: bytes
    key: bytes
    chunks: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of all chunks."""
        return sum(map(len, self.chunks))


class Downloads:
    """Makes forms of adapters, and keeps those that were asked for last.

    Args:
        blobs: where adapters are.
        at_hand_bytes: how much of them stays in memory, however many are asked for.
    """

    def __init__(self, blobs: BlobStore, *, at_hand_bytes: int = AT_HAND_BYTES) -> None:
        self._blobs = blobs
        self._at_hand_bytes = at_hand_bytes
        self._at_hand: OrderedDict[tuple[str, str], Download | None] = OrderedDict()

    def smallest(self, release: ReleaseRow, have: Sequence[str]) -> Download:
        """Give the smallest form for a device.

        Args:
            release: what it wants.
            have: hex SHA-256 of adapters of this community that it has.

        Raises:
            StateError: the adapter is not on the disk any more.
        """
        forms = [self._form(release, base) for base in ("", *have[:MAX_BASES])]
        return min((form for form in forms if form is not None), key=lambda form: form.size)

    def _form(self, release: ReleaseRow, base: str) -> Download | None:
        """Give one form, from what is at hand if it is; None where there is no such difference."""
        key = (release.manifest.sha256, base)
        if key not in self._at_hand:
            self._at_hand[key] = self._made(release, base)
        self._at_hand.move_to_end(key)
        form = self._at_hand[key]
        while len(self._at_hand) > 1 and self.bytes_at_hand > self._at_hand_bytes:
            self._at_hand.popitem(last=False)
        return form

    def _made(self, release: ReleaseRow, base: str) -> Download | None:
        data = self._blobs.get(release.manifest.sha256)
        if not base:
            content = pack_whole(data)
        else:
            try:
                difference = pack_difference(data, self._blobs.get(base))
            except StateError:
                return None
            if difference is None:
                return None
            content = difference
        digest = hashlib.sha256(content).digest()
        key = adapter_key(release.content_key, digest)
        return Download(content_sha256=digest, key=key, chunks=tuple(seal_stream(content, key, PLAIN_CHUNK_BYTES)))

    @property
    def bytes_at_hand(self) -> int:
        """What is kept now: the sealed bytes, and something for each entry, so that empty ones count too."""
        return sum(1024 + (form.size if form else 0) for form in self._at_hand.values())
