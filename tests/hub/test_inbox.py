"""Transfers as they come in at the hub: resumed, refused early, bounded, and counted once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.crypto.sealing import SealKey
from agent.errors import MalformedMessageError, NoRoomError, ProtocolError, TransferError, UpdateRefusedError
from agent.federation.messages import Chunk, Offer
from agent.federation.sealing import Parcel, wrap_update
from agent.hub.inbox import MAX_DAMAGED, MAX_OPEN_TRANSFERS, Inbox, RoundContext, largest_update
from agent.hub.placing import RoundTerms, Situation
from agent.hub.rounds import RoundState
from agent.hub.store import HubStore, open_store
from agent.llm.adapter import from_bytes
from agent.paths import BlobStore
from agent.testing import random_delta
from agent.transport.transfer import CHUNK_BYTES
from agent.update.wire import UpdateHeader, encode_update
from tests.hub.world import make_world

DEVICE = "a" * 52
OTHER = "b" * 52
HUB = "h" * 52


class Desk:
    """An inbox at an open round, and updates for it."""

    def __init__(self, store: HubStore) -> None:
        self.store = store
        self.config = store.config
        self.community = bytes.fromhex(self.config.community)
        self.blobs = BlobStore(store.home.blobs)
        release = store.releases()[-1].manifest
        self.start = release.sha256
        self.seal_key = SealKey.generate()
        self.context = self.at(RoundState(number=1, phase="open", deadline=0.0))

    def at(self, state: RoundState, **rules: int) -> RoundContext:
        """Give what updates are held against in this state, where round 1 was begun and its key is not forgotten."""
        charter = self.config.charter.model_copy(update={"compression": "none"})  # so that updates have several chunks
        now = Situation(
            state=state,
            rules=charter.rounds.model_copy(update=rules),
            line=self.store.line(),
            terms={1: RoundTerms(start=self.start, seal_key=self.seal_key)},
            last_round=None,
            community=self.config.community,
        )
        return RoundContext(now=now, community=from_bytes(self.blobs.get(self.start)), charter=charter)

    def inbox(self, **options: int) -> Inbox:
        return Inbox(
            store=self.store,
            blobs=self.blobs,
            directory=self.store.home.inbox,
            community=self.community,
            hub=HUB,
            **options,
        )

    def parcel(
        self,
        compression: str = "none",
        *,
        density: float = 1.0,
        seed: int = 0,
        device: str = DEVICE,
        tokens: int = 10,
        steps: int = 1,
    ) -> Parcel:
        start = self.context.community
        header = UpdateHeader(
            round=1,
            base_sha256=self.config.charter.base_sha256,
            start_release=self.start,
            rank=start.rank,
            alpha=start.alpha,
            tokens=tokens,
            steps=steps,
            seed=seed,
        )
        delta = random_delta(shapes=start.shapes, rank=start.rank, seed=seed)
        body = encode_update(header, delta, compression, density=density)
        return wrap_update(
            body,
            seal_key=self.seal_key.public,
            community=self.community,
            hub=HUB,
            device=device,
            round_number=1,
            start_sha256=self.start,
        )

    def chunk(self, parcel: Parcel, index: int) -> Chunk:
        return Chunk(transfer=parcel.offer.transfer, index=index, data=parcel.chunks[index])


@pytest.fixture
def desk(tmp_path: Path, tiny_q8: Path) -> Iterator[Desk]:
    with open_store(make_world(tmp_path / "hub", tiny_q8).home) as store:
        yield Desk(store)


def test_update_is_counted_when_its_last_chunk_is_here_and_leaves_nothing_behind(desk: Desk) -> None:
    inbox, parcel = desk.inbox(), desk.parcel()
    assert len(parcel.chunks) > 1
    asked = inbox.offered(DEVICE, parcel.offer, desk.context).receipt
    assert asked is not None
    assert (asked.state, asked.missing) == ("missing", [(0, len(parcel.chunks))])
    for index in reversed(range(1, len(parcel.chunks))):
        assert inbox.arrived(DEVICE, desk.chunk(parcel, index), desk.context).receipt is None
    outcome = inbox.arrived(DEVICE, desk.chunk(parcel, 0), desk.context)
    assert outcome.receipt is not None
    assert outcome.receipt.state == "done"
    assert outcome.counted is not None
    assert desk.blobs.has(outcome.counted.update_id)
    assert [row.device for row in desk.store.updates(1)] == [DEVICE]
    inbox.tidy(DEVICE, outcome)
    assert list((desk.store.home.inbox / DEVICE).iterdir()) == []


def test_transfer_goes_on_after_a_restart_with_what_is_missing(desk: Desk) -> None:
    parcel = desk.parcel()
    desk.inbox().offered(DEVICE, parcel.offer, desk.context)
    desk.inbox().arrived(DEVICE, desk.chunk(parcel, 1), desk.context)
    receipt = desk.inbox().offered(DEVICE, parcel.offer, desk.context).receipt
    assert receipt is not None
    assert [index for first, length in receipt.missing for index in range(first, first + length)] == [
        index for index in range(len(parcel.chunks)) if index != 1
    ]


def test_update_offered_again_after_it_was_counted_gets_the_same_receipt(desk: Desk) -> None:
    inbox, parcel = desk.inbox(), desk.parcel()
    inbox.offered(DEVICE, parcel.offer, desk.context)
    for index in range(len(parcel.chunks)):
        inbox.arrived(DEVICE, desk.chunk(parcel, index), desk.context)
    for late in (None, desk.context):
        again = desk.inbox().offered(DEVICE, parcel.offer, late)
        assert again.counted is None
        assert again.receipt is not None
        assert again.receipt.state == "done"
        assert desk.inbox().arrived(DEVICE, desk.chunk(parcel, 0), late).receipt == again.receipt
    assert len(desk.store.updates(1)) == 1


def test_refused_update_stays_refused_with_its_reason(desk: Desk) -> None:
    parcel = desk.parcel()
    later = desk.at(RoundState(number=2, phase="open", deadline=0.0), max_staleness=0)
    first = desk.inbox().offered(DEVICE, parcel.offer, later)
    assert first.refused is not None
    assert first.refused.reason == "too-late"
    again = desk.inbox().offered(DEVICE, parcel.offer, desk.context).receipt
    assert again is not None
    assert (again.state, again.reason) == ("refused", "too-late")


def test_update_sealed_by_one_device_and_sent_by_another_is_refused(desk: Desk) -> None:
    inbox, stolen = desk.inbox(), desk.parcel(device=DEVICE)
    outcome = inbox.offered(OTHER, stolen.offer, desk.context)  # before any chunk travels
    assert outcome.refused is not None
    assert outcome.refused.reason == "seal-broken"
    for index in range(len(stolen.chunks)):
        receipt = inbox.arrived(OTHER, desk.chunk(stolen, index), desk.context).receipt
        assert receipt is not None
        assert (receipt.state, receipt.reason) == ("refused", "seal-broken")
    assert desk.store.updates(1) == []


@pytest.mark.parametrize(
    ("charter", "sent", "counts"),
    [
        (("int4", 0.1), ("int4", 0.1), True),
        (("int4", 0.1), ("int4", 0.2), True),  # which only topk has a use for
        (("int4", 0.1), ("none", 0.1), False),
        (("int8", 0.1), ("topk", 0.1), False),
        (("topk", 0.1), ("topk", 0.1), True),
        (("topk", 0.1), ("topk", 0.9), False),
    ],
)
def test_update_counts_in_the_charters_compression_alone(
    desk: Desk, charter: tuple[str, float], sent: tuple[str, float], *, counts: bool
) -> None:
    rules = desk.context.charter.model_copy(update=dict(zip(("compression", "density"), charter, strict=True)))
    context = dataclasses.replace(desk.context, charter=rules)
    inbox, parcel = desk.inbox(), desk.parcel(sent[0], density=sent[1])
    inbox.offered(DEVICE, parcel.offer, context)
    for index in range(len(parcel.chunks)):
        outcome = inbox.arrived(DEVICE, desk.chunk(parcel, index), context)
    assert (outcome.counted is not None) == counts
    if not counts:
        assert outcome.refused is not None
        assert outcome.refused.reason == "compression"
        assert desk.store.updates(1) == []


def test_update_that_is_too_large_is_refused_before_it_travels(desk: Desk) -> None:
    offer = desk.parcel().offer
    size = largest_update(desk.context.community) + 1
    inbox = desk.inbox()
    outcome = inbox.offered(DEVICE, offer.model_copy(update={"size": size}), desk.context)
    assert outcome.refused is not None
    assert outcome.refused.reason == "oversized"
    inbox.tidy(DEVICE, outcome)
    assert not list(desk.store.home.inbox.rglob("*.offer"))


def test_chunk_that_was_damaged_is_asked_for_alone_and_the_update_counts(desk: Desk) -> None:
    inbox, parcel = desk.inbox(), desk.parcel()
    inbox.offered(DEVICE, parcel.offer, desk.context)
    wrong = Chunk(transfer=parcel.offer.transfer, index=1, data=os.urandom(len(parcel.chunks[1])))
    receipt = inbox.arrived(DEVICE, wrong, desk.context).receipt
    assert receipt is not None
    assert (receipt.state, receipt.missing) == ("missing", [(1, 1)])
    for index in range(len(parcel.chunks)):
        outcome = inbox.arrived(DEVICE, desk.chunk(parcel, index), desk.context)
    assert outcome.counted is not None


def test_device_that_keeps_sending_a_damaged_chunk_is_refused_in_the_end(desk: Desk) -> None:
    inbox, parcel = desk.inbox(), desk.parcel()
    inbox.offered(DEVICE, parcel.offer, desk.context)
    wrong = Chunk(transfer=parcel.offer.transfer, index=1, data=os.urandom(len(parcel.chunks[1])))
    outcomes = [inbox.arrived(DEVICE, wrong, desk.context) for _ in range(MAX_DAMAGED + 1)]
    assert [outcome.refused for outcome in outcomes[:-1]] == [None] * MAX_DAMAGED
    assert outcomes[-1].refused is not None
    assert outcomes[-1].refused.reason == "seal-broken"


def test_chunk_that_changed_on_the_hubs_disk_is_asked_for_alone_and_the_update_counts(desk: Desk) -> None:
    inbox, parcel = desk.inbox(), desk.parcel()
    inbox.offered(DEVICE, parcel.offer, desk.context)
    for index in range(len(parcel.chunks) - 1):
        inbox.arrived(DEVICE, desk.chunk(parcel, index), desk.context)
    stored = desk.store.home.inbox / DEVICE / parcel.offer.transfer.hex() / "0"
    stored.write_bytes(bytes(len(parcel.chunks[0])))
    receipt = inbox.arrived(DEVICE, desk.chunk(parcel, len(parcel.chunks) - 1), desk.context).receipt
    assert receipt is not None
    assert (receipt.state, receipt.missing) == ("missing", [(0, 1)])
    assert desk.inbox().arrived(DEVICE, desk.chunk(parcel, 0), desk.context).counted is not None


def test_update_whose_offer_names_another_hash_of_the_whole_is_refused_and_not_asked_for_for_ever(desk: Desk) -> None:
    inbox, parcel = desk.inbox(), desk.parcel()
    inbox.offered(DEVICE, parcel.offer.model_copy(update={"sha256": bytes(32)}), desk.context)
    outcomes = [inbox.arrived(DEVICE, desk.chunk(parcel, index), desk.context) for index in range(len(parcel.chunks))]
    assert outcomes[-1].refused is not None


@pytest.mark.parametrize(("tokens", "steps", "counts"), [(0, 0, True), (1, 1, True), (1, 0, False), (0, 1, False)])
def test_update_that_says_more_tokens_or_steps_than_a_round_has_is_refused(
    desk: Desk, tokens: int, steps: int, *, counts: bool
) -> None:
    """Each as far as a round goes, or one more."""
    plan = desk.context.charter.training
    most = plan.steps * plan.batch_size * plan.window
    inbox = desk.inbox()
    parcel = desk.parcel(tokens=most + (not counts) * tokens, steps=plan.steps + (not counts) * steps)
    inbox.offered(DEVICE, parcel.offer, desk.context)
    for index in range(len(parcel.chunks)):
        outcome = inbox.arrived(DEVICE, desk.chunk(parcel, index), desk.context)
    assert (outcome.counted is not None) == counts
    assert counts or (outcome.refused is not None and outcome.refused.reason == "tokens")


def test_offer_for_which_there_is_no_room_waits_and_is_not_refused_for_good(desk: Desk) -> None:
    first, second = desk.parcel(), desk.parcel(seed=1, device=OTHER)
    inbox = desk.inbox(max_parked_bytes=first.offer.size)
    inbox.offered(DEVICE, first.offer, desk.context)
    with pytest.raises(NoRoomError):
        inbox.offered(OTHER, second.offer, desk.context)
    inbox.forget_device(DEVICE)
    assert list((desk.store.home.inbox / DEVICE).iterdir()) == []
    receipt = inbox.offered(OTHER, second.offer, desk.context).receipt
    assert receipt is not None
    assert receipt.state == "missing"


def test_device_that_was_turned_away_is_told_why_and_nothing_is_written_down(desk: Desk) -> None:
    inbox, parcel = desk.inbox(), desk.parcel()
    refusal = UpdateRefusedError("set aside", advice="wait", reason="set-aside")
    receipt = inbox.turn_away(DEVICE, parcel.offer, refusal).receipt
    assert receipt is not None
    assert (receipt.state, receipt.reason) == ("refused", "set-aside")
    assert desk.store.refusals() == []
    again = inbox.offered(DEVICE, parcel.offer, desk.context).receipt
    assert again is not None
    assert again.state == "missing"


def test_chunk_of_nothing_or_of_the_wrong_size_is_refused(desk: Desk) -> None:
    inbox, parcel = desk.inbox(), desk.parcel()
    with pytest.raises(TransferError):
        inbox.arrived(DEVICE, desk.chunk(parcel, 0), desk.context)
    inbox.offered(DEVICE, parcel.offer, desk.context)
    for chunk in (
        Chunk(transfer=parcel.offer.transfer, index=0, data=b"short"),
        Chunk(transfer=parcel.offer.transfer, index=len(parcel.chunks), data=b"beyond"),
    ):
        with pytest.raises(ProtocolError):
            inbox.arrived(DEVICE, chunk, desk.context)
    with pytest.raises(TransferError):  # another device cannot add to it
        inbox.arrived(OTHER, desk.chunk(parcel, 0), desk.context)


def test_offer_whose_numbers_make_no_transfer_is_refused_and_the_hub_lives(desk: Desk) -> None:
    offer = desk.parcel().offer
    for change in ({"chunk_bytes": 1, "size": 10**6}, {"purpose": "adapter"}):
        with pytest.raises(ProtocolError):
            desk.inbox().offered(DEVICE, offer.model_copy(update=change), desk.context)
    with pytest.raises(MalformedMessageError):
        Offer.decode(offer.model_copy(update={"chunk_bytes": CHUNK_BYTES + 1}).encode())


def test_unfinished_transfers_of_a_device_are_bounded(desk: Desk) -> None:
    inbox = desk.inbox()
    parcels = [desk.parcel(seed=seed) for seed in range(MAX_OPEN_TRANSFERS + 3)]
    for parcel in parcels:
        inbox.offered(DEVICE, parcel.offer, desk.context)
        inbox.arrived(DEVICE, desk.chunk(parcel, 0), desk.context)
    kept = list((desk.store.home.inbox / DEVICE).glob("*.offer"))
    assert 0 < len(kept) <= MAX_OPEN_TRANSFERS
    newest = parcels[-1]
    for index in range(1, len(newest.chunks)):
        outcome = inbox.arrived(DEVICE, desk.chunk(newest, index), desk.context)
    assert outcome.counted is not None


def test_transfers_of_rounds_that_are_over_and_of_a_killed_hub_are_removed(desk: Desk) -> None:
    inbox, kept, settled, cut = desk.inbox(), desk.parcel(), desk.parcel(seed=1, device=OTHER), desk.parcel(seed=2)
    for device, parcel in ((DEVICE, kept), (OTHER, settled), (DEVICE, cut)):
        inbox.offered(device, parcel.offer, desk.context)
        inbox.arrived(device, desk.chunk(parcel, 0), desk.context)
    for index in range(len(settled.chunks)):
        outcome = inbox.arrived(OTHER, desk.chunk(settled, index), desk.context)
    assert outcome.counted is not None  # and the hub is killed before it can tidy
    (desk.store.home.inbox / DEVICE / f"{cut.offer.transfer.hex()}.offer").unlink()  # killed before it was written
    again = desk.inbox()
    again.keep_only({1})
    left = {path.name for directory in desk.store.home.inbox.iterdir() for path in directory.iterdir()}
    assert left == {kept.offer.transfer.hex(), f"{kept.offer.transfer.hex()}.offer"}
    receipt = again.offered(DEVICE, kept.offer, desk.context).receipt
    assert receipt is not None
    assert receipt.missing == [(1, len(kept.chunks) - 1)]
    again.keep_only({2})
    assert list(desk.store.home.inbox.iterdir()) == []
