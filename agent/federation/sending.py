"""What a device owes the hub: offered until the hub has it, signed at the moment of sending.

Only offers and small messages are sent unasked. The chunks of a transfer follow when the hub's receipt asks for them,
so that nothing travels that the hub would refuse, and after a break only what is missing is sent again.

A hub that is slow to answer must not get more to do by that. So an offer that is made again waits longer each time,
until chunks arrive; and a receipt that asks for what has just been sent answers an earlier offer, and is passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agent.crypto.envelope import sign
from agent.crypto.identity import Identity
from agent.errors import BrokerRefusedError
from agent.federation.messages import Body, Chunk, Offer, Range, Receipt, Verdict
from agent.federation.store import DeviceStore, explained_database
from agent.transport.link import Link
from agent.transport.outbox import Item, NewItem, Outbox
from agent.transport.topics import Topics

MAX_PATIENCE = 300.0
TOO_OFTEN = 3
"""After chunks were sent so often, and the hub still asks for all of them, something on the way swallows them."""

AT_ONCE = 8
"""Chunks read from the disk and handed to the link together."""


@dataclass(slots=True)
class _Waiting:
    """When to offer something again, unless a receipt comes first."""

    due: float
    patience: float


@dataclass(frozen=True, slots=True)
class _Sent:
    """The chunks of a transfer that were sent last, until when they may be on their way, and how often in a row."""

    indices: frozenset[int]
    until: float
    times: int


def queue_transfer(outbox: Outbox, topics: Topics, device: str, offer: Offer, chunks: Iterable[Chunk]) -> None:
    """Put a transfer into the outbox (inside the caller's transaction)."""
    transfer = offer.transfer.hex()
    topic = topics.from_(device, "chunk")
    outbox.put("offer", offer.encode(), topic=topics.from_(device, "offer"), transfer=transfer)
    outbox.put_many(
        NewItem(kind="chunk", topic=topic, body=chunk.encode(), transfer=transfer, index=chunk.index)
        for chunk in chunks
    )


class Sender:
    """Empties the outbox.

    Args:
        store: the device's memory, which has the outbox in it.
        identity: signs.
        link: to the broker.
        topics: of the community.
        community: its 16-byte id.
        patience: seconds to wait for a receipt at first; doubled each time, up to five minutes.
        clock: monotonic seconds.
        stalled: told when the chunks of a transfer do not arrive, however often they are sent, and when they do again.
            A broker of MQTT 3.1.1 drops without a word what is larger than it likes, or what this user may not say.
        refused: told when the broker refuses a message. It stays here and is sent again later, as after a loss: a quota
            may be free by then, or a right granted.
        stamp: the time that messages say, milliseconds since 1970.
    """

    def __init__(
        self,
        *,
        store: DeviceStore,
        identity: Identity,
        link: Link,
        topics: Topics,
        community: bytes,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
        stalled: Callable[[bool], None] = lambda _stalled: None,
        refused: Callable[[BrokerRefusedError], None] = lambda _error: None,
        stamp: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._stamp = stamp
        self._tell_stalled = stalled
        self._stalled: set[str] = set()
        self._refused = refused
        self._store = store
        self._identity = identity
        self._link = link
        self._topics = topics
        self._community = community
        self._patience = patience
        self._clock = clock
        self.outbox = Outbox(store.connection)
        self._waiting: dict[int, _Waiting] = {}
        self._asked: dict[str, list[int]] = {}
        self._sent: dict[str, _Sent] = {}
        self._wake = asyncio.Event()

    @staticmethod
    def new_id() -> bytes:
        """Give an id for a message that wants a receipt."""
        return secrets.token_bytes(16)

    def wake(self) -> None:
        """Something was put into the outbox, or the link is back."""
        for waiting in self._waiting.values():
            waiting.due = 0.0
        self._sent.clear()  # what was on its way may be lost
        self._wake.set()

    def queue_verdict(self, verdict: Verdict) -> None:
        """Put a verdict into the outbox (inside the caller's transaction)."""
        topic = self._topics.from_(self._identity.id, "verdict")
        self.outbox.put("verdict", verdict.encode(), topic=topic, transfer=verdict.about.hex())

    async def say(self, kind: str, body: Body) -> None:
        """Say something that needs no receipt."""
        await self._publish(kind, self._topics.from_(self._identity.id, kind), body.encode())

    def receipt(self, receipt: Receipt) -> None:
        """Take in the hub's word on a transfer or message."""
        about = receipt.about.hex()
        if receipt.state == "missing":
            asked = self._chunks_here(about, receipt.missing)
            if not asked:
                return
            sent = self._sent.get(about)
            if sent is None or not sent.indices.issuperset(asked) or sent.until <= self._clock():
                self._asked[about] = asked
                self._wake.set()
                nothing_came = sent is not None and sent.indices.issubset(asked)
                self._note_stalled(about, stalled=nothing_came and sent is not None and sent.times >= TOO_OFTEN)
            return
        self._asked.pop(about, None)
        self._sent.pop(about, None)
        self._note_stalled(about, stalled=False)
        with self._store.transaction():
            self._store.settle(
                receipt.about, state="counted" if receipt.state == "done" else "refused", reason=receipt.reason
            )
            self.outbox.done_transfer(about)

    def _note_stalled(self, transfer: str, *, stalled: bool) -> None:
        """Tell when transfers begin to get nowhere, and when none does any more."""
        before = bool(self._stalled)
        (self._stalled.add if stalled else self._stalled.discard)(transfer)
        if bool(self._stalled) != before:
            self._tell_stalled(stalled)

    def _chunks_here(self, transfer: str, ranges: Sequence[Range]) -> list[int]:
        """Give those chunks of ranges that the transfer has, in order, each once."""
        with explained_database(self._store.home):
            here = self.outbox.parts(transfer)
        return sorted({index for first, length in ranges for index in range(first, first + length)} & here)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._wake.clear()
            await self._send_asked()
            await self._offer_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_due()):
                    await self._wake.wait()

    async def _offer_due(self) -> None:
        """Send every offer and message whose time has come."""
        openings = self._openings()
        here = {item.id for item in openings}
        self._waiting = {identifier: waiting for identifier, waiting in self._waiting.items() if identifier in here}
        for transfer in self._stalled.difference(item.transfer for item in openings):  # taken back meanwhile
            self._note_stalled(transfer, stalled=False)
        for item in openings:
            waiting = self._waiting.setdefault(item.id, _Waiting(due=0.0, patience=self._patience))
            if waiting.due > self._clock():
                continue
            await self._publish(item.kind, item.topic, item.body)
            waiting.due = self._clock() + waiting.patience
            waiting.patience = min(2 * waiting.patience, MAX_PATIENCE)

    async def _send_asked(self) -> None:
        """Send the chunks that receipts asked for."""
        while self._asked:
            transfer, indices = next(iter(self._asked.items()))
            for start in range(0, len(indices), AT_ONCE):
                await self._send_parts(transfer, indices[start : start + AT_ONCE])
                if transfer not in self._asked:
                    break
            if self._asked.get(transfer) is indices:
                del self._asked[transfer]
            self._now_wait(transfer, frozenset(indices))

    def _now_wait(self, transfer: str, indices: frozenset[int]) -> None:
        """Chunks were sent: give the hub its time, and more of it where it asks for the same ones again."""
        before = self._sent.get(transfer)
        again = before is not None and indices >= before.indices
        for item in self._openings():
            waiting = self._waiting.get(item.id)
            if item.transfer == transfer and waiting is not None:
                patience = waiting.patience if again else self._patience
                self._waiting[item.id] = _Waiting(due=self._clock() + patience, patience=patience)
                times = 1 + (before.times if again and before is not None else 0)
                self._sent[transfer] = _Sent(indices, until=self._clock() + patience, times=times)

    async def _send_parts(self, transfer: str, indices: Sequence[int]) -> None:
        with explained_database(self._store.home):
            parts = [part for index in indices if (part := self.outbox.part(transfer, index)) is not None]
        await asyncio.gather(*(self._publish(part.kind, part.topic, part.body) for part in parts))

    async def _publish(self, kind: str, topic: str, body: bytes) -> None:
        with explained_database(self._store.home):
            counter = self.outbox.allocate_counter()
        envelope = sign(
            self._identity,
            kind=kind,
            community=self._community,
            counter=counter,
            time=self._stamp(),
            body=body,
        )
        try:
            await self._link.publish(topic, envelope)
        except BrokerRefusedError as error:
            self._refused(error)

    def _openings(self) -> list[Item]:
        with explained_database(self._store.home):
            return self.outbox.openings()

    def _until_due(self) -> float | None:
        """Seconds until something is to be offered again; none where nothing is owed."""
        if not self._waiting:
            return None
        return max(0.05, min(waiting.due for waiting in self._waiting.values()) - self._clock())
