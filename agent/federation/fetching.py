"""Adapters on their way from the hub to a device: asked for, put together, opened, and checked against their hash."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path

from agent.crypto.identity import Identity
from agent.crypto.sealing import open_stream, unseal
from agent.errors import MalformedMessageError, ProtocolError, SealBrokenError, TransferError
from agent.federation.messages import Chunk, Manifest, Offer, Want
from agent.federation.sealing import adapter_info, adapter_transfer_id
from agent.llm.adapter import from_bytes
from agent.paths import BlobStore, write_atomically
from agent.transport.transfer import IncomingTransfer, TransferStore

MAX_ADAPTER_BYTES = 512 * 1024 * 1024
_DROPPED = "It was dropped; the adapter is asked for again."


class Fetcher:
    """Receives adapters, one or several at a time.

    Args:
        blobs: where adapters are kept once they are whole and checked.
        identity: opens what is sealed for this device.
        community: its 16-byte id.
        directory: where chunks wait for the rest; survives a restart.
    """

    def __init__(self, *, blobs: BlobStore, identity: Identity, community: bytes, directory: Path) -> None:
        self._blobs = blobs
        self._identity = identity
        self._community = community
        self._directory = directory
        self._transfers = TransferStore(directory, max_bytes=MAX_ADAPTER_BYTES, max_total_bytes=2 * MAX_ADAPTER_BYTES)
        self._wanted: dict[bytes, Manifest] = {}
        self._arrived = asyncio.Event()
        self._received = 0

    def want(self, manifest: Manifest) -> Want:
        """Say what to ask the hub for: everything, or the chunks that are still missing."""
        transfer = adapter_transfer_id(manifest.sha256, self._identity.id)
        self._wanted[transfer] = manifest
        known = self._under_way(transfer)
        missing = known.missing_ranges()[:256] if known is not None else []
        return Want(adapter=manifest.sha256, missing=missing)

    async def wait(self, sha256: str, *, patience: float) -> None:
        """Wait until an adapter is here, or nothing has come for ``patience`` seconds."""
        while not self._blobs.has(sha256):
            before = self._received
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._arrived.wait()
            if self._received == before:
                return

    def offered(self, offer: Offer) -> None:
        """Take in an offer.

        Raises:
            ProtocolError: it is not for an adapter that was asked for.
        """
        manifest = self._wanted.get(offer.transfer)
        if offer.purpose != "adapter" or manifest is None or manifest.sha256 != offer.adapter:
            raise MalformedMessageError("an adapter was offered that was not asked for", advice=_DROPPED)
        transfer = self._transfers.begin(offer.plan)
        write_atomically(self._offer_path(offer.transfer), offer.encode())
        self._came()
        if transfer.complete:
            self._finish(offer, transfer)

    def arrived(self, chunk: Chunk) -> None:
        """Take in a chunk.

        Raises:
            ProtocolError: it belongs to nothing that was offered, or the whole is not what was announced.
        """
        transfer = self._under_way(chunk.transfer)
        if transfer is None:
            raise TransferError("a chunk came of an adapter that was not offered", advice=_DROPPED)
        transfer.add(chunk.index, chunk.data)
        self._came()
        if transfer.complete:
            self._finish(Offer.decode(self._offer_path(chunk.transfer).read_bytes()), transfer)

    def _came(self) -> None:
        self._received += 1
        self._arrived.set()

    def _finish(self, offer: Offer, transfer: IncomingTransfer) -> None:
        """Open a whole adapter and keep it, or throw all of it away."""
        try:
            data = self._open(offer, transfer)
            from_bytes(data)
            self._blobs.put(data)
        finally:
            transfer.discard()
            self._offer_path(offer.transfer).unlink(missing_ok=True)
        self._wanted.pop(offer.transfer, None)
        self._arrived.set()

    def _open(self, offer: Offer, transfer: IncomingTransfer) -> bytes:
        info = adapter_info(self._community, self._identity.id, offer.adapter)
        key = unseal(self._identity, offer.sealed_key, info)
        whole = transfer.assemble()
        size = offer.chunk_bytes
        chunks = (whole[start : start + size] for start in range(0, len(whole), size))
        data = open_stream(chunks, key, len(whole))
        if hashlib.sha256(data).hexdigest() != offer.adapter:
            raise SealBrokenError("an adapter came that does not have the hash it was announced by", advice=_DROPPED)
        return data

    def _under_way(self, transfer: bytes) -> IncomingTransfer | None:
        """Give a transfer whose offer came, also before a restart."""
        try:
            offer = Offer.decode(self._offer_path(transfer).read_bytes())
            return self._transfers.begin(offer.plan)
        except (OSError, ProtocolError):
            return None

    def _offer_path(self, transfer: bytes) -> Path:
        return self._directory / f"{transfer.hex()}.offer"
