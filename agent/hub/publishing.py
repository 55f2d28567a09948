"""What the hub says: its card and charter, the state of its rounds, and adapters to whoever asks for them.

Adapters travel sealed too, in whatever form is smallest for a device (:mod:`agent.hub.downloads`). A form's chunks are
the same for every device; a device gets their key sealed for itself alone, with the offer.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from agent.crypto.envelope import sign
from agent.crypto.identity import Identity, PublicIdentity
from agent.crypto.sealing import SealKey, seal
from agent.errors import BrokerRefusedError, StateError
from agent.events import Events
from agent.federation.messages import (
    Announcement,
    Body,
    Card,
    CharterNotice,
    Chunk,
    Range,
    Want,
)
from agent.federation.sealing import adapter_info, adapter_transfer_id, make_offer
from agent.hub.downloads import Downloads
from agent.hub.limits import DownloadAllowances
from agent.hub.merge.rule import load_rule
from agent.hub.rounds import TAKING, RoundState
from agent.hub.store import HubStore, ReleaseRow
from agent.hub.succession import successions
from agent.paths import BlobStore
from agent.transport.link import Link
from agent.transport.topics import Topics
from agent.transport.transfer import CHUNK_BYTES

MAX_WAITING = 4096
"""Adapter requests that wait to be served; more are dropped, and their devices ask again."""

MAX_WAITING_A_DEVICE = 4
"""Likewise, of one device: what stands, what is on trial, and what it missed."""

MAX_FORGOTTEN = 16
"""Starts of the hub that its announcements tell of."""


@dataclass(frozen=True, slots=True)
class Request:
    """A device's wish for an adapter, or for parts of it."""

    device: str
    want: Want


class Publisher:
    """The hub's voice: signs with its key, counts with its durable counter.

    Args:
        store: where counters, releases and rounds are.
        blobs: where adapters are.
        identity: the hub's keys.
        link: to the broker.
        events: where to tell what could not be sent.
    """

    def __init__(self, *, store: HubStore, blobs: BlobStore, identity: Identity, link: Link, events: Events) -> None:
        self._store = store
        self._events = events
        self._identity = identity
        self._link = link
        self._config = store.config
        self._community = bytes.fromhex(self._config.community)
        self.topics = Topics(self._config.community)
        self._downloads = Downloads(blobs)
        self._wishes: asyncio.Queue[Request] = asyncio.Queue(MAX_WAITING)
        self._wished: set[tuple[str, str]] = set()
        self._waiting_of: Counter[str] = Counter()
        self._allowances = DownloadAllowances(adapter_bytes=store.current().manifest.size)
        self._announcing = asyncio.Lock()  # so that the retained announcement is the newest one
        self.sent_bytes = 0
        self._rule = load_rule(self._config.charter.merge_rule)

    @property
    def waiting(self) -> int:
        """How many requests for adapters wait to be served."""
        return self._wishes.qsize()

    def started(self) -> None:
        """Remember between which announcements this hub was not there, before it makes its first.

        Sequences never fall below the clock. So where the database is an older one, from a backup, what was announced
        since lies in this gap, and devices that heard it know that the hub does not remember it.
        """
        with self._store.transaction():
            last = int.from_bytes(self._store.fact("sequence") or b"", "big")
            known = self._store.gaps()
            first = self._store.next_number("sequence")
            self._store.save_gaps([*known, (last, first)][-MAX_FORGOTTEN:])

    def envelope(self, kind: str, body: bytes) -> bytes:
        """Sign a body as the hub."""
        signed = sign(
            self._identity,
            kind=kind,
            community=self._community,
            counter=self._store.next_counter(),
            time=int(time.time() * 1000),
            body=body,
        )
        self.sent_bytes += len(signed)
        return signed

    async def send(self, topic: str, envelope: bytes, *, retain: bool = False) -> None:
        """Publish an envelope. Where the broker refuses it, that is said and the hub goes on: the others need it."""
        try:
            await self._link.publish(topic, envelope, retain=retain)
        except BrokerRefusedError as error:
            self._events.say("publish-refused", f"{error} {error.advice}", topic=topic)

    async def to_device(self, device: str, kind: str, body: Body) -> None:
        """Say something to one device."""
        await self.send(self.topics.to(device, kind), self.envelope(kind, body.encode()))

    async def introduce(self) -> None:
        """Publish the retained card and charter."""
        config = self._store.config  # a steward may have changed how newcomers are let in
        card = Card(
            name=config.name,
            public=self._identity.public.encode(),
            operator=config.operator,
            admission=config.admission,
            successions=successions(self._store),
        )
        charter = CharterNotice(charter=self._config.charter)
        for kind, body in (("card", card), ("charter", charter)):
            await self.send(self.topics.hub(kind), self.envelope(kind, body.encode()), retain=True)

    async def announce(self) -> Announcement | None:
        """Publish the retained state of the rounds."""
        async with self._announcing:
            announcement = self._announcement()
            if announcement is not None:
                envelope = self.envelope("round", announcement.encode())
                await self.send(self.topics.hub("round"), envelope, retain=True)
            return announcement

    def _announcement(self) -> Announcement | None:
        state = self._store.round_state()
        if state is None:
            return None
        phase = phase_for_devices(state)
        number = state.number if phase == "open" else state.number + 1
        keys = {key.round: key.seal_seed for key in self._store.round_keys()}
        seed = keys.get(number, b"") if phase != "closed" else b""
        candidate = self._store.candidate(state.number) if phase == "trial" else None
        return Announcement(
            sequence=self._store.next_number("sequence"),
            round=state.number,
            phase=phase,
            deadline=max(0, int(state.deadline * 1000)),
            release=self._store.current().manifest,
            candidate=candidate.manifest if candidate else None,
            seal_key=SealKey.from_seed(seed).public if seed else b"",
            factors=self._rule.factors(number),
            draw=state.draw if phase == "open" else None,
            withdrawn=self._store.withdrawn_ranges(),
            forgotten=self._store.gaps(),
        )

    def wish(self, request: Request, size: int) -> bool:
        """Note that a device wants an adapter of so many bytes; asking again while waiting changes nothing.

        What is asked for is taken from what the device may fetch. False where that, or the queue, is too much.
        """
        key = (request.device, request.want.adapter)
        if key in self._wished:
            return True
        chunks = sum(length for _first, length in request.want.missing)
        cost = min(size, chunks * CHUNK_BYTES) if chunks else size
        if self._wishes.full() or self._waiting_of[request.device] >= MAX_WAITING_A_DEVICE:
            return False
        # A part may turn out to be of a transfer that is not the present one, and then all of it is sent.
        if not self._allowances.holds(request.device, size) or not self._allowances.take(request.device, cost):
            return False
        self._wished.add(key)
        self._waiting_of[request.device] += 1
        self._wishes.put_nowait(request)
        return True

    async def serve(self, device_key: dict[str, PublicIdentity]) -> None:
        """Send adapters to whoever asked, one device after another, until cancelled.

        An adapter may go while it is asked for: a candidate that was rejected meanwhile. Its devices ask for another.
        """
        while True:
            request = await self._wishes.get()
            self._wished.discard((request.device, request.want.adapter))
            self._waiting_of[request.device] -= 1
            self._waiting_of += Counter()  # forgets those of whom nothing waits
            release = self._store.release(request.want.adapter)
            receiver = device_key.get(request.device)
            if receiver is not None and not self._store.is_member(request.device):
                receiver = None  # it was put out while it waited: no release is sealed for it from then on
            if release is not None and release.served and receiver is not None:
                try:
                    await self._send(release, receiver, request.want)
                except StateError as error:
                    words = f"an adapter could not be sent to {request.device[:10]}: {error}"
                    self._events.say("adapter-not-sent", words, device=request.device, adapter=request.want.adapter)

    async def _send(self, release: ReleaseRow, receiver: PublicIdentity, want: Want) -> None:
        sha256, device = release.manifest.sha256, receiver.id
        known = [base for base in want.have if base != sha256 and self._store.release(base) is not None]
        download = await asyncio.to_thread(self._downloads.smallest, release, known)
        transfer = adapter_transfer_id(sha256, device, download.content_sha256)
        missing = tuple(want.missing) if want.transfer == transfer else ()
        if want.missing and not missing and not self._allowances.take(device, release.manifest.size):
            return  # it asks again
        if not missing:
            info = adapter_info(self._community, self._identity.public.fingerprint(), device, transfer, sha256)
            sealed_key = seal(receiver.seal_key, download.key, info)
            offer = make_offer(
                download.chunks,
                transfer=transfer,
                purpose="adapter",
                round_number=0,
                adapter=sha256,
                sealed_key=sealed_key,
            )
            await self.to_device(device, "offer", offer)
        for index in _indices(missing, len(download.chunks)):
            await self.to_device(device, "chunk", Chunk(transfer=transfer, index=index, data=download.chunks[index]))


def phase_for_devices(state: RoundState) -> Literal["open", "merging", "trial", "closed"]:
    """Give what a phase means to devices: a round that is over is about to be followed by the next."""
    if state.phase in TAKING:
        return "open"
    return state.phase if state.phase in {"trial", "closed"} else "merging"


def _indices(missing: tuple[Range, ...], count: int) -> Iterable[int]:
    """Give the chunk indices of ranges (first, how many), each once; all where there are no ranges."""
    if not missing:
        return range(count)
    return sorted({index for first, length in missing for index in range(first, min(first + length, count))})
