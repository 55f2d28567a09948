"""What arrives at the hub for a round: offers and chunks, put together, opened, checked, and counted once.

Nothing here talks to a broker: bytes come in, receipts go out. A transfer that is complete is either counted or
refused, with a stable reason; both outcomes are durable before the receipt is given.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from agent.crypto.sealing import SealKey, open_stream
from agent.errors import (
    MalformedMessageError,
    OversizedMessageError,
    SealBrokenError,
    TransferError,
    UpdateRefusedError,
)
from agent.federation.messages import Chunk, Offer, Receipt
from agent.federation.sealing import update_info
from agent.governance.charter import Charter
from agent.hub.rounds import RoundState
from agent.hub.store import HubStore, UpdateRow
from agent.llm.adapter import Adapter
from agent.paths import BlobStore, write_atomically
from agent.transport.transfer import IncomingTransfer, TransferStore
from agent.update.delta import Delta
from agent.update.wire import UpdateHeader, decode_update

MAX_OPEN_TRANSFERS = 4
"""Unfinished transfers that one device may have; one more puts out the oldest."""

NORM_SLACK = 1.01
"""Rounding in the compression may lift a norm a little above what the device clipped to."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to answer, and what became of the update if it was complete."""

    receipt: Receipt | None
    counted: UpdateRow | None = None
    refused: UpdateRefusedError | None = None


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What an update is held against."""

    state: RoundState
    community: Adapter
    start_sha256: str
    seal_key: SealKey | None
    charter: Charter


class Inbox:
    """The hub's side of transfers.

    Args:
        store: where outcomes are made durable.
        blobs: where opened updates are kept until they are merged.
        directory: where chunks wait for the rest; survives a restart.
        community: its 16-byte id.
    """

    def __init__(self, *, store: HubStore, blobs: BlobStore, directory: Path, community: bytes) -> None:
        self._store = store
        self._blobs = blobs
        self._directory = directory
        self._community = community

    def offered(self, device: str, offer: Offer, context: RoundContext | None) -> Outcome:
        """Take in an offer: refuse it before anything travels, or ask for the chunks that are missing."""
        if offer.purpose != "update":
            raise MalformedMessageError("a device can offer updates only", advice="It was dropped.")
        settled = self._settled(device, offer.transfer)
        if settled is not None:
            return Outcome(receipt=settled)
        try:
            current = _require_round(context, offer)
            self._require_first(device, offer.round)
            room = self._transfers(device, current)
            transfer = room.begin(offer.plan)
        except UpdateRefusedError as refusal:
            return self._refuse(device, offer, refusal)
        except OversizedMessageError as error:
            return self._refuse(device, offer, UpdateRefusedError(str(error), advice=error.advice, reason="oversized"))
        write_atomically(self._offer_path(device, offer.transfer), offer.encode())
        self._forget_others(device, room, keep=offer.transfer)
        if transfer.complete:
            return self._finish(device, offer, transfer, current)
        missing = transfer.missing_ranges()[:256]
        return Outcome(receipt=Receipt(about=offer.transfer, state="missing", missing=missing))

    def arrived(self, device: str, chunk: Chunk, context: RoundContext | None) -> Outcome:
        """Take in a chunk; when it was the last, open, check and count the update.

        Raises:
            TransferError: it belongs to nothing that was offered, or does not fit it.
        """
        settled = self._settled(device, chunk.transfer)
        if settled is not None:
            return Outcome(receipt=settled)
        try:
            offer = Offer.decode(self._offer_path(device, chunk.transfer).read_bytes())
        except FileNotFoundError as cause:
            raise TransferError("a chunk came of a transfer that was not offered", advice="It was dropped.") from cause
        try:
            current = _require_round(context, offer)
            self._require_first(device, offer.round)
        except UpdateRefusedError as refusal:
            return self._refuse(device, offer, refusal)
        transfer = self._transfers(device, current).begin(offer.plan)
        transfer.add(chunk.index, chunk.data)
        return self._finish(device, offer, transfer, current) if transfer.complete else Outcome(receipt=None)

    def _finish(self, device: str, offer: Offer, transfer: IncomingTransfer, context: RoundContext) -> Outcome:
        """Open a complete update, check it, and count it or refuse it."""
        try:
            body = self._open(device, offer, transfer, context)
            header, delta = _check(body, offer, context)
        except TransferError:
            # The whole is not what was announced, and nobody knows which chunk is wrong: all of it is asked for again.
            again = self._transfers(device, context).begin(offer.plan)
            return Outcome(receipt=Receipt(about=offer.transfer, state="missing", missing=again.missing_ranges()[:256]))
        except UpdateRefusedError as refusal:
            return self._refuse(device, offer, refusal)
        except (SealBrokenError, OversizedMessageError) as error:
            broken = UpdateRefusedError(str(error), advice=error.advice, reason="seal-broken")
            return self._refuse(device, offer, broken)
        row = UpdateRow(
            update_id=self._blobs.put(body),
            round=offer.round,
            device=device,
            transfer=offer.transfer.hex(),
            tokens=header.tokens,
            norm=delta.norm,
            wire_bytes=offer.size,
            fp32_bytes=4 * delta.parameter_count,
        )
        counted = self._store.add_update(row, accepted=int(time.time()))
        self._forget(device, offer.transfer, transfer)
        if not counted:
            return self._refuse(device, offer, _second(device, offer.round))
        return Outcome(receipt=Receipt(about=offer.transfer, state="done"), counted=row)

    def _open(self, device: str, offer: Offer, transfer: IncomingTransfer, context: RoundContext) -> bytes:
        assert context.seal_key is not None
        info = update_info(self._community, device, offer.transfer, offer.round, offer.adapter)
        key = context.seal_key.unseal(offer.sealed_key, info)
        whole = transfer.assemble()
        size = offer.chunk_bytes
        return open_stream((whole[start : start + size] for start in range(0, len(whole), size)), key, len(whole))

    def _refuse(self, device: str, offer: Offer, refusal: UpdateRefusedError) -> Outcome:
        """Make a refusal durable and forget what came."""
        self._store.add_refusal(
            number=offer.round,
            device=device,
            transfer=offer.transfer.hex(),
            reason=refusal.reason,
            message=refusal.message,
        )
        self._forget(device, offer.transfer, None)
        return Outcome(
            receipt=_refused(offer.transfer, refusal.reason, refusal.message, refusal.advice), refused=refusal
        )

    def _settled(self, device: str, transfer: bytes) -> Receipt | None:
        """Give the receipt of a transfer that was counted or refused before."""
        outcome = self._store.settlement(device, transfer.hex())
        if outcome is None:
            return None
        reason, message = outcome
        if not reason:
            return Receipt(about=transfer, state="done")
        return _refused(transfer, reason, message, "It was refused before, and stays so.")

    def _require_first(self, device: str, number: int) -> None:
        if any(row.device == device for row in self._store.updates(number)):
            raise _second(device, number)

    def _transfers(self, device: str, context: RoundContext) -> TransferStore:
        largest = largest_update(context.community)
        return TransferStore(self._directory / device, max_bytes=largest, max_total_bytes=MAX_OPEN_TRANSFERS * largest)

    def _forget_others(self, device: str, room: TransferStore, *, keep: bytes) -> None:
        """Keep a device to its newest few unfinished transfers."""
        others = [transfer for transfer in room.stored() if transfer.plan.id != keep]
        others.sort(key=lambda transfer: _age(self._offer_path(device, transfer.plan.id)))
        for transfer in others[: max(0, len(others) - MAX_OPEN_TRANSFERS + 2)]:
            self._forget(device, transfer.plan.id, transfer)

    def _forget(self, device: str, transfer: bytes, incoming: IncomingTransfer | None) -> None:
        if incoming is not None:
            incoming.discard()
        else:
            shutil.rmtree(self._directory / device / transfer.hex(), ignore_errors=True)
        self._offer_path(device, transfer).unlink(missing_ok=True)

    def _offer_path(self, device: str, transfer: bytes) -> Path:
        directory = self._directory / device
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory / f"{transfer.hex()}.offer"


def _age(path: Path) -> float:
    """When an offer came; nothing where there is none."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def largest_update(community: Adapter) -> int:
    """Give how many sealed bytes an update to this adapter can have at most: plain float32, header and seals."""
    plain = 4 * community.parameter_count + 256 * 1024
    return plain + 16 * (2 + plain // (64 * 1024))


def _require_round(context: RoundContext | None, offer: Offer) -> RoundContext:
    """Refuse an update that is not for the round that is open, or did not start from its release."""
    if context is None or context.state.phase != "open" or context.state.number != offer.round:
        now = "no round" if context is None else f"round {context.state.number} ({context.state.phase})"
        raise UpdateRefusedError(
            f"round {offer.round} takes no updates: the hub is at {now}",
            advice="Train for the round that is announced.",
            reason="round-closed",
        )
    if offer.adapter != context.start_sha256:
        raise UpdateRefusedError(
            f"the update started from {offer.adapter[:10]}, the round starts from {context.start_sha256[:10]}",
            advice="Fetch the current release and train from it.",
            reason="wrong-start",
        )
    return context


def _check(body: bytes, offer: Offer, context: RoundContext) -> tuple[UpdateHeader, Delta]:
    """Hold an opened update against the charter and its own offer.

    Raises:
        UpdateRefusedError: with a stable reason.
    """
    charter = context.charter
    header, delta = decode_update(
        body, expected=context.community.shapes, max_rank=context.community.rank, max_bytes=len(body)
    )
    said = (header.round, header.start_release, header.base_sha256)
    if said != (offer.round, context.start_sha256, charter.base_sha256):
        raise UpdateRefusedError(
            "the update is for another round, release or base than its offer said",
            advice="Update Bramble on the device.",
            reason="wrong-header",
        )
    if abs(header.alpha / header.rank - context.community.scaling) > 1e-6:
        raise UpdateRefusedError(
            "the update has another scaling than the community's adapter",
            advice="Update Bramble on the device.",
            reason="wrong-scaling",
        )
    if delta.norm > charter.max_update_norm * NORM_SLACK:
        raise UpdateRefusedError(
            f"the update's norm is {delta.norm:.3g}, the charter allows {charter.max_update_norm:.3g}",
            advice="The device must clip its updates; update Bramble on it.",
            reason="norm",
        )
    return header, delta


def _second(device: str, number: int) -> UpdateRefusedError:
    return UpdateRefusedError(
        f"device {device[:10]} has an update in round {number} already",
        advice="One update a device a round counts.",
        reason="already-counted",
    )


def _refused(transfer: bytes, reason: str, message: str, advice: str) -> Receipt:
    return Receipt(about=transfer, state="refused", reason=reason, message=message[:500], advice=advice[:500])
