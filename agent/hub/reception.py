"""What the hub hears: each message checked, handled, and answered, many of them in one transaction.

The doorkeeper refuses what it can without the database. What it lets through is handled together: what that changes is
committed once; then all are acknowledged, and only then are the answers sent and is anything said of it. So a message
is let go of when its outcome is on the disk, an answer never speaks of something that a power cut can undo, and one
write to the disk serves as many messages as came meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial

from agent.crypto.envelope import Envelope
from agent.crypto.identity import Identity, PublicIdentity
from agent.crypto.replay import ReplayWindow
from agent.crypto.sealing import SealKey, seal
from agent.crypto.succession import statement
from agent.errors import (
    BadSignatureError,
    BrambleError,
    MalformedMessageError,
    OversizedMessageError,
    ProtocolError,
    RateLimitedError,
    SetAsideError,
    UpdateRefusedError,
)
from agent.events import Events, Value
from agent.federation.messages import (
    Chunk,
    Issued,
    Leave,
    Offer,
    Receipt,
    Renew,
    Succeed,
    SuccessionReply,
    Verdict,
    Want,
)
from agent.federation.refusals import UNEXPECTED, Refusals
from agent.federation.sealing import joined_info, succeeded_info
from agent.hub.admission import accepted, consider
from agent.hub.conduct import BAD
from agent.hub.doorkeeper import Doorkeeper
from agent.hub.doorkeeper import Request as JoinAsked
from agent.hub.gate import Judgement
from agent.hub.inbox import Inbox, Outcome, RoundContext
from agent.hub.issuing import renewed
from agent.hub.limits import Allowances
from agent.hub.members import Decided
from agent.hub.merge.rule import load_rule
from agent.hub.placing import RoundTerms, Situation
from agent.hub.publishing import Publisher, Request
from agent.hub.register import Former, Register
from agent.hub.store import HubStore
from agent.llm.adapter import from_bytes
from agent.paths import BlobStore
from agent.transport.link import Link, Message
from agent.transport.topics import ParsedTopic, Topics

_DROPPED = "It was dropped."
MAX_BATCH = 64
"""Messages that are handled in one transaction at most, so that none waits long for its answer."""

MAX_QUEUED = 256
"""Messages that wait in memory to be handled; the broker keeps what is more."""


@dataclass(slots=True)
class Batch:
    """What is to happen once a batch is on the disk."""

    said: list[tuple[str, str, dict[str, Value]]] = field(default_factory=list)
    answers: list[tuple[str, str, bytes]] = field(default_factory=list)
    refused: list[tuple[Message, Exception]] = field(default_factory=list)
    tidied: list[Callable[[], None]] = field(default_factory=list)
    windows: dict[str, ReplayWindow] = field(default_factory=dict)
    counted: bool = False
    now: RoundContext | None = None
    """What updates are held against: the same for the whole batch, since nobody else can write meanwhile."""

    def say(self, event: str, text: str, **fields: Value) -> None:
        """Tell of an event."""
        self.said.append((event, text, fields))


class Reception:
    """Handles what devices and newcomers say.

    Args:
        store: the hub's memory.
        blobs: where adapters and opened updates are.
        identity: the hub's keys.
        link: to the broker.
        publisher: the hub's voice.
        events: where to tell what happens.
        clock: Unix time in seconds.
        moved: called when something came in that may move the round on.
    """

    def __init__(
        self,
        *,
        store: HubStore,
        blobs: BlobStore,
        identity: Identity,
        link: Link,
        publisher: Publisher,
        events: Events,
        clock: Callable[[], float],
        moved: Callable[[], None],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._identity = identity
        self._link = link
        self._publisher = publisher
        self._events = events
        self._clock = clock
        self._moved = moved
        self._config = store.config
        self._community = bytes.fromhex(self._config.community)
        self._rule = load_rule(self._config.charter.merge_rule)
        self._inbox = Inbox(
            store=store,
            blobs=blobs,
            directory=store.home.inbox,
            community=self._community,
            hub=identity.public.fingerprint(),
        )
        self._topics = Topics(self._config.community)
        self._context: RoundContext | None = None
        self._tidied: frozenset[int] | None = None
        self._queue: asyncio.Queue[Message] = asyncio.Queue(MAX_QUEUED)
        self._set_aside: dict[str, int] = {}  # until when, of each device that is; the database has the last word
        self._register = Register(store)
        self.known = self._register.known
        self.received_bytes = 0
        self.refusals = Refusals(events)
        self._allowances = Allowances(adapter_bytes=store.current().manifest.size)
        self._doorkeeper = Doorkeeper(
            topics=self._topics,
            known=self.known,
            windows=self._register.windows,
            allowances=self._allowances,
            clock=clock,
            outside=self._register.former,
        )

    @property
    def waiting(self) -> int:
        """How many messages wait to be handled."""
        return self._queue.qsize()

    async def notice_decisions(self) -> None:
        """Learn what stewards decided meanwhile, and tell devices that were revoked; at first, who is enrolled."""
        batch = Batch()
        with self._store.transaction():
            self._take_in_decisions(batch)
        await self._say(batch)

    def _take_in_decisions(self, batch: Batch) -> None:
        decided = self._register.refresh()
        for row in decided.approved:
            words = f"device {row.device[:10]} ({row.nickname}) was approved"
            batch.say("device-joined", words, device=row.device, nickname=row.nickname)
        for device in sorted(decided.revoked):
            self._tell_revoked(device, batch)

    def tidy(self) -> None:
        """Look who was let back in, and remove from the disk what cannot count any more once a round is over."""
        still = self._store.set_aside(self._clock())
        for device in self._set_aside.keys() - still.keys():
            self._events.say("device-let-back", f"device {device[:10]} may hand in updates again", device=device)
        self._set_aside = still
        context = self.context()
        rounds = frozenset(() if context is None else context.now.terms)
        if rounds != self._tidied:
            self._inbox.keep_only(rounds)
            self._tidied = rounds

    async def listen(self) -> None:
        """Handle messages until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._queue_up(), name="hub-queue")
            async for messages in self._batches():
                await self._handle_all(messages)

    async def _queue_up(self) -> None:
        async for message in self._link.messages():
            await self._queue.put(message)

    async def _batches(self) -> AsyncIterator[list[Message]]:
        """Give whatever is there, together."""
        while True:
            messages = [await self._queue.get()]
            while len(messages) < MAX_BATCH and not self._queue.empty():
                messages.append(self._queue.get_nowait())
            yield messages

    async def _handle_all(self, messages: list[Message]) -> None:
        batch = Batch()
        heard = [(message, found) for message in messages if (found := self._look(message, batch))]
        if heard:
            with self._store.transaction():
                self._take_in_decisions(batch)
                for message, found in heard:
                    self._handle_one(message, found, batch)
                self._store.save_replay(batch.windows)
        for message in messages:
            message.ack()
        for tidy in batch.tidied:
            tidy()
        await self._say(batch)

    async def _say(self, batch: Batch) -> None:
        """Tell of a batch that is on the disk, and send its answers."""
        for event, text, fields in batch.said:
            self._events.say(event, text, **fields)
        for message, error in batch.refused:
            self._refuse(message, error)
        if batch.counted:
            self._moved()
        envelopes = [(topic, self._publisher.envelope(kind, body)) for topic, kind, body in batch.answers]
        await asyncio.gather(*(self._publisher.send(topic, envelope) for topic, envelope in envelopes))

    def _look(self, message: Message, batch: Batch) -> Envelope | JoinAsked | Former | None:
        """Have the doorkeeper look at a message; None where it is refused."""
        self.received_bytes += len(message.payload)
        try:
            return self._doorkeeper.look(message)
        except Exception as error:  # noqa: BLE001 (no message, whatever is in it, may stop the hub)
            batch.refused.append((message, error))
        return None

    def _refuse(self, message: Message, error: Exception) -> None:
        """Count a message that is dropped, and say why."""
        device = self._topics.device_of(message.topic)
        where = f"a message on {message.topic[-80:]}"
        if isinstance(error, ProtocolError):
            text, reason = f"{where} was refused: {error}", error.code
        else:
            text, reason = f"{where} could not be handled and was dropped: {error!r}", UNEXPECTED
        self.refusals.note(reason, text, topic=message.topic[:256], device=device)

    def _handle_one(self, message: Message, found: Envelope | JoinAsked | Former, batch: Batch) -> None:
        """Handle one message; one that is refused changes nothing but what is held against its sender."""
        try:
            with self._store.attempt():
                if isinstance(found, JoinAsked):
                    self._admit(found, batch)
                elif isinstance(found, Former):
                    self._from_former(found, batch)
                else:
                    self._from_member(message, found, batch)
        except ProtocolError as error:
            batch.refused.append((message, error))
            if isinstance(found, Envelope) and isinstance(error, (MalformedMessageError, OversizedMessageError)):
                self._strike(found.sender, error.code, batch)
        except BrambleError:
            raise  # the disk or the database: the messages stay with the broker until this is mended
        except Exception as error:  # noqa: BLE001 (no message, whatever is in it, may stop the hub)
            batch.refused.append((message, error))

    def _strike(self, device: str, reason: str, batch: Batch) -> None:
        """Hold something against a device that it signed; where that is too much, set it aside."""
        now = int(self._clock())
        if device in self._set_aside:
            return
        conduct = self._store.add_strike(device, reason, now)
        if conduct.until <= now:
            return
        self._set_aside[device] = conduct.until
        batch.tidied.append(partial(self._inbox.forget_device, device))
        batch.say(
            "device-set-aside",
            f"device {device[:10]} keeps sending what cannot be used ({reason}) and is set aside for "
            f"{(conduct.until - now) / 3600:.0f} h; `bramble hub pardon {device[:10]}` lets it back in",
            device=device,
            reason=reason,
            until=conduct.until,
            times=conduct.times,
        )

    def _admit(self, asked: JoinAsked, batch: Batch) -> None:
        invite = asked.invite
        admission = consider(self._store, self._identity, asked.unverified, invite=invite, now=int(self._clock()))
        public, outcome = admission.public, admission.outcome
        if outcome == "admitted":
            self._register.note(public.id)
            words = f"device {public.short_id} ({admission.nickname}) joined"
            batch.say("device-joined", words, device=public.id, nickname=admission.nickname)
        elif outcome == "applied":
            self._register.note(public.id)
            words = f"device {public.short_id} ({admission.nickname}) asks to be let in: `bramble hub members`"
            batch.say("device-pending", words, device=public.id, nickname=admission.nickname)
        elif outcome not in {"member", "pending"}:
            words = f"device {public.short_id} was not let in: {admission.reply.message}"
            batch.say("join-refused", words, device=public.id, reason=outcome)
        info = joined_info(self._community, self._identity.public.fingerprint(), public.id, bytes.fromhex(invite))
        body = seal(public.seal_key, admission.reply.encode(), info)
        batch.answers.append((self._publisher.topics.joined(invite, public.id), "joined", body))

    def _from_member(self, message: Message, envelope: Envelope, batch: Batch) -> None:
        device = envelope.sender
        if device not in self.known:  # a steward put it out since the doorkeeper looked
            self._tell_revoked(device, batch)
            raise self._register.stranger(device)
        batch.windows[device] = self._register.windows[device]
        self._dispatch(message, envelope, batch)

    def _from_former(self, former: Former, batch: Batch) -> None:
        """Answer a device that is out, if that is all it needs: its answer may have been lost. Nothing is changed.

        Raises:
            ProtocolError: it needs more, and gets nothing.
        """
        row, envelope = former.row, former.envelope
        self._tell_revoked(row.device, batch)
        if row.standing == "left" and envelope.kind == "leave":
            batch.answers.append(self._answer(row.device, _done(Leave.decode(envelope.body))))
            return
        if row.standing == "succeeded" and envelope.kind == "succeed":
            new = PublicIdentity.decode(Succeed.decode(envelope.body).public)
            if new.id == row.successor:
                batch.answers.append(self._welcome(row.device, new))
                return
        raise former.why

    def _succeed(self, old: PublicIdentity, said: Succeed, window: ReplayWindow, batch: Batch) -> None:
        """Take a member's new keys, which its old ones have signed with this message."""
        new = PublicIdentity.decode(said.public)
        words = statement(self._community, old, new)
        if new.role != old.role or not new.has_signed(said.proof, words):
            raise BadSignatureError(f"keys that did not sign it are to come after {old.short_id}", advice=_DROPPED)
        if not self._store.succeed(old.id, new, replay=window, now=int(self._clock())):
            raise MalformedMessageError(f"{new.short_id}, to come after {old.short_id}, is known", advice=_DROPPED)
        self._register.note_succession(old.id, new.id)
        batch.say("device-succeeded", f"device {old.short_id} is {new.short_id} now", device=new.id, before=old.id)
        batch.answers.append(self._welcome(old.id, new))

    def _welcome(self, old: str, new: PublicIdentity) -> tuple[str, str, bytes]:
        """Answer a device that changed its keys: what a newcomer gets, for the new ones."""
        reply = SuccessionReply(**accepted(self._config, new.id).model_dump())
        info = succeeded_info(self._community, self._identity.public.fingerprint(), old, new.id)
        body = seal(new.seal_key, reply.encode(), info)
        return self._publisher.topics.to(old, "succeeded"), "succeeded", body

    def _left(self, device: str, leave: Leave, batch: Batch) -> None:
        done = self._store.leave(device, now=int(self._clock()))
        self._register.note(device)
        self._forget_work(done, batch)
        words = (
            f"device {device[:10]} ({done.row.nickname}) left; {len(done.dropped.waiting)} of its updates are dropped"
        )
        batch.counted = True
        batch.say("device-left", words, device=device, dropped=len(done.dropped.waiting))
        batch.answers.append(self._answer(device, _done(leave)))

    def _forget_work(self, done: Decided, batch: Batch) -> None:
        batch.tidied += [partial(self._blobs.discard, update) for update in done.dropped.waiting]

    def _tell_revoked(self, device: str, batch: Batch) -> None:
        notice = self._register.notice(device, now=self._clock())
        if notice is not None:
            batch.say("device-revoked", f"device {device[:10]} is told that it was revoked", device=device)
            batch.answers.append((self._publisher.topics.to(device, "standing"), "standing", notice.encode()))

    def _dispatch(self, message: Message, envelope: Envelope, batch: Batch) -> None:
        device, kind, body = envelope.sender, envelope.kind, envelope.body
        if kind == "offer":
            offer, barred = Offer.decode(body), self._barred(device)
            if barred is None:
                outcome = self._inbox.offered(device, offer, self._now(batch))
            else:
                outcome = self._inbox.turn_away(device, offer, barred)
            self._after(device, outcome, batch)
        elif kind == "chunk":
            if device in self._set_aside:
                raise SetAsideError(f"{device[:10]} is set aside", advice="Its chunks are dropped until then.")
            self._after(device, self._inbox.arrived(device, Chunk.decode(body), self._now(batch)), batch)
        elif kind == "want":
            self._wanted(device, Want.decode(body), batch)
        elif kind == "verdict":
            self._judged(device, Verdict.decode(body), batch)
        elif kind == "leave":
            self._left(device, Leave.decode(body), batch)
        elif kind == "succeed":
            window = ReplayWindow.from_bytes(self._register.windows[device].to_bytes())
            self._succeed(self.known[device], Succeed.decode(body), window, batch)
        else:
            self._renew(device, self._topics.parse(message.topic), Renew.decode(body), batch)

    def _barred(self, device: str) -> UpdateRefusedError | None:
        """Say why a device may hand in nothing at the moment."""
        until = self._set_aside.get(device, 0)
        if until <= self._clock():
            return None
        return UpdateRefusedError(
            "the hub has set this device aside for what it sent before, until "
            + time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(until)),
            advice="Update Bramble on it. The hub's operator can let it back in earlier: `bramble hub pardon`.",
            reason="set-aside",
        )

    def _renew(self, device: str, topic: ParsedTopic, asked: Renew, batch: Batch) -> None:
        """Give a member a new certificate, by the door that it came by."""
        issued: Issued = renewed(self._store, device, asked.certificate_request, now=self._clock())
        topics = self._publisher.topics
        where = topics.joined(topic.invite, device) if topic.invite else topics.to(device, "certificate")
        batch.answers.append((where, "certificate", issued.encode()))
        batch.say("certificate-issued", f"device {device[:10]} has a new certificate", device=device)

    def _now(self, batch: Batch) -> RoundContext | None:
        """What updates are held against in this batch."""
        if batch.now is None:
            batch.now = self.context()
        return batch.now

    def context(self) -> RoundContext | None:
        """What updates are held against now; worked out once a phase, and again when a release changes."""
        state = self._store.round_state()
        if state is None:
            return None
        current = self._store.current().manifest
        known = None if self._context is None else self._context.now
        if known is None or known.state != state or known.line.current != current.sha256:
            line = self._store.line()
            community = (
                from_bytes(self._blobs.get(current.sha256)) if self._context is None else self._context.community
            )
            starts = {row.manifest.number: row.manifest.sha256 for row in self._store.releases()}
            terms = {
                key.round: RoundTerms(
                    start=starts.get(key.start_release, ""),
                    seal_key=SealKey.from_seed(key.seal_seed),
                    draw=key.draw,
                    factors=self._rule.factors(key.round),
                )
                for key in self._store.round_keys()
            }
            charter = self._config.charter
            now = Situation(state, charter.rounds, line, terms, self._config.last_round, self._config.community)
            self._context = RoundContext(now=now, community=community, charter=charter)
        return self._context

    def _after(self, device: str, outcome: Outcome, batch: Batch) -> None:
        """Tell of an update that was counted or refused, and answer the device."""
        if outcome.counted is not None:
            row = outcome.counted
            late = f", late for the merge of round {row.merge}" if row.late else ""
            batch.counted = True
            batch.say(
                "update-accepted",
                f"round {row.round}: update {row.update_id[:10]} of {device[:10]} counts"
                f" ({row.tokens:,} tokens, {row.wire_bytes:,} bytes, norm {row.norm:.3g}){late}",
                round=row.round,
                device=device,
                update=row.update_id,
                merge=row.merge,
                late=row.late,
                bytes=row.wire_bytes,
                norm=row.norm,
                superseded=outcome.superseded,
            )
        if outcome.refused is not None:
            batch.say(
                "update-refused",
                f"round {outcome.round}: an update of {device[:10]} was refused: {outcome.refused}",
                round=outcome.round,
                device=device,
                reason=outcome.refused.reason,
            )
            if outcome.refused.reason in BAD:
                self._strike(device, outcome.refused.reason, batch)
        if outcome.receipt is not None:
            batch.answers.append(self._answer(device, outcome.receipt))
        batch.tidied.append(partial(self._inbox.tidy, device, outcome))

    def _wanted(self, device: str, want: Want, batch: Batch) -> None:
        release = self._store.release(want.adapter)
        if release is None or not release.served:
            receipt = Receipt(
                about=bytes.fromhex(want.adapter[:32]),
                state="refused",
                reason="no-such-adapter",
                message="the hub does not have this adapter",
                advice="Take the newest announcement and ask for what it names.",
            )
            batch.answers.append(self._answer(device, receipt))
            return
        if not self._publisher.wish(Request(device=device, want=want), release.manifest.size):
            raise RateLimitedError(
                f"{device[:10]} asks for more than any device needs to", advice="It asks again by itself, later."
            )

    def _judged(self, device: str, verdict: Verdict, batch: Batch) -> None:
        state = self._store.round_state()
        candidate = self._store.candidate(state.number) if state is not None and state.phase == "trial" else None
        receipt, barred = Receipt(about=verdict.about, state="done"), self._barred(device)
        if barred is not None:
            receipt = Receipt(about=verdict.about, state="refused", reason=barred.reason, message=barred.message)
        elif candidate is None or candidate.manifest.sha256 != verdict.candidate:
            receipt = Receipt(about=verdict.about, state="refused", reason="trial-over", message="the trial is over")
        else:
            judgement = Judgement(device=device, before=verdict.before, after=verdict.after, targets=verdict.targets)
            number = candidate.manifest.round
            if self._store.add_verdict(judgement, candidate=verdict.candidate, number=number):
                batch.counted = True
                batch.say(
                    "verdict",
                    f"round {number}: {device[:10]} judges the candidate"
                    f" {verdict.before:.4f} → {verdict.after:.4f} ({judgement.change:+.2%})",
                    round=number,
                    device=device,
                    before=verdict.before,
                    after=verdict.after,
                )
        batch.answers.append(self._answer(device, receipt))

    def _answer(self, device: str, receipt: Receipt) -> tuple[str, str, bytes]:
        return self._publisher.topics.to(device, "receipt"), "receipt", receipt.encode()


def _done(leave: Leave) -> Receipt:
    return Receipt(about=leave.about, state="done")
