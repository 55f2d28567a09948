"""Adapters on their way from the hub to a device: asked for, put together, opened, and checked against their hash."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Container, Iterable
from pathlib import Path

from agent.crypto.identity import Identity
from agent.crypto.sealing import open_stream, pieces, unseal
from agent.errors import (
    AdapterError,
    MalformedMessageError,
    OversizedMessageError,
    ProtocolError,
    SealBrokenError,
    StateError,
    TransferError,
)
from agent.federation.messages import Chunk, Manifest, Offer, Want
from agent.federation.sealing import adapter_info, check_of
from agent.federation.sending import MAX_PATIENCE
from agent.llm.adapter import from_bytes
from agent.paths import BlobStore, write_atomically
from agent.transport.transfer import DamagedChunksError, IncomingTransfer, TransferStore
from agent.update.release import unpack
from agent.update.streams import BodyError

MAX_ADAPTER_BYTES = 512 * 1024 * 1024
_DROPPED = "It was dropped; the adapter is asked for again."


class Fetcher:
    """Receives adapters, one or several at a time.

    The hub may send the difference from an adapter that is here. Should that not give what was announced, all of it is
    thrown away, and the adapter is asked for as a whole: a difference that is wrong costs a second download.

    Args:
        blobs: where adapters are kept once they are whole and checked.
        identity: opens what is sealed for this device.
        community: its 16-byte id.
        hub: fingerprint of the hub's keys.
        directory: where chunks wait for the rest; survives a restart.
    """

    def __init__(self, *, blobs: BlobStore, identity: Identity, community: bytes, hub: str, directory: Path) -> None:
        self._blobs = blobs
        self._identity = identity
        self._community = community
        self.hub = hub
        self._directory = directory
        self._transfers = TransferStore(directory, max_bytes=MAX_ADAPTER_BYTES, max_total_bytes=2 * MAX_ADAPTER_BYTES)
        self._wanted: dict[str, Manifest] = {}
        self._only_whole: set[str] = set()
        self._keys: dict[bytes, tuple[bytes, bytes]] = {}  # of each transfer, as it was sealed and opened
        self._arrived = asyncio.Event()
        self._received = 0
        self._silences = 0  # waits in which nothing came, one after the other

    def want(self, manifest: Manifest, *, have: Iterable[str] = ()) -> Want:
        """Say what to ask the hub for: everything, or the chunks that are still missing.

        Args:
            manifest: what the hub announced.
            have: hex SHA-256 of adapters of this community; those that are here can be the base of a difference.

        Raises:
            OversizedMessageError: the adapter is larger than any that a device takes.
        """
        if manifest.size > MAX_ADAPTER_BYTES:
            raise OversizedMessageError(
                f"the hub announces an adapter of {manifest.size:,} bytes; {MAX_ADAPTER_BYTES:,} is the most",
                advice="Ask the hub's operator for a lower rank.",
            )
        self._wanted[manifest.sha256] = manifest
        here = [] if manifest.sha256 in self._only_whole else [sha256 for sha256 in have if self._blobs.has(sha256)]
        for offer in self._offers():
            if offer.adapter == manifest.sha256 and (known := self._under_way(offer.transfer)) is not None:
                missing = known.missing_ranges()[:256]
                return Want(adapter=manifest.sha256, missing=missing, transfer=offer.transfer, have=here)
        return Want(adapter=manifest.sha256, missing=[], have=here)

    def keep_only(self, adapters: Container[str]) -> None:
        """Give up every adapter but these, and throw away what came of the others: nobody would send the rest of it."""
        self._wanted = {sha256: manifest for sha256, manifest in self._wanted.items() if sha256 in adapters}
        self._only_whole = {sha256 for sha256 in self._only_whole if sha256 in adapters}
        kept = []
        for offer in self._offers():
            if offer.adapter in adapters:
                kept.append(offer.transfer)
            else:
                self._forget(offer)
        for transfer in self._transfers.stored():
            if transfer.plan.id not in kept:  # killed before its offer was written
                transfer.discard()

    async def wait(self, sha256: str, *, patience: float) -> None:
        """Wait until an adapter is here, or nothing has come for a while.

        Whoever asks after each wait does not fill the queue of a hub that is away: each is twice as long as the one
        before, up to five minutes, until something comes or :meth:`begin_anew`.

        Args:
            sha256: hex, of the adapter.
            patience: seconds of the first wait.
        """
        while not self._blobs.has(sha256):
            before = self._received
            self._arrived.clear()
            try:
                async with asyncio.timeout(min(patience * 2.0 ** min(self._silences, 30), MAX_PATIENCE)):
                    await self._arrived.wait()
            except TimeoutError:
                self._silences += 1
            if self._received == before:
                return

    def begin_anew(self) -> None:
        """The broker or the hub is back: a wait that has grown ends, and the next ones are short again."""
        if self._silences:
            self._silences = 0
            self._arrived.set()

    def offered(self, offer: Offer) -> None:
        """Take in an offer. Another form of the same adapter takes the place of one that was under way.

        Raises:
            ProtocolError: it is not for an adapter that was asked for, or its key is not for this device.
        """
        self._require_wanted(offer)
        for other in self._offers():
            if other.adapter == offer.adapter and other.transfer != offer.transfer:
                self._forget(other)
        transfer = self._begin(offer)
        write_atomically(self._offer_path(offer.transfer), offer.encode())
        self._came()
        if transfer.complete:
            self._finish(offer, transfer)

    def arrived(self, chunk: Chunk) -> None:
        """Take in a chunk.

        Raises:
            ProtocolError: it belongs to nothing that was offered, or was damaged, or the whole is not what was
                announced.
        """
        transfer = self._under_way(chunk.transfer)
        if transfer is None:
            raise TransferError("a chunk came of an adapter that was not offered", advice=_DROPPED)
        offer = Offer.decode(self._offer_path(chunk.transfer).read_bytes())
        self._require_wanted(offer)
        transfer.add(chunk.index, chunk.data)
        self._came()
        if transfer.complete:
            self._finish(offer, transfer)

    def _require_wanted(self, offer: Offer) -> Manifest:
        manifest = self._wanted.get(offer.adapter)
        if offer.purpose != "adapter" or manifest is None:
            raise MalformedMessageError("an adapter came that was not asked for", advice=_DROPPED)
        return manifest

    def _came(self) -> None:
        self._received += 1
        self._silences = 0
        self._arrived.set()

    def _finish(self, offer: Offer, transfer: IncomingTransfer) -> None:
        """Open a whole adapter and keep it, or throw all of it away; or only chunks that changed on the disk."""
        try:
            self._blobs.put(self._open(offer, transfer, self._require_wanted(offer).size))
        except DamagedChunksError:
            raise
        except BaseException:
            self._forget(offer)
            raise
        self._forget(offer)
        self._wanted.pop(offer.adapter, None)
        self._only_whole.discard(offer.adapter)
        self._arrived.set()

    def _begin(self, offer: Offer) -> IncomingTransfer:
        """Begin a transfer, or go on with it, that takes what opens with its key and nothing else.

        Raises:
            SealBrokenError: the offer's key is not for this device.
        """
        return self._transfers.begin(offer.plan, check=check_of(self._key(offer), offer.plan))

    def _key(self, offer: Offer) -> bytes:
        sealed, key = self._keys.get(offer.transfer, (b"", b""))
        if sealed != offer.sealed_key:
            info = adapter_info(self._community, self.hub, self._identity.id, offer.transfer, offer.adapter)
            key = unseal(self._identity, offer.sealed_key, info)
            self._keys[offer.transfer] = (offer.sealed_key, key)
        return key

    def _open(self, offer: Offer, transfer: IncomingTransfer, size: int) -> bytes:
        """Give the bytes of an adapter: ``size`` of them, with the hash that was announced."""
        key = self._key(offer)
        sealed = transfer.assemble()
        content = open_stream(pieces(sealed, offer.chunk_bytes), key, len(sealed))
        self._only_whole.add(offer.adapter)  # until it is here
        try:
            data = unpack(content, size, self._base)
            if hashlib.sha256(data).hexdigest() != offer.adapter:  # before anything reads it
                raise SealBrokenError("an adapter came that has another hash than was announced", advice=_DROPPED)
            from_bytes(data)
        except (BodyError, AdapterError) as cause:
            raise MalformedMessageError(f"what came is no adapter: {cause}", advice=_DROPPED) from cause
        return data

    def _base(self, sha256: str) -> bytes | None:
        """Give what a difference was taken from, if it is here and undamaged."""
        try:
            return self._blobs.get(sha256) if self._blobs.has(sha256) else None
        except StateError:
            return None

    def _offers(self) -> list[Offer]:
        """Give the offers that were taken in, also before a restart."""
        offers = []
        for path in self._directory.glob("*.offer"):
            with contextlib.suppress(OSError, ProtocolError):
                offers.append(Offer.decode(path.read_bytes()))
        return offers

    def _under_way(self, transfer: bytes) -> IncomingTransfer | None:
        """Give a transfer whose offer came, also before a restart."""
        try:
            offer = Offer.decode(self._offer_path(transfer).read_bytes())
            return self._begin(offer)
        except (OSError, ProtocolError):
            return None

    def _forget(self, offer: Offer) -> None:
        """Throw away what came of a transfer, and its offer."""
        self._keys.pop(offer.transfer, None)
        with contextlib.suppress(ProtocolError):
            self._transfers.begin(offer.plan).discard()
        self._offer_path(offer.transfer).unlink(missing_ok=True)

    def _offer_path(self, transfer: bytes) -> Path:
        return self._directory / f"{transfer.hex()}.offer"
