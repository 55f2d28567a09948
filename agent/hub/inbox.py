"""What arrives at the hub for a round: offers and chunks, put together, opened, checked, and counted once.

Nothing here talks to a broker: bytes come in, receipts go out. A transfer that is complete is either counted or
refused, with a stable reason. The outcome is part of the caller's transaction: when that is committed, the receipt may
be sent, and what the transfer left on the disk be removed (:meth:`Inbox.tidy`).

Chunks need not survive a power cut. A device keeps what it sends until it has the receipt, and offers it again; the
whole is held against its hash.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter, OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.crypto.sealing import open_stream, pieces
from agent.errors import (
    MalformedMessageError,
    OversizedMessageError,
    ProtocolError,
    SealBrokenError,
    TransferError,
    UpdateRefusedError,
)
from agent.federation.messages import Chunk, Offer, Receipt
from agent.federation.sealing import check_of, update_info
from agent.governance.charter import Charter
from agent.hub.parking import MAX_PARKED_BYTES, Parking
from agent.hub.placing import RoundTerms, Situation, place
from agent.hub.store import HubStore, UpdateRow
from agent.llm.adapter import Adapter
from agent.paths import BlobStore, explained_disk
from agent.transport.transfer import Check, DamagedChunksError, IncomingTransfer, TransferStore, ranges
from agent.update.delta import Delta
from agent.update.wire import OpenedUpdate, UpdateHeader, open_update

KEYS_AT_HAND = 256
"""Keys of transfers that need not be opened again for each chunk."""

MAX_DAMAGED = 3
"""How often chunks of one transfer may come that do not open, though their sender signed them, before it is refused."""

MAX_OPEN_TRANSFERS = 4
"""Unfinished transfers that one device may have; one more puts out the oldest."""

NORM_SLACK = 1.01
"""Rounding in the compression may lift a norm a little above what the device clipped to."""


TRANSFERS_AT_HAND = 256
"""Transfers whose offer and chunks need not be looked up on the disk for each chunk."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to answer, and what became of the update if it was complete.

    Attributes:
        superseded: id of the update that a counted one takes the place of, if any.
        over: the transfer that was settled, to be tidied away.
        round: what a refused update was made for.
    """

    receipt: Receipt | None
    counted: UpdateRow | None = None
    superseded: str = ""
    refused: UpdateRefusedError | None = None
    over: bytes | None = None
    round: int = 0


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What an update is held against."""

    now: Situation
    community: Adapter
    charter: Charter

    def accept(self, device: str, offer: Offer) -> tuple[int, RoundTerms]:
        """Give the round in whose merge an update counts, and the terms of the round it was made for.

        Raises:
            UpdateRefusedError: it counts nowhere.
        """
        merge = place(self.now, device=device, round_number=offer.round, start=offer.adapter)
        return merge, self.now.terms[offer.round]


class Inbox:
    """The hub's side of transfers.

    Args:
        store: where outcomes are made durable.
        blobs: where opened updates are kept until they are merged.
        directory: where chunks wait for the rest; survives a restart.
        community: its 16-byte id.
        hub: fingerprint of the hub's keys.
        max_parked_bytes: what all unfinished transfers together may announce.
    """

    def __init__(
        self,
        *,
        store: HubStore,
        blobs: BlobStore,
        directory: Path,
        community: bytes,
        hub: str,
        max_parked_bytes: int = MAX_PARKED_BYTES,
    ) -> None:
        self._parking = Parking(directory, max_bytes=max_parked_bytes)
        self._store = store
        self._blobs = blobs
        self._directory = directory
        self._community = community
        self._hub = hub
        self._at_hand: OrderedDict[tuple[str, bytes], tuple[Offer, IncomingTransfer]] = OrderedDict()
        self._keys: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()
        self._times_damaged: Counter[tuple[str, bytes]] = Counter()

    def offered(self, device: str, offer: Offer, context: RoundContext | None) -> Outcome:
        """Take in an offer: refuse it before anything travels, or ask for the chunks that are missing.

        Raises:
            NoRoomError: there is no room for it now; its device offers it again.
        """
        if offer.purpose != "update":
            raise MalformedMessageError("a device can offer updates only", advice="It was dropped.")
        settled = self._settled(device, offer.transfer)
        if settled is not None:
            return Outcome(receipt=settled)
        try:
            current = _require(context)
            _merge, terms = current.accept(device, offer)
            self._require_first(device, offer.round)
            room = self._transfers(device, current)
            if offer.size <= room.max_bytes:  # else it is refused for good, below
                self._parking.require(device, offer)
            transfer = room.begin(offer.plan, check=self._check(device, offer, terms))
        except UpdateRefusedError as refusal:
            return self._refuse(device, offer, refusal)
        except SealBrokenError as error:
            return self._refuse(device, offer, _broken(error))
        except OversizedMessageError as error:
            return self._refuse(device, offer, UpdateRefusedError(str(error), advice=error.advice, reason="oversized"))
        self._keep_offer(device, offer)
        self._parking.begin(device, offer)
        self._hold(device, offer, transfer)
        self._forget_others(device, room, keep=offer.transfer)
        if transfer.complete:
            return self._finish(device, offer, transfer, current)
        missing = transfer.missing_ranges()[:256]
        return Outcome(receipt=Receipt(about=offer.transfer, state="missing", missing=missing))

    def turn_away(self, device: str, offer: Offer, refusal: UpdateRefusedError) -> Outcome:
        """Refuse an offer for something that its device did before; the database need not remember that."""
        settled = self._settled(device, offer.transfer)
        if settled is not None:
            return Outcome(receipt=settled)
        receipt = _refused(offer.transfer, refusal.reason, refusal.message, refusal.advice)
        return Outcome(receipt=receipt, refused=refusal, over=offer.transfer, round=offer.round)

    def arrived(self, device: str, chunk: Chunk, context: RoundContext | None) -> Outcome:
        """Take in a chunk; when it was the last, open, check and count the update.

        Raises:
            TransferError: it belongs to nothing that was offered, or does not fit it.
        """
        settled = self._settled(device, chunk.transfer)
        if settled is not None:
            return Outcome(receipt=settled)
        current = _require(context)
        offer = self._offer(device, chunk.transfer)
        try:
            _merge, terms = current.accept(device, offer)
            self._require_first(device, offer.round)
            transfer = self._under_way(device, offer, current, terms)
        except UpdateRefusedError as refusal:
            return self._refuse(device, offer, refusal)
        except SealBrokenError as error:
            return self._refuse(device, offer, _broken(error))
        try:
            transfer.add(chunk.index, chunk.data)
        except DamagedChunksError as error:
            return self._damaged(device, offer, error)
        return self._finish(device, offer, transfer, current) if transfer.complete else Outcome(receipt=None)

    def tidy(self, device: str, outcome: Outcome) -> None:
        """Remove what a settled transfer left on the disk, and an update that was superseded; after the commit."""
        if outcome.over is not None:
            self._forget(device, outcome.over)
        if outcome.superseded:
            self._blobs.discard(outcome.superseded)

    def forget_device(self, device: str) -> None:
        """Remove every unfinished transfer of a device."""
        for path in (self._directory / device).glob("*.offer"):
            self._forget(device, bytes.fromhex(path.stem))

    def keep_only(self, rounds: Container[int]) -> None:
        """Remove what came of updates for other rounds than these, whose devices may never ask what became of them.

        Also what a hub that was killed left behind of transfers that were settled.
        """
        for directory in (path for path in self._directory.iterdir() if path.is_dir()):
            for path in directory.glob("*.offer"):
                if not self._is_open(directory.name, path, rounds):
                    self._forget(directory.name, bytes.fromhex(path.stem))
            for path in directory.iterdir():
                if path.is_dir() and not path.with_suffix(".offer").exists():
                    shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):  # it is not empty
                directory.rmdir()

    def _is_open(self, device: str, path: Path, rounds: Container[int]) -> bool:
        try:
            offer = Offer.decode(path.read_bytes())
        except (OSError, ProtocolError):
            return False
        return offer.round in rounds and self._settled(device, offer.transfer) is None

    def _finish(self, device: str, offer: Offer, transfer: IncomingTransfer, context: RoundContext) -> Outcome:
        """Open a complete update, check it, and count it or refuse it."""
        try:
            merge, terms = context.accept(device, offer)
            body = self._open(device, offer, transfer, terms)
            header, delta = _check_update(body, offer, context, terms)
        except DamagedChunksError as error:  # on this disk
            return self._ask_again(offer, error.chunks)
        except UpdateRefusedError as refusal:
            return self._refuse(device, offer, refusal)
        except (TransferError, SealBrokenError, OversizedMessageError) as error:
            return self._refuse(device, offer, _broken(error))
        row = UpdateRow(
            update_id=self._blobs.put(body),
            round=offer.round,
            device=device,
            transfer=offer.transfer.hex(),
            tokens=header.tokens,
            norm=delta.norm,
            wire_bytes=offer.size,
            fp32_bytes=4 * delta.parameter_count,
            start=offer.adapter,
            merge=merge,
        )
        fate, superseded = self._store.add_update(row, accepted=int(time.time()))
        if fate == "already-counted":
            return self._refuse(device, offer, _second(device, offer.round))
        if fate == "superseded":
            self._blobs.discard(row.update_id)
            return self._refuse(device, offer, _older(device, offer.round, merge))
        done = Receipt(about=offer.transfer, state="done")
        return Outcome(receipt=done, counted=row, superseded=superseded, over=offer.transfer)

    def _damaged(self, device: str, offer: Offer, error: DamagedChunksError) -> Outcome:
        """Ask once more for a chunk that is not what was sealed; not for ever, since its sender signed it."""
        self._times_damaged[device, offer.transfer] += 1
        if self._times_damaged[device, offer.transfer] > MAX_DAMAGED:
            return self._refuse(device, offer, _broken(error))
        return self._ask_again(offer, error.chunks)

    def _ask_again(self, offer: Offer, chunks: Sequence[int]) -> Outcome:
        return Outcome(receipt=Receipt(about=offer.transfer, state="missing", missing=ranges(chunks)[:256]))

    def _check(self, device: str, offer: Offer, terms: RoundTerms) -> Check:
        """Give what tells the chunks of an update from others.

        Raises:
            SealBrokenError: the offer's key does not open.
        """
        return check_of(self._key(device, offer, terms), offer.plan)

    def _key(self, device: str, offer: Offer, terms: RoundTerms) -> bytes:
        """Give the key that an update's chunks were sealed with."""
        known = self._keys.get((device, offer.sealed_key))
        if known is None:
            info = update_info(
                self._community,
                self._hub,
                device,
                offer.transfer,
                round_number=offer.round,
                start_sha256=offer.adapter,
            )
            known = self._keys[device, offer.sealed_key] = terms.seal_key.unseal(offer.sealed_key, info)
            while len(self._keys) > KEYS_AT_HAND:
                self._keys.popitem(last=False)
        return known

    def _open(self, device: str, offer: Offer, transfer: IncomingTransfer, terms: RoundTerms) -> bytearray:
        key = self._key(device, offer, terms)
        whole = transfer.assemble()
        return open_stream(pieces(whole, offer.chunk_bytes), key, len(whole))

    def _refuse(self, device: str, offer: Offer, refusal: UpdateRefusedError) -> Outcome:
        """Remember a refusal."""
        self._store.add_refusal(
            number=offer.round,
            device=device,
            transfer=offer.transfer.hex(),
            reason=refusal.reason,
            message=refusal.message,
        )
        return Outcome(
            receipt=_refused(offer.transfer, refusal.reason, refusal.message, refusal.advice),
            refused=refusal,
            over=offer.transfer,
            round=offer.round,
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
        if self._store.counts_already(device, number):
            raise _second(device, number)

    def _transfers(self, device: str, context: RoundContext) -> TransferStore:
        largest = largest_update(context.community)
        return TransferStore(
            self._directory / device, max_bytes=largest, max_total_bytes=MAX_OPEN_TRANSFERS * largest, durable=False
        )

    def _offer(self, device: str, transfer: bytes) -> Offer:
        """Give what announced a transfer, also before a restart.

        Raises:
            TransferError: nothing did.
        """
        found = self._at_hand.get((device, transfer))
        if found is not None:
            return found[0]
        try:
            return Offer.decode(self._offer_path(device, transfer).read_bytes())
        except (FileNotFoundError, ProtocolError) as cause:
            raise TransferError("a chunk came of a transfer that was not offered", advice="It was dropped.") from cause

    def _under_way(self, device: str, offer: Offer, context: RoundContext, terms: RoundTerms) -> IncomingTransfer:
        """Give a transfer that was offered, also before a restart.

        Raises:
            SealBrokenError: its key does not open.
        """
        found = self._at_hand.get((device, offer.transfer))
        if found is None:
            check = self._check(device, offer, terms)
            found = (offer, self._transfers(device, context).begin(offer.plan, check=check))
            self._hold(device, *found)
        return found[1]

    def _hold(self, device: str, offer: Offer, transfer: IncomingTransfer) -> None:
        """Have a transfer at hand for its next chunk."""
        self._at_hand[device, offer.transfer] = (offer, transfer)
        self._at_hand.move_to_end((device, offer.transfer))
        while len(self._at_hand) > TRANSFERS_AT_HAND:
            self._at_hand.popitem(last=False)

    def _keep_offer(self, device: str, offer: Offer) -> None:
        """Write an offer beside its chunks, whole or not at all; a power cut may take it, as it may take the chunks."""
        path = self._offer_path(device, offer.transfer)
        with explained_disk(path):
            fresh = path.with_name(".offer.new")  # one a device, so that a kill leaves no more than one behind
            fresh.write_bytes(offer.encode())
            fresh.replace(path)

    def _forget_others(self, device: str, room: TransferStore, *, keep: bytes) -> None:
        """Keep a device to its newest few unfinished transfers."""
        others = [transfer for transfer in room.stored() if transfer.plan.id != keep]
        others.sort(key=lambda transfer: _age(self._offer_path(device, transfer.plan.id)))
        for transfer in others[: max(0, len(others) - MAX_OPEN_TRANSFERS + 2)]:
            self._forget(device, transfer.plan.id)

    def _forget(self, device: str, transfer: bytes) -> None:
        self._at_hand.pop((device, transfer), None)
        self._times_damaged.pop((device, transfer), None)
        self._parking.end(device, transfer)
        shutil.rmtree(self._directory / device / transfer.hex(), ignore_errors=True)
        self._offer_path(device, transfer).unlink(missing_ok=True)

    def _offer_path(self, device: str, transfer: bytes) -> Path:
        directory = self._directory / device
        with explained_disk(directory):
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


def _require(context: RoundContext | None) -> RoundContext:
    """Refuse whatever comes before the first round.

    Raises:
        TransferError: there is no round yet.
    """
    if context is None:
        raise TransferError("the hub has not begun its first round", advice="It was dropped; offer it again.")
    return context


def _check_update(
    body: bytearray, offer: Offer, context: RoundContext, terms: RoundTerms
) -> tuple[UpdateHeader, Delta]:
    """Hold an opened update against the charter and its own offer.

    Raises:
        UpdateRefusedError: with a stable reason.
    """
    charter = context.charter
    opened = open_update(body, expected=context.community.shapes, max_rank=context.community.rank, max_bytes=len(body))
    _require_compression(opened, charter)
    header, delta = opened.header, opened.delta()
    said = (header.round, header.start_release, header.base_sha256)
    if said != (offer.round, offer.adapter, charter.base_sha256):
        raise UpdateRefusedError(
            "the update is for another round, release or base than its offer said",
            advice="Update Bramble on the device.",
            reason="wrong-header",
        )
    if delta.factors != terms.factors:
        raise UpdateRefusedError(
            f"the update changes {delta.factors} of the factors, round {offer.round} trains {terms.factors}",
            advice="Update Bramble on the device.",
            reason="factors",
        )
    if abs(header.alpha / header.rank - context.community.scaling) > 1e-6:
        raise UpdateRefusedError(
            "the update has another scaling than the community's adapter",
            advice="Update Bramble on the device.",
            reason="wrong-scaling",
        )
    plan = charter.training
    if header.steps > plan.steps or header.tokens > plan.steps * plan.batch_size * plan.window:
        raise UpdateRefusedError(
            f"the update says {header.steps:,} steps and {header.tokens:,} tokens, more than a round has",
            advice="Update Bramble on the device.",
            reason="tokens",
        )
    if delta.norm > charter.max_update_norm * NORM_SLACK:
        raise UpdateRefusedError(
            f"the update's norm is {delta.norm:.3g}, the charter allows {charter.max_update_norm:.3g}",
            advice="The device must clip its updates; update Bramble on it.",
            reason="norm",
        )
    return header, delta


def _require_compression(opened: OpenedUpdate, charter: Charter) -> None:
    """Refuse an update in another compression than the community's, before its numbers are expanded.

    Raises:
        UpdateRefusedError: it is in another.
    """
    with_density = charter.compression == "topk"
    if opened.compression != charter.compression or (with_density and opened.density != charter.density):
        raise UpdateRefusedError(
            f"the update is compressed by {opened.compression} (density {opened.density:g}), the charter says "
            f"{charter.compression}" + (f" (density {charter.density:g})" if with_density else ""),
            advice="Update Bramble on the device.",
            reason="compression",
        )


def _broken(error: ProtocolError) -> UpdateRefusedError:
    return UpdateRefusedError(str(error), advice=error.advice, reason="seal-broken")


def _second(device: str, number: int) -> UpdateRefusedError:
    return UpdateRefusedError(
        f"device {device[:10]} has an update in round {number} already",
        advice="One update a device a round counts.",
        reason="already-counted",
    )


def _older(device: str, number: int, merge: int) -> UpdateRefusedError:
    return UpdateRefusedError(
        f"device {device[:10]} has a newer update than that of round {number} in the merge of round {merge}",
        advice="Of a device's updates in one merge the newest counts.",
        reason="superseded",
    )


def _refused(transfer: bytes, reason: str, message: str, advice: str) -> Receipt:
    return Receipt(about=transfer, state="refused", reason=reason, message=message[:500], advice=advice[:500])
