"""How much room unfinished transfers may take on the hub's disk, those of all devices together."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from agent.errors import NoRoomError, ProtocolError
from agent.federation.messages import Offer
from agent.paths import explained_disk

MAX_PARKED_BYTES = 16 * 1024**3
"""What the unfinished transfers of all devices may take, by what they announced; the next offer waits."""

SPARE_BYTES = 64 * 1024 * 1024
"""Room on the disk that no transfer may take: a hub that cannot write its database stands still."""


class Parking:
    """How much room the unfinished transfers of all devices may take, together.

    Args:
        directory: where they lie, one directory a device.
        max_bytes: what all of them may announce.
    """

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._sizes: dict[tuple[str, bytes], int] | None = None  # not looked for yet
        self.bytes = 0
        """What they announce, all together."""

    def require(self, device: str, offer: Offer) -> None:
        """Look whether there is room for an offer.

        Raises:
            NoRoomError: there is none.
        """
        if (device, offer.transfer) in self._known():
            return
        if self.bytes + offer.size > self._max_bytes or self._free() < offer.size + SPARE_BYTES:
            raise NoRoomError(
                f"there is no room for a transfer of {offer.size:,} bytes beside the {self.bytes:,} that are under way",
                advice="The device offers it again. If this goes on, give the hub a larger disk.",
            )

    def begin(self, device: str, offer: Offer) -> None:
        """Count a transfer, once."""
        if (device, offer.transfer) not in self._known():
            self._known()[device, offer.transfer] = offer.size
            self.bytes += offer.size

    def end(self, device: str, transfer: bytes) -> None:
        """Count a transfer no more."""
        self.bytes -= self._known().pop((device, transfer), 0)

    def _free(self) -> int:
        with explained_disk(self._directory):
            return shutil.disk_usage(self._directory).free

    def _known(self) -> dict[tuple[str, bytes], int]:
        """Give the size of every transfer under way; those from before a restart are looked for once."""
        if self._sizes is None:
            self._sizes = {}
            for path in self._directory.glob("*/*.offer"):
                with contextlib.suppress(OSError, ProtocolError):
                    offer = Offer.decode(path.read_bytes())
                    self._sizes[path.parent.name, offer.transfer] = offer.size
            self.bytes = sum(self._sizes.values())
        return self._sizes
