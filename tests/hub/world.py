"""A hub and members in one event loop, over the broker in memory: the whole protocol without a socket or a model."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent.crypto.envelope import parse, sign, verify
from agent.crypto.identity import Identity
from agent.errors import ProtocolError
from agent.events import Events
from agent.federation.enrol import Newcomer
from agent.federation.fetching import Fetcher
from agent.federation.invite import Invite
from agent.federation.messages import Announcement, Body, Chunk, Offer, Receipt, Verdict
from agent.federation.sealing import wrap_update
from agent.federation.sending import Sender, queue_transfer
from agent.federation.store import DeviceStore, Membership, RoundRecord, open_device_store
from agent.governance.charter import Charter, RoundRules
from agent.hub.hub import Hub
from agent.hub.setup import HubPlan, create_hub, describe_base, make_invite
from agent.hub.store import HubConfig, HubStore, open_store
from agent.llm.adapter import Adapter, LoraFactors, from_bytes
from agent.paths import BlobStore, Home
from agent.transport.memory import MemoryBroker, MemoryLink
from agent.transport.topics import Topics
from agent.update.delta import Delta, difference
from agent.update.wire import UpdateHeader, encode_update

PATIENCE = 20.0


@dataclass
class Heard:
    """Events, and a way to wait for one."""

    names: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, name: str, fields: dict[str, Any]) -> None:
        self.names.append((name, dict(fields)))
        self.news.set()

    def all(self, name: str) -> list[dict[str, Any]]:
        return [fields for found, fields in self.names if found == name]

    async def until(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait until an event was said so many times, and give the last of them."""
        async with asyncio.timeout(PATIENCE):
            while len(self.all(name)) < count:
                self.news.clear()
                await self.news.wait()
        return self.all(name)[count - 1]


@dataclass
class World:
    """A community in memory.

    Attributes:
        seen: every message that passed the broker: user, topic, payload.
        now: what the hub's clock shows.
    """

    home: Home
    broker: MemoryBroker
    seen: list[tuple[str, str, bytes]]
    heard: Heard = field(default_factory=Heard)
    now: float = field(default_factory=time.time)

    @property
    def config(self) -> HubConfig:
        with open_store(self.home) as store:
            return store.config

    @contextlib.asynccontextmanager
    async def hub(self) -> AsyncIterator[HubStore]:
        """Run the hub while the context lasts; it may be run again after."""
        with open_store(self.home) as store:
            hub = Hub(
                store=store,
                identity=Identity.load(self.home.keys, "hub"),
                link=MemoryLink(broker=self.broker, client_id="hub", username="hub"),
                events=Events(quiet=True, listeners=[self.heard]),
                clock=lambda: self.now,
            )
            ready = len(self.heard.all("hub-ready")) + 1
            running = asyncio.create_task(hub.run())
            waiting = asyncio.create_task(self.heard.until("hub-ready", ready))
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                waiting.cancel()
                running.result()
            try:
                yield store
            finally:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running

    @contextlib.asynccontextmanager
    async def member_of_a_running_hub(self, directory: Path) -> AsyncIterator[tuple[Member, HubStore]]:
        """Run the hub with one member, and stop both at the end."""
        async with self.hub() as store, self.member(directory) as member:
            yield member, store

    def invite(self, **options: Any) -> Invite:
        return make_invite(self.home, **{"uses": 1, "expires_seconds": 3600.0, **options})

    @contextlib.asynccontextmanager
    async def newcomer(
        self, invite: Invite, identity: Identity | None = None, **options: Any
    ) -> AsyncIterator[Newcomer]:
        """Give a device at the door."""
        identity = identity or Identity.generate()
        async with MemoryLink(broker=self.broker, client_id=f"join-{identity.id}", username="join") as link:
            yield Newcomer(link=link, invite=invite, identity=identity, nickname="new", **{"ask_again": 0.1, **options})

    @contextlib.asynccontextmanager
    async def member(self, directory: Path, *, patience: float = 0.2) -> AsyncIterator[Member]:
        """Let a device join, and give it with its link open."""
        home = Home(directory)
        home.create()
        identity = Identity.generate()
        identity.save(home.keys)
        async with self.newcomer(self.invite(), identity) as newcomer:
            door = await newcomer.meet()
            reply = await newcomer.ask(door)
        with open_device_store(home, create=True) as store:
            membership = Membership(
                community=self.config.community,
                broker=self.config.broker,
                hub=door.hub.encode(),
                username=reply.username,
                password=reply.password,
                base=Path(self.config.base_path),
                charter=door.charter,
                joined=0,
            )
            store.save_membership(membership)
            link = MemoryLink(broker=self.broker, client_id=identity.id, username=identity.id)
            async with link:
                member = Member(identity=identity, store=store, membership=membership, link=link, patience=patience)
                await link.subscribe(member.topics.all_to(identity.id))
                await link.subscribe(member.topics.hub("round"))
                tasks = [asyncio.create_task(member.listen()), asyncio.create_task(member.sender.run())]
                try:
                    yield member
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Member:
    """A device that does everything but train: its updates and verdicts are made up."""

    identity: Identity
    store: DeviceStore
    membership: Membership
    link: MemoryLink
    patience: float
    receipts: list[Receipt] = field(default_factory=list)
    announced: list[Announcement] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.topics = Topics(self.membership.community)
        self.community = bytes.fromhex(self.membership.community)
        self.blobs = BlobStore(self.store.home.blobs)
        self.sender = Sender(
            store=self.store,
            identity=self.identity,
            link=self.link,
            topics=self.topics,
            community=self.community,
            patience=self.patience,
        )
        self.fetcher = Fetcher(
            blobs=self.blobs,
            identity=self.identity,
            community=self.community,
            hub=self.membership.hub_identity.fingerprint(),
            directory=self.store.home.inbox,
        )

    async def listen(self) -> None:
        async for message in self.link.messages():
            envelope = verify(parse(message.payload), self.membership.hub_identity)
            match envelope.kind:
                case "round":
                    self.announced.append(Announcement.decode(envelope.body))
                case "receipt":
                    receipt = Receipt.decode(envelope.body)
                    self.receipts.append(receipt)
                    self.sender.receipt(receipt)
                case "offer":
                    with contextlib.suppress(ProtocolError):  # for an adapter that nobody asked for
                        self.fetcher.offered(Offer.decode(envelope.body))
                case "chunk":
                    with contextlib.suppress(ProtocolError):
                        self.fetcher.arrived(Chunk.decode(envelope.body))
            message.ack()
            self.news.set()

    async def until(self, fits: Callable[[], Any]) -> Any:
        """Wait until something is so, looking after each message."""
        async with asyncio.timeout(PATIENCE):
            while not (found := fits()):
                self.news.clear()
                await self.news.wait()
        return found

    async def phase(self, phase: str, number: int = 1) -> Announcement:
        """Wait until the hub has announced this phase of this round."""
        found: Announcement = await self.until(
            lambda: next((a for a in self.announced if (a.phase, a.round) == (phase, number)), None)
        )
        return found

    async def fetch(self, announcement: Announcement) -> Adapter:
        """Fetch the current release."""
        manifest = announcement.release
        async with asyncio.timeout(PATIENCE):
            while not self.blobs.has(manifest.sha256):
                await self.sender.say("want", self.fetcher.want(manifest))
                await self.fetcher.wait(manifest.sha256, patience=self.patience)
        return from_bytes(self.blobs.get(manifest.sha256))

    def made_up(self, start: Adapter, *, size: float = 0.01, seed: int = 0) -> Delta:
        """Give a change as training might make it."""
        rng = np.random.default_rng(seed)
        modules = {
            name: LoraFactors(
                a=factors.a + rng.normal(0, size, factors.a.shape).astype(np.float32),
                b=factors.b + rng.normal(0, size, factors.b.shape).astype(np.float32),
            )
            for name, factors in start.modules.items()
        }
        trained = Adapter(rank=start.rank, alpha=start.alpha, modules=modules, base_sha256=start.base_sha256)
        return difference(start, trained)

    def send_update(
        self, announcement: Announcement, start: Adapter, delta: Delta, *, tokens: int = 100, **header: Any
    ) -> str:
        """Put an update into the outbox as a device does, and give its id."""
        said = {
            "round": announcement.round,
            "base_sha256": self.membership.charter.base_sha256,
            "start_release": announcement.release.sha256,
            "rank": start.rank,
            "alpha": start.alpha,
            "tokens": tokens,
            "steps": 1,
            "seed": 0,
            **header,
        }
        body = encode_update(UpdateHeader(**said), delta, self.membership.charter.compression)
        parcel = wrap_update(
            body,
            seal_key=announcement.seal_key,
            community=self.community,
            hub=self.membership.hub_identity.fingerprint(),
            device=self.identity.id,
            round_number=announcement.round,
            start_sha256=announcement.release.sha256,
        )
        chunks = [Chunk(transfer=parcel.offer.transfer, index=i, data=data) for i, data in enumerate(parcel.chunks)]
        update_id = hashlib.sha256(body).hexdigest()
        record = RoundRecord(
            round=announcement.round,
            transfer=parcel.offer.transfer.hex(),
            update_id=update_id,
            wire_bytes=parcel.offer.size,
            fp32_bytes=4 * delta.parameter_count,
        )
        with self.store.transaction():
            queue_transfer(self.sender.outbox, self.topics, self.identity.id, parcel.offer, chunks)
            self.store.add_round(record)
        self.sender.wake()
        return update_id

    def judge(self, announcement: Announcement, *, before: float = 2.0, after: float = 1.9) -> None:
        """Put a verdict into the outbox."""
        assert announcement.candidate is not None
        about = self.sender.new_id()
        candidate = announcement.candidate.sha256
        verdict = Verdict(
            about=about, round=announcement.round, candidate=candidate, before=before, after=after, targets=10
        )
        with self.store.transaction():
            self.store.add_verdict(candidate, number=announcement.round, about=about, before=before, after=after)
            self.sender.queue_verdict(verdict)
        self.sender.wake()

    def envelope(self, kind: str, body: Body | bytes, *, counter: int, community: bytes | None = None) -> bytes:
        """Sign anything."""
        data = body if isinstance(body, bytes) else body.encode()
        return sign(
            self.identity,
            kind=kind,
            community=self.community if community is None else community,
            counter=counter,
            time=int(time.time() * 1000),
            body=data,
        )


def make_world(
    directory: Path, base: Path, *, heartbeat: float = 0.1, last_round: int | None = None, **rules: Any
) -> World:
    """Make a hub over a tiny base; a round is full with one update unless told otherwise."""
    home = Home(directory)
    charter = Charter(
        name="in memory",
        rank=4,
        alpha=8.0,
        rounds=RoundRules(**{"quorum": 1, "target": 1, "collect_seconds": 1000, "trial_seconds": 100, **rules}),
        **describe_base(base),
    )
    plan = HubPlan(
        name="in memory",
        base=base,
        broker="mqtt://127.0.0.1:1",
        last_round=last_round,
        charter=charter,
        heartbeat_seconds=heartbeat,
    )
    create_hub(home, plan)
    seen: list[tuple[str, str, bytes]] = []
    broker = MemoryBroker(observe=lambda user, topic, payload: seen.append((user, topic, payload)))
    return World(home=home, broker=broker, seen=seen)
