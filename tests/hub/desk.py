"""A hub's rounds without a broker: store, inbox and conductor, and updates of made-up devices over a tiny adapter."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

from agent.crypto.identity import Identity
from agent.crypto.replay import ReplayWindow
from agent.crypto.sealing import KEY_BYTES
from agent.events import Events
from agent.federation.messages import Chunk, Manifest, Receipt
from agent.federation.sealing import wrap_update
from agent.governance.charter import Charter, RobustRules, RoundRules
from agent.hub.conductor import Conductor
from agent.hub.database import make_engine
from agent.hub.gate import Judgement
from agent.hub.inbox import Inbox, Outcome
from agent.hub.reception import Reception
from agent.hub.rounds import RoundState
from agent.hub.store import HubConfig, HubStore, ReleaseRow, hub_blobs
from agent.paths import BlobStore, Home
from agent.testing import SMALL_SHAPES, random_delta
from agent.transport.memory import MemoryBroker, MemoryLink
from agent.update.start import initial_adapter
from agent.update.wire import UpdateHeader, encode_update

BASE = "cd" * 32
HUB = Identity.generate()


class KilledError(Exception):
    """The process was killed here."""


class MortalStore(HubStore):
    """A store whose process dies at a chosen transaction: before it, inside it, or right after it.

    Attributes:
        lives: transactions that still succeed; None for all.
    """

    lives: int | None = None
    moment: str = "inside"

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        outermost = getattr(self._own, "connection", None) is None
        dies = outermost and self.lives == 0
        if outermost and self.lives:
            self.lives -= 1
        if dies and self.moment == "before":
            raise KilledError
        with super().transaction() as connection:
            yield connection
            if dies and self.moment == "inside":
                raise KilledError
        if dies:
            raise KilledError


class Silent:
    """A publisher that counts announcements."""

    def __init__(self) -> None:
        self.announced = 0

    async def announce(self) -> None:
        self.announced += 1


@dataclass
class Sent:
    """An update as a device keeps it until it has a receipt."""

    device: str
    round: int
    start: str
    offer: Any
    chunks: list[Chunk]
    seed: int


@dataclass
class Desk:
    """The rounds of a hub. Made by :func:`make_desk`; :meth:`reopen` is what a kill and a new start do to it."""

    home: Home
    names: list[str] = field(default_factory=list)
    heard: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    now: float = 1000.0
    seeds: int = 0

    def open(self) -> None:
        self.store = MortalStore(_engine(self.home), home=self.home)
        self.config = self.store.config
        self.blobs = hub_blobs(self.home)
        self.publisher = Silent()
        self.events = Events(quiet=True, listeners=[lambda event, fields: self.heard.append((event, dict(fields)))])
        self.conductor = Conductor(
            store=self.store,
            blobs=self.blobs,
            publisher=self.publisher,  # type: ignore[arg-type]
            events=self.events,
            clock=lambda: self.now,
        )
        self.community = bytes.fromhex(self.config.community)
        self.inbox = Inbox(
            store=self.store,
            blobs=self.blobs,
            directory=self.home.inbox,
            community=self.community,
            hub=HUB.public.fingerprint(),
        )
        self.reception = Reception(
            store=self.store,
            blobs=self.blobs,
            identity=HUB,
            link=MemoryLink(broker=MemoryBroker(), client_id="hub"),
            publisher=self.publisher,  # type: ignore[arg-type]
            events=self.events,
            clock=lambda: self.now,
            moved=lambda: None,
        )

    def close(self) -> None:
        self.store.close()

    def reopen(self) -> None:
        self.close()
        self.open()
        self.conductor.resume()

    @property
    def state(self) -> RoundState:
        found = self.store.round_state()
        assert found is not None
        return found

    def advance(self) -> None:
        asyncio.run(self.conductor.advance())

    def collects(self) -> int:
        """The round that devices make updates for now; 0 for none."""
        number = self.state.number + (0 if self.state.phase in {"open", "collecting"} else 1)
        return number if number in {key.round for key in self.store.round_keys()} else 0

    def make(
        self,
        device: str,
        *,
        number: int | None = None,
        start: str | None = None,
        size: float = 0.05,
        spoil: Callable[[bytes], bytes] = bytes,
        **header: Any,
    ) -> Sent | None:
        """Make an update as a device would at this moment, or for an earlier round whose key it kept.

        Of numbers of this ``size``, and sealed after whatever ``spoil`` does to its bytes.
        """
        number = self.collects() if number is None else number
        context = self.reception.context()
        assert context is not None
        terms = context.now.terms.get(number)
        if terms is None:
            return None
        start = start or (terms.start if context.now.rules.mode == "synchronous" else context.now.line.current)
        self.seeds += 1
        said = {"round": number, "start_release": start, "tokens": 100, "seed": self.seeds, **header}
        rest = {"base_sha256": BASE, "rank": 4, "alpha": 8.0, "steps": 1}
        delta = random_delta(rank=4, seed=self.seeds, size=size)
        body = spoil(encode_update(UpdateHeader(**{**rest, **said}), delta, self.config.charter.compression))
        parcel = wrap_update(
            body,
            seal_key=terms.seal_key.public,
            community=self.community,
            hub=HUB.public.fingerprint(),
            device=device,
            round_number=number,
            start_sha256=start,
        )
        transfer = parcel.offer.transfer
        chunks = [Chunk(transfer=transfer, index=index, data=data) for index, data in enumerate(parcel.chunks)]
        return Sent(device, number, start, parcel.offer, chunks, self.seeds)

    def deliver(self, sent: Sent) -> Receipt:
        """Hand an update in, as often as it takes, and give the last receipt."""
        receipt = self._take(sent.device, self.inbox.offered, sent.offer)
        for chunk in sent.chunks:
            if receipt is None or receipt.state == "missing":
                receipt = self._take(sent.device, self.inbox.arrived, chunk) or receipt
        assert receipt is not None
        return receipt

    def _take(self, device: str, how: Any, what: Any) -> Receipt | None:
        with self.store.transaction():
            outcome: Outcome = how(device, what, self.reception.context())
        self.inbox.tidy(device, outcome)
        return outcome.receipt

    def send(self, device: str, **options: Any) -> Receipt:
        """Make an update and hand it in."""
        sent = self.make(device, **options)
        assert sent is not None
        return self.deliver(sent)

    def judge(self, device: str, *, after: float = 1.9) -> bool:
        """Give a verdict on what is on trial."""
        candidate = self.store.candidate(self.state.number)
        if candidate is None or self.state.phase != "trial":
            return False
        judgement = Judgement(device=device, before=2.0, after=after, targets=10)
        return self.store.add_verdict(judgement, candidate=candidate.manifest.sha256, number=self.state.number)

    def round(self, *devices: str, after: float = 1.9) -> int:
        """Let a whole round pass, with these devices, and give the number of the release that stands then."""
        number = self.state.number
        for device in devices:
            assert self.send(device).state == "done"
        for _ in range(5):
            self.advance()
            for device in devices:
                self.judge(device, after=after)
            if self.state.number > number or self.state.phase == "closed":
                return self.store.current().manifest.number
            self.now += 10_000
        raise AssertionError(f"round {number} does not end: {self.state}")

    def said(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.heard if name == event]


def _engine(home: Home) -> Engine:
    """Give an engine that does not wait for the disk: what is killed here is a process, not the power."""
    engine = make_engine(home, None)
    event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA synchronous=OFF"))
    return engine


def make_desk(
    directory: Path,
    *,
    members: int = 4,
    last_round: int | None = None,
    keep_releases: int = 10,
    robust: RobustRules | None = None,
    **rules: Any,
) -> Desk:
    """Make a hub over an adapter of three tiny layers, with members, and open its first round."""
    home = Home(directory)
    home.create()
    charter = Charter(
        name="desk",
        base_name="base",
        base_sha256=BASE,
        base_bytes=1,
        rank=4,
        alpha=8.0,
        merge_rule="stack",  # which leaves a carry
        robust=robust or RobustRules(),
        compression="none",
        rounds=RoundRules(**{"quorum": 2, "target": 2, "collect_seconds": 1000, "trial_seconds": 100, **rules}),
    )
    config = HubConfig(
        name="desk",
        community=secrets.token_hex(16),
        broker="mqtt://127.0.0.1:1",
        embedded=False,
        broker_secret="",
        base_path="",
        last_round=last_round,
        keep_releases=keep_releases,
        charter=charter,
    )
    data = initial_adapter(SMALL_SHAPES, rank=4, alpha=8.0, seed=0, base_sha256=BASE).to_bytes()
    manifest = Manifest(number=0, sha256=BlobStore(home.blobs).put(data), parent="", size=len(data), round=0)
    row = ReleaseRow(manifest=manifest, content_key=secrets.token_bytes(KEY_BYTES), state="promoted", updates=())
    desk = Desk(home)
    Identity.generate("hub").save(home.keys)
    with HubStore(_engine(home), home=home) as store:
        store.create_tables()
        store.add_release(row)
        store.save_config(config)
        store.add_invite("i", bytes(32), uses=members, expires=2**40)
        for number in range(members):
            public = Identity.generate().public
            store.admit(public, nickname=f"device {number}", invite="i", now=0)
            desk.names.append(public.id)
        assert store.devices()[0].replay == ReplayWindow()
    desk.names.sort()
    desk.open()
    desk.conductor.resume()
    return desk
