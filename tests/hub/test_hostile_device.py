"""One member is hostile and signs whatever it likes: the others' round completes, and the hub stays within bounds."""

from __future__ import annotations

import secrets
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import BrokerUnreachableError
from agent.federation.messages import Announcement, Chunk, Offer, Verdict, Want
from agent.federation.sealing import wrap_update
from agent.hub.conduct import STRIKES
from agent.hub.inbox import MAX_OPEN_TRANSFERS, largest_update
from agent.hub.limits import ASKS_AT_ONCE, DOWNLOAD_BURST_BYTES
from agent.hub.stewarding import pardon
from agent.hub.store import HubStore
from agent.llm.adapter import from_bytes
from agent.paths import BlobStore
from agent.transport.transfer import CHUNK_BYTES
from tests.hub.test_hub import take_part
from tests.hub.world import Member, World, make_world

FLOOD = 240
"""Messages of a flood: twice what a device may ask at once."""

MIB = 1024 * 1024
Made = tuple[str, bytes]


@pytest.fixture(autouse=True)
def _time_gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a busy machine takes for a flood changes nothing: what was taken from an allowance stays taken."""
    for name in ("ASKS", "MESSAGES", "BYTES", "DOWNLOAD_BYTES", "JOINS", "ALL_JOINS"):
        monkeypatch.setattr(f"agent.hub.limits.{name}_A_SECOND", 0.0)


def largest(store: HubStore) -> int:
    release = store.current().manifest
    return largest_update(from_bytes(BlobStore(store.home.blobs).get(release.sha256)))


class Eve:
    """A member that floods."""

    def __init__(self, member: Member, round_now: Announcement, size: int) -> None:
        self.member = member
        self.round = round_now
        self.size = size
        self.counter = 10**6

    async def say(self, kind: str, body: bytes) -> None:
        self.counter += 1
        topic = self.member.topics.from_(self.member.identity.id, kind)
        await self.member.link.publish(topic, self.member.envelope(kind, body, counter=self.counter))

    def offer(self, size: int, seal_key: bytes | None = None) -> Offer:
        """Give an offer as an honest device would make it, for as large an update as is said."""
        sealed = wrap_update(
            b"nothing",
            seal_key=seal_key or self.round.seal_key,
            community=self.member.community,
            hub=self.member.membership.hub_identity.fingerprint(),
            device=self.member.identity.id,
            round_number=self.round.round,
            start_sha256=self.round.release.sha256,
        ).offer
        return sealed.model_copy(update={"size": size, "chunk_bytes": CHUNK_BYTES, "sha256": secrets.token_bytes(32)})

    def wants(self) -> Iterator[Made]:
        want = Want(adapter=self.round.release.sha256, missing=[]).encode()
        while True:
            yield "want", want

    def parts_of_nothing(self) -> Iterator[Made]:
        want = Want(adapter=self.round.release.sha256, missing=[(0, 1)], transfer=bytes(16)).encode()
        while True:
            yield "want", want

    def offers(self) -> Iterator[Made]:
        while True:
            yield "offer", self.offer(self.size).encode()

    def beginnings(self) -> Iterator[Made]:
        """Offers, and one chunk of each that does not even open."""
        while True:
            offer = self.offer(self.size)
            yield "offer", offer.encode()
            yield "chunk", Chunk(transfer=offer.transfer, index=0, data=bytes(CHUNK_BYTES)).encode()

    def chunks(self) -> Iterator[Made]:
        while True:
            yield "chunk", Chunk(transfer=secrets.token_bytes(16), index=0, data=bytes(CHUNK_BYTES)).encode()

    def verdicts(self) -> Iterator[Made]:
        while True:
            about, candidate = secrets.token_bytes(16), secrets.token_hex(32)
            yield "verdict", Verdict(about=about, round=1, candidate=candidate, before=1, after=1, targets=9).encode()

    def broken(self) -> Iterator[Made]:
        while True:
            yield "offer", secrets.token_bytes(500)


def sent_to(world: World, member: Member) -> int:
    """Bytes that the hub sent to one device."""
    return sum(len(payload) for _user, topic, payload in world.seen if f"/to/{member.identity.id}/" in topic)


def on_disk(store: HubStore) -> int:
    return sum(path.stat().st_size for path in store.home.inbox.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "deed",
    [Eve.wants, Eve.parts_of_nothing, Eve.offers, Eve.beginnings, Eve.chunks, Eve.verdicts, Eve.broken],
    ids=lambda deed: str(deed.__name__),
)
async def test_flood_of_one_member_costs_bounded_memory_disk_and_answers_and_the_round_of_the_others_completes(
    world: World, tmp_path: Path, deed: Callable[[Eve], Iterator[Made]]
) -> None:
    async with world.hub() as store, world.member(tmp_path / "ada") as ada, world.member(tmp_path / "eve") as member:
        eve = Eve(member, await member.phase("open"), largest(store))
        flood = deed(eve)
        tracemalloc.start()
        try:
            for _ in range(FLOOD):
                await eve.say(*next(flood))
            world.seen.clear()
            await take_part(ada)
            ada.judge(await ada.phase("trial"))
            await ada.phase("open", 2)
            _now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert [row.device for row in store.updates(1)] == [ada.identity.id]
        assert len(member.receipts) <= (FLOOD if deed is Eve.beginnings else ASKS_AT_ONCE)  # each damaged chunk too
        assert on_disk(store) <= MAX_OPEN_TRANSFERS * eve.size
        assert peak < 128 * MIB  # the broker in memory and both members are in it
        assert sent_to(world, member) <= DOWNLOAD_BURST_BYTES + ASKS_AT_ONCE * 4096


async def test_flood_of_asks_is_dropped_with_its_reason_and_does_not_reach_the_database(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.hub() as store, world.member(tmp_path / "eve") as member:
        eve = Eve(member, await member.phase("open"), largest(store))
        verdicts = eve.verdicts()
        for _ in range(ASKS_AT_ONCE + 10):
            await eve.say(*next(verdicts))
        await world.heard.until("message-refused")
        assert {said["code"] for said in world.heard.all("message-refused")} == {"rate"}
        transactions: list[int] = []
        asked = type(store).save_replay
        monkeypatch.setattr(
            type(store), "save_replay", lambda self, windows: (transactions.append(1), asked(self, windows))[1]
        )
        before = len(world.heard.all("message-refused"))
        for _ in range(5):
            await eve.say(*next(verdicts))
        await world.heard.until("message-refused", before + 5)
        assert transactions == []


async def test_answer_to_a_storm_of_wants_is_bounded(tmp_path: Path, tiny_q8: Path) -> None:
    """What a want of 300 bytes costs is an adapter: as often as a device may ask, and as its allowance has it."""
    world = make_world(tmp_path / "hub", tiny_q8)
    async with world.hub() as store, world.member(tmp_path / "eve") as member:
        eve = Eve(member, await member.phase("open"), largest(store))
        storm = eve.wants()
        for _ in range(FLOOD):
            await eve.say(*next(storm))
        await world.heard.until("message-refused")
        offers = [topic for _user, topic, _payload in world.seen if topic.endswith(f"{member.identity.id}/offer")]
        assert len([topic for topic in offers if "/to/" in topic]) <= ASKS_AT_ONCE


async def hand_in_bad_ones(member: Member, count: int) -> None:
    """Send updates that are far too large in norm, one after another."""
    announcement = await member.phase("open")
    start = await member.fetch(announcement)
    for seed in range(count):
        before = len([receipt for receipt in member.receipts if receipt.state == "refused"])
        member.send_update(announcement, start, member.made_up(start, size=100.0, seed=seed))
        await member.until(lambda: len([r for r in member.receipts if r.state == "refused"]) > before)  # noqa: B023


async def test_device_that_keeps_sending_bad_updates_is_set_aside_over_a_restart_until_it_is_pardoned(
    world: World, tmp_path: Path
) -> None:
    async with world.hub(), world.member(tmp_path / "eve") as eve:
        await hand_in_bad_ones(eve, STRIKES)
        told = await world.heard.until("device-set-aside")
        assert (told["device"], told["reason"]) == (eve.identity.id, "norm")
        announcement = await eve.phase("open")
        start = await eve.fetch(announcement)  # what the community has is still given out
        eve.send_update(announcement, start, eve.made_up(start, seed=50))
        await eve.until(lambda: eve.receipts[-1].reason == "set-aside")
        assert "until" in eve.receipts[-1].message
    async with world.hub() as store, world.member(tmp_path / "ada") as ada:
        assert list(store.set_aside(world.now)) == [eve.identity.id]
        pardon(world.home, eve.identity.id[:12])
        assert (await world.heard.until("device-let-back"))["device"] == eve.identity.id
        await take_part(ada)
        assert (await world.heard.until("update-accepted"))["device"] == ada.identity.id


async def test_bad_message_that_others_send_again_is_held_against_nobody_twice(world: World, tmp_path: Path) -> None:
    """A broker has a hundred copies of one malformed message that a device once signed, and a hundred forgeries."""
    async with world.hub() as store, world.member(tmp_path / "ada") as ada:
        topic = ada.topics.from_(ada.identity.id, "offer")
        once = ada.envelope("offer", b"malformed", counter=10**6)
        forged = ada.envelope("offer", b"malformed", counter=10**6 + 1)
        forged = forged[:-1] + bytes([forged[-1] ^ 1])
        for _ in range(100):
            await ada.link.publish(topic, once)
            await ada.link.publish(topic, forged)
            await ada.link.publish(ada.topics.from_(ada.identity.id, "verdict"), once)
        await world.heard.until("message-refused", 100)
        assert [row.strikes for row in store.conducts().values()] == [1]
        await take_part(ada)
        await world.heard.until("update-accepted")


async def test_spam_of_guessed_invites_lets_nobody_in_and_keeps_nobody_out(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.hub.limits.JOINS_AT_ONCE", 3)
    guessed = replace(world.invite(), secret=bytes(32))
    async with world.hub() as store, world.newcomer(guessed, patience=2.0, ask_again=0.01) as spammer:
        with pytest.raises(BrokerUnreachableError):
            await spammer.ask(await spammer.meet())
        assert {said["code"] for said in world.heard.all("message-refused")} == {"bad-signature", "rate"}
        assert store.devices() == []
        async with world.member(tmp_path / "ada") as ada:
            assert [row.device for row in store.devices()] == [ada.identity.id]
