"""The outbox being emptied, against a hub that is played by the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.crypto.envelope import parse, verify
from agent.crypto.identity import Identity
from agent.errors import BrokerRefusedError, StateError
from agent.federation.messages import Chunk, Offer, Receipt, Verdict
from agent.federation.sending import Sender, queue_transfer
from agent.federation.store import DeviceStore, RoundRecord, open_device_store
from agent.paths import Home
from agent.transport.memory import MemoryBroker, MemoryLink
from agent.transport.topics import Topics
from agent.transport.transfer import CHUNK_BYTES

COMMUNITY = bytes(range(16))
TOPICS = Topics(COMMUNITY.hex())
TRANSFER = b"t" * 16


@dataclass
class Desk:
    """A device that sends, and what the hub hears of it."""

    broker: MemoryBroker
    identity: Identity
    home: Home
    hub: MemoryLink

    @contextlib.asynccontextmanager
    async def sending(
        self,
        *,
        patience: float = 0.1,
        link: MemoryLink | None = None,
        refused: Callable[[BrokerRefusedError], None] = lambda _error: None,
    ) -> AsyncIterator[tuple[Sender, DeviceStore]]:
        """Send while the context lasts; it may be begun again, as after a crash."""
        async with contextlib.AsyncExitStack() as stack:
            if link is None:
                own = MemoryLink(broker=self.broker, client_id="device", username=self.identity.id)
                link = await stack.enter_async_context(own)
            with open_device_store(self.home) as store:
                sender = Sender(
                    store=store,
                    identity=self.identity,
                    link=link,
                    topics=TOPICS,
                    community=COMMUNITY,
                    patience=patience,
                    refused=refused,
                )
                task = asyncio.create_task(sender.run())
                try:
                    yield sender, store
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    async def hear(self, count: int) -> list[tuple[str, bytes, int]]:
        """Give the next messages: kind, body and counter."""
        found = []
        async with asyncio.timeout(10):
            async for message in self.hub.messages():
                message.ack()
                envelope = verify(parse(message.payload), self.identity.public)
                found.append((envelope.kind, envelope.body, envelope.counter))
                if len(found) == count:
                    return found
        raise AssertionError("the link closed")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    home = Home(tmp_path / "device")
    home.create()
    with open_device_store(home, create=True):
        pass
    broker = MemoryBroker()
    async with MemoryLink(broker=broker, client_id="hub", username="hub") as hub:
        await hub.subscribe(TOPICS.all_from())
        yield Desk(broker=broker, identity=Identity.generate(), home=home, hub=hub)


def queue_update(sender: Sender, store: DeviceStore, identity: Identity, *, chunks: int = 5) -> None:
    offer = Offer(
        transfer=TRANSFER,
        purpose="update",
        round=1,
        adapter="a" * 64,
        size=CHUNK_BYTES * chunks,
        chunk_bytes=CHUNK_BYTES,
        sha256=bytes(32),
        sealed_key=b"",
    )
    parts = [Chunk(transfer=TRANSFER, index=index, data=bytes([index]) * 10) for index in range(chunks)]
    record = RoundRecord(round=1, transfer=TRANSFER.hex(), update_id="u", wire_bytes=1, fp32_bytes=1)
    with store.transaction():
        queue_transfer(sender.outbox, TOPICS, identity.id, offer, parts)
        store.add_round(record)
    sender.wake()


def missing(*ranges: tuple[int, int]) -> Receipt:
    return Receipt(about=TRANSFER, state="missing", missing=list(ranges))


async def test_chunks_follow_only_when_the_hub_asks_for_them_and_only_those(desk: Desk) -> None:
    async with desk.sending(patience=60) as (sender, store):
        queue_update(sender, store, desk.identity)
        assert [kind for kind, _body, _counter in await desk.hear(1)] == ["offer"]
        sender.receipt(missing((1, 2), (4, 1)))
        heard = await desk.hear(3)
        assert sorted(Chunk.decode(body).index for _kind, body, _counter in heard) == [1, 2, 4]


async def test_offer_is_made_again_until_there_is_a_receipt_each_time_with_a_new_counter(desk: Desk) -> None:
    async with desk.sending(patience=0.02) as (sender, store):
        queue_update(sender, store, desk.identity)
        heard = await desk.hear(3)
        assert {body for _kind, body, _counter in heard} == {heard[0][1]}
        counters = [counter for _kind, _body, counter in heard]
        assert counters == sorted(set(counters))


@pytest.mark.parametrize(("state", "kept"), [("done", "counted"), ("refused", "refused")])
async def test_receipt_that_settles_a_transfer_empties_the_outbox_and_is_remembered(
    desk: Desk, state: str, kept: str
) -> None:
    async with desk.sending() as (sender, store):
        queue_update(sender, store, desk.identity)
        await desk.hear(1)
        sender.receipt(Receipt(about=TRANSFER, state=state, reason="why"))
        assert sender.outbox.count == 0
        assert [(record.state, record.reason) for record in store.rounds()] == [(kept, "why")]


async def test_update_queued_before_a_crash_is_offered_after_it_with_higher_counters(desk: Desk) -> None:
    async with desk.sending(patience=60) as (sender, store):
        queue_update(sender, store, desk.identity)
        first = await desk.hear(1)
    async with desk.sending(patience=60) as (sender, _store):
        again = await desk.hear(1)
        assert again[0][:2] == first[0][:2]
        assert again[0][2] > first[0][2]
        sender.receipt(missing((0, 5)))
        assert len(await desk.hear(5)) == 5


async def test_verdict_is_sent_until_it_has_a_receipt(desk: Desk) -> None:
    about = Sender.new_id()
    verdict = Verdict(about=about, round=1, candidate="a" * 64, before=2.0, after=1.0, targets=5)
    async with desk.sending(patience=0.02) as (sender, store):
        with store.transaction():
            store.add_verdict("a" * 64, number=1, about=about, before=2.0, after=1.0)
            sender.queue_verdict(verdict)
        sender.wake()
        assert {body for _kind, body, _counter in await desk.hear(2)} == {verdict.encode()}
        sender.receipt(Receipt(about=about, state="done"))
        assert sender.outbox.count == 0
        assert store.judged() == {"a" * 64: (2.0, 1.0)}


async def test_receipt_for_something_unknown_is_taken_calmly(desk: Desk) -> None:
    async with desk.sending(patience=60) as (sender, store):
        queue_update(sender, store, desk.identity)
        sender.receipt(Receipt(about=bytes(16), state="done"))
        sender.receipt(Receipt(about=bytes(16), state="missing", missing=[(0, 3)]))
        sender.receipt(missing((3, 9_000)))
        heard = await desk.hear(3)
        assert sorted(kind for kind, _body, _counter in heard) == ["chunk", "chunk", "offer"]


async def test_receipt_that_asks_for_chunks_that_a_transfer_does_not_have_asks_for_those_it_has(desk: Desk) -> None:
    async with desk.sending(patience=60) as (sender, store):
        queue_update(sender, store, desk.identity)
        await desk.hear(1)
        sender.receipt(missing((7, 9_000)))
        assert not sender._asked
        sender.receipt(missing((3, 9_000), (4, 1)))
        assert sender._asked == {TRANSFER.hex(): [3, 4]}


async def test_sending_goes_on_after_the_broker_was_away(desk: Desk) -> None:
    async with desk.sending(patience=0.02) as (sender, store):
        desk.broker.go_down()
        queue_update(sender, store, desk.identity)
        await asyncio.sleep(0)
        desk.broker.come_back()
        assert (await desk.hear(1))[0][0] == "offer"


async def test_sender_that_is_cancelled_while_it_is_woken_ends(desk: Desk) -> None:
    for _ in range(20):
        async with asyncio.timeout(5), desk.sending(patience=60) as (sender, _store):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            sender.wake()  # and the context ends in the same breath


@pytest.mark.parametrize(
    "trouble", ["PRAGMA query_only = ON", "ALTER TABLE outbox RENAME TO gone"], ids=["no writing", "no reading"]
)
async def test_a_database_that_fails_while_sending_is_explained(desk: Desk, trouble: str) -> None:
    async with desk.sending(patience=60) as (sender, store):
        queue_update(sender, store, desk.identity)
        await desk.hear(1)
        store.connection.execute(trouble)
        sender.outbox._reserved = 0  # it asks the disk for the next counters
        sender.wake()
        with pytest.raises(StateError, match="refused to work"):
            await sender.run()


async def test_a_receipt_that_asks_for_what_has_just_been_sent_answers_an_earlier_offer(desk: Desk) -> None:
    async with desk.sending(patience=60) as (sender, store):
        queue_update(sender, store, desk.identity)
        await desk.hear(1)
        for _ in range(5):  # the answers to five offers, which a busy hub gives all at once
            sender.receipt(missing((0, 3)))
        assert [kind for kind, _body, _counter in await desk.hear(3)] == ["chunk"] * 3
        sender.receipt(missing((1, 2)))
        sender.receipt(missing((3, 1)))
        assert [Chunk.decode(body).index for _kind, body, _counter in await desk.hear(1)] == [3]


async def test_chunks_that_got_lost_are_sent_again_once_the_hub_had_its_time(desk: Desk) -> None:
    async with desk.sending(patience=0.05) as (sender, store):
        queue_update(sender, store, desk.identity)
        await desk.hear(1)
        sender.receipt(missing((0, 2)))
        assert [kind for kind, _body, _counter in await desk.hear(3)] == ["chunk", "chunk", "offer"]
        sender.receipt(missing((0, 2)))
        assert [kind for kind, _body, _counter in await desk.hear(2)] == ["chunk", "chunk"]


async def test_a_hub_that_asks_for_the_same_again_is_given_more_time_until_something_arrives(desk: Desk) -> None:
    now = 0.0
    async with MemoryLink(broker=desk.broker, client_id="device", username=desk.identity.id) as link:
        with open_device_store(desk.home) as store:
            sender = Sender(
                store=store,
                identity=desk.identity,
                link=link,
                topics=TOPICS,
                community=COMMUNITY,
                patience=10,
                clock=lambda: now,
            )
            queue_update(sender, store, desk.identity)

            async def offered_after(ranges: tuple[int, int]) -> float:
                """Offer, answer with what is missing, and give the seconds to the next offer."""
                nonlocal now
                await sender._offer_due()
                sender.receipt(missing(ranges))
                await sender._send_asked()
                wait = sender._until_due()
                assert wait is not None
                now += wait
                return wait

            assert [await offered_after((0, 5)) for _ in range(4)] == [10, 20, 40, 80]
            assert [await offered_after((3, 2)) for _ in range(2)] == [10, 20]


async def test_chunks_that_do_not_arrive_however_often_they_are_sent_are_told_until_one_does(desk: Desk) -> None:
    now, told = 0.0, []
    async with MemoryLink(broker=desk.broker, client_id="device", username=desk.identity.id) as link:
        with open_device_store(desk.home) as store:
            sender = Sender(
                store=store,
                identity=desk.identity,
                link=link,
                topics=TOPICS,
                community=COMMUNITY,
                patience=10,
                clock=lambda: now,
                stalled=told.append,
            )
            queue_update(sender, store, desk.identity)

            async def answered(receipt: Receipt) -> list[bool]:
                """Send, give the hub its time and let it answer; give what was told so far."""
                nonlocal now
                await sender._offer_due()
                await sender._send_asked()
                now += sender._until_due() or 0.0
                sender.receipt(receipt)
                return told

            assert await answered(missing((0, 5))) == []
            assert await answered(missing((0, 5))) == []
            assert await answered(missing((0, 5))) == []
            assert await answered(missing((0, 5))) == [True]
            assert await answered(missing((0, 5))) == [True]
            assert await answered(missing((0, 4))) == [True, False]
            for _ in range(3):
                await answered(missing((0, 4)))
            assert told == [True, False, True]
            assert await answered(Receipt(about=TRANSFER, state="refused", reason="too-late")) == [True, False] * 2


class Refusing(MemoryLink):
    """A link whose broker refuses some publishes, as MQTT 5 lets it: rights, quotas."""

    left = 0

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if self.left:
            self.left -= 1
            raise BrokerRefusedError("The broker refused a message.", advice="Check its quotas.")
        await super().publish(topic, payload, retain=retain)


async def test_what_the_broker_refuses_is_told_and_sent_again_later(desk: Desk) -> None:
    told: list[BrokerRefusedError] = []
    link = Refusing(broker=desk.broker, client_id="device", username=desk.identity.id)
    async with link, desk.sending(link=link, refused=told.append) as (sender, store):
        link.left = 2  # the offer, and the offer again
        queue_update(sender, store, desk.identity)
        assert [kind for kind, _body, _counter in await desk.hear(1)] == ["offer"]
        link.left = 3  # of the five chunks
        sender.receipt(missing((0, 5)))
        heard = await desk.hear(3)
    assert [kind for kind, _body, _counter in heard] == ["chunk", "chunk", "offer"]
    assert len(told) == 5
    assert len({counter for _kind, _body, counter in heard}) == 3
