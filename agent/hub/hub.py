"""The running hub: messages in, decisions from the rooms beside this one, messages out.

One task reads the link, one watches the clock, one serves adapters. All state is in the store; this class holds caches
and wiring only, so that stopping it at any point costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable

from agent.crypto.envelope import Unverified, parse, verify
from agent.crypto.identity import Identity, PublicIdentity
from agent.crypto.replay import ReplayWindow
from agent.crypto.sealing import SealKey, seal
from agent.errors import (
    BrambleError,
    DiskFullError,
    MalformedMessageError,
    MergeError,
    ProtocolError,
    ReplayedMessageError,
    StateError,
    UnknownSenderError,
    WrongCommunityError,
)
from agent.events import Events
from agent.federation.messages import Chunk, Offer, Receipt, Verdict, Want
from agent.federation.sealing import joined_info
from agent.hub.admission import consider
from agent.hub.inbox import Inbox, Outcome, RoundContext
from agent.hub.merging import merge_round
from agent.hub.publishing import Publisher, Request
from agent.hub.rounds import Judgement, RoundState, after_deadline, after_update, begin, gate, trial_complete
from agent.hub.store import HubStore
from agent.llm.adapter import from_bytes
from agent.paths import BlobStore
from agent.transport.address import without_credentials
from agent.transport.link import Link, LinkState, Message
from agent.transport.topics import ParsedTopic

TICK_SECONDS = 0.5


class Hub:
    """Runs the rounds of one community.

    Args:
        store: the hub's memory.
        identity: the hub's keys.
        link: to the broker, not yet connected.
        events: where to tell what happens.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        *,
        store: HubStore,
        identity: Identity,
        link: Link,
        events: Events,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._identity = identity
        self._link = link
        self._events = events
        self._clock = clock
        self._config = store.config
        self._community = bytes.fromhex(self._config.community)
        self._blobs = BlobStore(store.home.blobs)
        self._publisher = Publisher(store=store, blobs=self._blobs, identity=identity, link=link)
        self._inbox = Inbox(store=store, blobs=self._blobs, directory=store.home.inbox, community=self._community)
        self._known: dict[str, PublicIdentity] = {}
        self._windows: dict[str, ReplayWindow] = {}
        self._context: RoundContext | None = None
        self._speak = asyncio.Event()
        self.refused: Counter[str] = Counter()

    async def run(self) -> None:
        """Run until cancelled."""
        self._load_devices()
        async with self._link:
            topics = self._publisher.topics
            await self._link.subscribe(topics.all_joins())
            await self._link.subscribe(topics.all_from())
            self._resume_rounds()
            self._link.on_state(self._link_changed)
            broker = without_credentials(self._config.broker)
            self._events.say(
                "hub-ready",
                f"hub {self._identity.short_id} of {self._config.name!r} is at {broker}",
                community=self._config.community,
                devices=len(self._known),
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(), name="hub-listen")
                tasks.create_task(self._watch_clock(), name="hub-clock")
                tasks.create_task(self._publisher.serve(self._known), name="hub-serve")
                tasks.create_task(self._heartbeat(), name="hub-heartbeat")

    # --- the rounds --------------------------------------------------------------------------------------------

    def _resume_rounds(self) -> None:
        """Open the first round, or go on where a killed hub was."""
        state = self._store.round_state()
        if state is None:
            self._open_round(1)
        elif state.phase != "open" and self._store.round_outcome(state.number) in {"promoted", "rejected"}:
            self._open_round(state.number + 1)  # killed between the end of a round and the next, or told to go on
        else:
            self._events.say("round-resumed", f"round {state.number}: {state.phase}", round=state.number)

    def _open_round(self, number: int) -> None:
        self._forget_updates(number - 1)
        state = begin(number, self._config.charter.rounds, self._clock(), last_round=self._config.last_round)
        self._context = None
        if state.phase == "closed":
            self._store.save_round_state(state)
            release = self._store.releases()[-1].manifest
            self._events.say(
                "closed",
                f"round {state.number} was the last; release {release.number} stands",
                round=state.number,
                release=release.number,
                sha256=release.sha256,
            )
            return
        start = self._store.releases()[-1].manifest.number
        self._store.open_round(state, start_release=start, seal_seed=SealKey.generate().seed)
        self._events.say(
            "round-open", f"round {number} is open, from release {start}", round=number, start_release=start
        )

    def _forget_updates(self, number: int) -> None:
        """Remove the opened updates of a round that is over: single updates are nobody's business any longer."""
        for row in self._store.updates(number):
            self._blobs.discard(row.update_id)

    def _link_changed(self, state: LinkState) -> None:
        self._events.say("link", f"broker: {state.reason}", connected=state.connected)
        if state.connected:
            self._speak.set()

    async def _heartbeat(self) -> None:
        """Publish the retained messages at first, after every break, and now and then: a broker may lose one."""
        while True:
            self._speak.clear()
            await self._publisher.introduce()
            await self._publisher.announce()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.heartbeat_seconds):
                    await self._speak.wait()

    async def _watch_clock(self) -> None:
        while True:
            await self._advance()
            await asyncio.sleep(TICK_SECONDS)

    async def _advance(self) -> None:
        """Do whatever the state and the clock ask for."""
        state = self._store.round_state()
        if state is None or state.phase == "closed":
            return
        if state.phase == "merging":
            await self._merge(state)
            return
        candidate = self._store.candidate(state.number) if state.phase == "trial" else None
        verdicts = self._store.verdicts(candidate.manifest.sha256) if candidate else {}
        rows = self._store.updates(state.number)
        rules = self._config.charter.rounds
        if state.phase == "open" and after_update(state, len(rows), rules) != state:
            # Killed between counting the last update and saying so.
            self._store.save_round_state(after_update(state, len(rows), rules))
            await self._publisher.announce()
            return
        if candidate and trial_complete([row.device for row in rows], verdicts, rules):
            await self._decide(state)
            return
        after = after_deadline(state, accepted=len(rows), verdicts=len(verdicts), rules=rules, now=self._clock())
        if after == "decide":
            await self._decide(state)
        elif after != state:
            self._store.save_round_state(after)
            if after.phase == state.phase:
                self._events.say(
                    "round-extended",
                    f"round {state.number}: {state.phase} goes on; {len(rows)} updates, {len(verdicts)} verdicts",
                    round=state.number,
                )
            await self._publisher.announce()

    async def _merge(self, state: RoundState) -> None:
        started = time.monotonic()
        try:
            outcome = await asyncio.to_thread(merge_round, self._store, self._blobs, state, now=self._clock())
        except DiskFullError:
            raise  # nothing is wrong with the round: it is merged once there is room
        except (MergeError, StateError) as error:
            await self._give_up(state, error)
            return
        manifest = outcome.release.manifest
        self._context = None
        self._events.say(
            "merged",
            f"round {state.number}: {len(outcome.release.updates)} updates make candidate {manifest.sha256[:10]}",
            round=state.number,
            candidate=manifest.sha256,
            seconds=round(time.monotonic() - started, 3),
            discarded_energy=outcome.report["discarded_energy"],
        )
        await self._publisher.announce()

    async def _give_up(self, state: RoundState, error: BrambleError) -> None:
        """End a round that cannot be merged; the release stays what it is."""
        reason = f"could not be merged: {error}"
        self._store.end_round(state.number, candidate="", promote=False, reason=reason)
        self._events.say("rejected", f"round {state.number} {reason} {error.advice}", round=state.number, reason=reason)
        self._open_round(state.number + 1)
        await self._publisher.announce()

    async def _decide(self, state: RoundState) -> None:
        candidate = self._store.candidate(state.number)
        if candidate is None:
            return
        sha256 = candidate.manifest.sha256
        decision = gate(list(self._store.verdicts(sha256).values()), self._config.charter.rounds)
        self._store.end_round(state.number, candidate=sha256, promote=decision.promote, reason=decision.reason)
        self._events.say(
            "promoted" if decision.promote else "rejected",
            f"round {state.number}: candidate {sha256[:10]} "
            + (f"is release {candidate.manifest.number}" if decision.promote else "is rejected")
            + f" ({decision.reason})",
            round=state.number,
            candidate=sha256,
            release=candidate.manifest.number,
            reason=decision.reason,
        )
        self._open_round(state.number + 1)
        await self._publisher.announce()

    # --- messages ----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for message in self._link.messages():
            try:
                await self._handle(message)
            except ProtocolError as error:
                self.refused[error.code] += 1
                self._events.say(
                    "message-refused",
                    f"a message on {message.topic[-80:]} was refused: {error}",
                    code=error.code,
                    topic=message.topic,
                )
            except BrambleError:
                raise  # the disk or the database: the message stays with the broker until this is mended
            except Exception as error:  # noqa: BLE001 (no message, whatever is in it, may stop the hub)
                self.refused["unexpected"] += 1
                self._events.say(
                    "message-failed",
                    f"a message on {message.topic[-80:]} could not be handled and was dropped: {error!r}",
                    topic=message.topic,
                )
            message.ack()

    async def _handle(self, message: Message) -> None:
        topic = self._publisher.topics.parse(message.topic)
        unverified = parse(message.payload)
        if unverified.community != self._community:
            raise WrongCommunityError("an envelope of another community came", advice="It was dropped.")
        if topic.device != unverified.sender:
            raise UnknownSenderError(
                f"{unverified.sender[:10]} wrote on the topic of {str(topic.device)[:10]}", advice="It was dropped."
            )
        if topic.room == "join" and topic.invite is not None:
            await self._admit(unverified, topic.invite)
        elif topic.room == "from":
            await self._from_member(unverified, topic)

    async def _admit(self, unverified: Unverified, invite: str) -> None:
        admission = consider(self._store, self._identity, unverified, invite=invite, now=int(self._clock()))
        public = admission.public
        if admission.is_new:
            self._load_devices()
            self._events.say(
                "device-joined",
                f"device {public.short_id} ({admission.nickname}) joined",
                device=public.id,
                nickname=admission.nickname,
            )
        elif not admission.reply.accepted:
            self._events.say(
                "join-refused",
                f"device {public.short_id} was not let in: {admission.reply.message}",
                device=public.id,
            )
        info = joined_info(self._community, bytes.fromhex(invite), public.id)
        body = seal(public.seal_key, admission.reply.encode(), info)
        topic = self._publisher.topics.joined(invite, public.id)
        await self._link.publish(topic, self._publisher.envelope("joined", body))

    async def _from_member(self, unverified: Unverified, topic: ParsedTopic) -> None:
        device = unverified.sender
        public, window = self._known.get(device), self._windows.get(device)
        if public is None or window is None:
            raise UnknownSenderError(
                f"{device[:10]} is not a member of this community", advice="It must join with an invite first."
            )
        envelope = verify(unverified, public.verify_key)
        if envelope.kind != topic.kind:
            raise MalformedMessageError(
                f"a {envelope.kind} came on the topic for {topic.kind}", advice="It was dropped."
            )
        if window.check(envelope.counter) != "new":
            raise ReplayedMessageError(
                f"message {envelope.counter} of {device[:10]} was seen before, or is too old", advice="It was dropped."
            )
        await self._dispatch(device, envelope.kind, envelope.body)
        window.accept(envelope.counter)
        self._store.save_replay(device, window)

    async def _dispatch(self, device: str, kind: str, body: bytes) -> None:
        if kind == "offer":
            await self._after(device, self._inbox.offered(device, Offer.decode(body), self._round_context()))
        elif kind == "chunk":
            await self._after(device, self._inbox.arrived(device, Chunk.decode(body), self._round_context()))
        elif kind == "want":
            await self._wanted(device, Want.decode(body))
        elif kind == "verdict":
            await self._judged(device, Verdict.decode(body))
        else:
            raise MalformedMessageError(f"the hub knows no message of kind {kind}", advice="It was dropped.")

    def _round_context(self) -> RoundContext | None:
        """What updates are held against now; worked out once a phase."""
        state = self._store.round_state()
        if state is None:
            return None
        if self._context is None or self._context.state != state:
            release = self._store.releases()[-1].manifest
            seed = self._store.seal_seed(state.number) if state.phase == "open" else b""
            self._context = RoundContext(
                state=state,
                community=from_bytes(self._blobs.get(release.sha256)),
                start_sha256=release.sha256,
                seal_key=SealKey.from_seed(seed) if seed else None,
                charter=self._config.charter,
            )
        return self._context

    async def _after(self, device: str, outcome: Outcome) -> None:
        """Tell of an update that was counted or refused, answer the device, and move the round on."""
        if outcome.counted is not None:
            row = outcome.counted
            self._events.say(
                "update-accepted",
                f"round {row.round}: update {row.update_id[:10]} of {device[:10]} counts"
                f" ({row.tokens:,} tokens, {row.wire_bytes:,} bytes, norm {row.norm:.3g})",
                round=row.round,
                device=device,
                update=row.update_id,
                bytes=row.wire_bytes,
                norm=row.norm,
            )
        if outcome.refused is not None:
            self.refused[outcome.refused.reason] += 1
            self._events.say(
                "update-refused",
                f"an update of {device[:10]} was refused: {outcome.refused}",
                device=device,
                reason=outcome.refused.reason,
            )
        if outcome.receipt is not None:
            await self._publisher.to_device(device, "receipt", outcome.receipt)
        state = self._store.round_state()
        if outcome.counted is not None and state is not None:
            accepted = len(self._store.updates(state.number))
            after = after_update(state, accepted, self._config.charter.rounds)
            if after != state:
                self._store.save_round_state(after)
                await self._publisher.announce()

    async def _wanted(self, device: str, want: Want) -> None:
        release = self._store.release(want.adapter)
        if release is None:
            receipt = Receipt(
                about=bytes.fromhex(want.adapter[:32]),
                state="refused",
                reason="no-such-adapter",
                message="the hub does not have this adapter",
                advice="Take the newest announcement and ask for what it names.",
            )
            await self._publisher.to_device(device, "receipt", receipt)
            return
        self._publisher.wish(Request(device=device, want=want))

    async def _judged(self, device: str, verdict: Verdict) -> None:
        state = self._store.round_state()
        candidate = self._store.candidate(state.number) if state is not None else None
        receipt = Receipt(about=verdict.about, state="done")
        if candidate is not None and candidate.manifest.sha256 == verdict.candidate:
            judgement = Judgement(device=device, before=verdict.before, after=verdict.after, targets=verdict.targets)
            self._store.add_verdict(judgement, candidate=verdict.candidate, number=verdict.round)
            self._events.say(
                "verdict",
                f"round {verdict.round}: {device[:10]} judges the candidate"
                f" {verdict.before:.4f} → {verdict.after:.4f} ({judgement.change:+.2%})",
                round=verdict.round,
                device=device,
                before=verdict.before,
                after=verdict.after,
            )
        else:
            receipt = Receipt(about=verdict.about, state="refused", reason="trial-over", message="the trial is over")
        await self._publisher.to_device(device, "receipt", receipt)

    def _load_devices(self) -> None:
        for row in self._store.devices():
            self._known[row.device] = row.public
            self._windows.setdefault(row.device, row.replay)
