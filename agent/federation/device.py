"""The running device: it hears the hub, decides what is next, and does it, one thing at a time.

Deciding is :func:`agent.federation.decide.next_action`; each thing to do is a room of its own. Everything that must
survive is in the store before the next thing begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from agent.crypto.envelope import Envelope, Unverified
from agent.crypto.identity import Identity
from agent.data.consent import ConsentBook
from agent.errors import (
    BrambleError,
    NoTextError,
    ProtocolError,
    StaleMessageError,
    StateError,
    TrainingPausedError,
)
from agent.events import Events, Value
from agent.federation import agreed
from agent.federation.credentials import Credentials
from agent.federation.decide import CHARTER_CHANGED, Adopt, Fetch, Judge, Situation, Train, Wait, goes_on, next_action
from agent.federation.fetching import Fetcher
from agent.federation.hub_clock import HubClock
from agent.federation.judging import AdapterFiles, keep_personal, measure
from agent.federation.learning import learn
from agent.federation.listening import Listening
from agent.federation.messages import (
    LARGEST_LOSS,
    Announcement,
    CharterNotice,
    Chunk,
    Issued,
    Manifest,
    Offer,
    Receipt,
    StandingNotice,
    Verdict,
)
from agent.federation.refusals import UNEXPECTED, Refusals
from agent.federation.renewal import Renewal
from agent.federation.sending import Sender
from agent.federation.standing import explain_revoked, save_revoked
from agent.federation.store import DeviceStore, explained_database
from agent.federation.succession import follow
from agent.federation.text import PreparedText, prepare_text
from agent.paths import BlobStore
from agent.settings import DeviceSettings
from agent.training.job import Progress
from agent.training.process import Workers, run_worker
from agent.transport.link import Link, LinkState, Message
from agent.transport.topics import Topics

RETRY_SECONDS = (5.0, 300.0)
"""How long to wait after work that failed: at first, and at most."""

CONSENT_SECONDS = 2.0
"""How soon training stops after its text was withdrawn."""

NOT_ARRIVING = (
    "the broker takes what this device sends, and the hub asks for the same again and again. The broker may drop it "
    "without a word: its operator should let messages of 96 KiB through (mosquitto: message_size_limit) and look at "
    "this device's right to publish."
)
"""What to say where chunks get nowhere."""

CLOCK_SECONDS = 600.0
"""How far this machine's clock may be from the hub's before the status says so; nothing depends on it."""

LOOK_AGAIN_SECONDS = 30.0
"""How often a waiting device looks whether its owner has added text."""


class Device:
    """Takes part in the rounds of one community.

    Args:
        store: the device's memory; it has a membership.
        identity: the device's keys.
        settings: the owner's.
        link: to the broker, not yet connected.
        events: where to tell what happens.
        workers: what prepares, plans, trains and evaluates.
        door: makes a link to the broker's listener for newcomers, for a device whose certificate has expired.
    """

    def __init__(
        self,
        *,
        store: DeviceStore,
        identity: Identity,
        settings: DeviceSettings,
        link: Link,
        events: Events,
        workers: Workers = run_worker,
        door: Callable[[], Link] | None = None,
    ) -> None:
        self._store = store
        self._identity = identity
        self._settings = settings
        self._link = link
        self._events = events.about(device=identity.id)
        self._workers = workers
        seen = store.announcement
        if seen is not None:
            self._events.context["round"] = seen.round
        self._membership = store.membership
        hub = self._membership.hub_identity
        self._community = bytes.fromhex(self._membership.community)
        self._topics = Topics(self._membership.community)
        self._blobs = BlobStore(store.home.blobs)
        self._refusals = Refusals(self._events)
        self._listening = Listening(store=store, topics=self._topics, device=identity.id, hub=hub)
        self._clock = HubClock()
        waits = agreed.offered(store)
        self._charter_changed = waits is not None
        self._charter_counter = waits.counter if waits is not None else -1
        self._sender = Sender(
            store=store,
            identity=identity,
            link=link,
            topics=self._topics,
            community=self._community,
            patience=settings.resend_seconds,
            stalled=lambda stalled: self._stalled(stalled=stalled),
            refused=lambda error: self._events.say("publish-refused", f"{error} {error.advice}", code=error.code),
            stamp=self._clock.stamp,
        )
        self._fetcher = Fetcher(
            blobs=self._blobs,
            identity=identity,
            community=self._community,
            hub=hub.fingerprint(),
            directory=store.home.inbox,
        )
        self._renewal = Renewal(
            credentials=Credentials(store.home.keys, identity.id),
            membership=self._membership,
            hub=lambda: self._listening.hub,
            meet=self._meet,
            identity=identity,
            sender=self._sender,
            door=door,
            events=self._events,
        )
        self._text: PreparedText | None = None
        self._something_happened = asyncio.Event()
        self._last_shown = 0.0
        self._told = ("", "")
        self._is_ready = False
        self._broker = ""
        self._not_arriving = ""
        self._training: Train | None = None
        self._put_out: StandingNotice | None = None
        self._stop_training = asyncio.Event()

    async def run(self) -> None:
        """Run until cancelled."""
        self._link.on_state(self._link_changed)
        async with asyncio.TaskGroup() as beside:
            beside.create_task(self._renewal.run(), name="device-renew")  # without it there may be no connection
            await self._take_part()

    async def _take_part(self) -> None:
        async with self._link:
            await self._link.subscribe(self._topics.all_to(self._identity.id))
            await self._link.subscribe(self._topics.hub("card"))
            await self._link.subscribe(self._topics.hub("charter"))
            await self._link.subscribe(self._topics.hub("round"))
            self._is_ready = True
            self._renewal.listening.set()
            self._events.say(
                "device-ready",
                f"device {self._identity.short_id} is connected to {self._membership.charter.name!r}",
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(), name="device-listen")
                tasks.create_task(self._sender.run(), name="device-send")
                tasks.create_task(self._conduct(), name="device-conduct")

    # --- doing -------------------------------------------------------------------------------------------------

    async def _conduct(self) -> None:
        """Do the next thing, again and again; wait where there is none."""
        pause = RETRY_SECONDS[0]
        while True:
            self._something_happened.clear()
            action = next_action(self._situation())
            try:
                await self._do(action)
                pause = RETRY_SECONDS[0]
            except (BrambleError, OSError) as error:
                explained = error if isinstance(error, BrambleError) else _explain(error)
                self._failed(action, explained)
                await self._wait(pause)
                pause = min(pause * 2, RETRY_SECONDS[1])

    def _situation(self) -> Situation:
        announcement = self._store.announcement
        manifests = [announcement.release, announcement.candidate] if announcement else []
        return Situation(
            announcement=announcement,
            adopted=self._store.adopted(),
            orphaned=self._store.orphaned,
            declined=self._store.declined(),
            here={manifest.sha256 for manifest in manifests if manifest and self._blobs.has(manifest.sha256)},
            sent_round=self._store.last_round(),
            judged=self._store.judged().keys(),
            has_text=bool(self._sources()),
            charter_changed=self._charter_changed,
            device=self._identity.id,
            community=self._membership.community,
        )

    def _sources(self) -> list[Path]:
        with explained_database(self._store.home):
            return [row.path for row in ConsentBook(self._store.connection).sources()]

    async def _do(self, action: object) -> None:
        match action:
            case Wait(reason=reason):
                self._tell("waiting", reason)
                await self._wait(LOOK_AGAIN_SECONDS)
            case Fetch(manifest=manifest):
                await self._fetch(manifest)
            case Adopt(release=release, anyway=anyway):
                await self._adopt(release, anyway=anyway)
            case Judge(candidate=candidate, current=current, round=number):
                await self._judge(candidate, current, number)
            case Train() as training:
                await self._train(training)

    async def _fetch(self, manifest: Manifest) -> None:
        self._tell("fetching", f"fetching adapter {manifest.sha256[:10]} (release {manifest.number})")
        self._forget_old()
        want = self._fetcher.want(manifest, have=self._releases_here(manifest))
        await self._sender.say("want", want)
        await self._fetcher.wait(manifest.sha256, patience=self._settings.resend_seconds)

    def _releases_here(self, wanted: Manifest) -> list[str]:
        """Give the adapters from which the hub may send a difference, the likeliest first."""
        adopted, seen = self._store.adopted(), self._store.announcement
        known = [wanted.parent, seen.release.sha256 if seen else "", adopted[1] if adopted else ""]
        return [sha256 for sha256 in dict.fromkeys(known) if sha256]

    async def _adopt(self, release: Manifest, *, anyway: bool) -> None:
        before = after = None
        current = None if anyway else self._store.adopted()
        if current is not None and current[1] == release.parent:  # what the trial compared is what is in use here
            before, after = self._store.judged().get(release.sha256, (None, None))
        if before is None and current is not None and self._sources():
            with contextlib.suppress(NoTextError):  # nothing to judge by at the moment: adopt as others do
                before, after, _targets = await self._compare(
                    current[1], release.sha256, f"trying release {release.number}"
                )
        worse = before is not None and after is not None and after > before
        if not worse:  # the personal adapter is the difference to the release before
            AdapterFiles(store=self._store, base=self._membership.base).personal.unlink(missing_ok=True)
        self._store.save_release(release, adopt=not worse, before=before, after=after)
        fields: dict[str, Value] = {
            "release": release.number,
            "sha256": release.sha256,
            "before": before,
            "after": after,
        }
        if worse:
            self._events.say("declined", f"release {release.number} is worse here and was not adopted", **fields)
            self._forget_old()
            return
        change = "" if before is None or after is None else f" (held-out loss {before:.4f} → {after:.4f})"
        self._events.say("adopted", f"release {release.number} is in use{change}", **fields)
        await asyncio.to_thread(AdapterFiles(store=self._store, base=self._membership.base).gguf, release.sha256)
        with contextlib.suppress(NoTextError):
            await self._personal(release, after)
        self._forget_old()

    def _forget_old(self) -> None:
        """Remove adapters that nothing here needs, whole or half fetched: candidates that were rejected among them.

        What is in use, on trial, trained last or gone on with stays, and the release that rounds start from.
        """
        seen, adopted, rounds = self._store.announcement, self._store.adopted(), self._store.rounds()
        announced = {manifest.sha256 for manifest in (seen.release, seen.candidate) if manifest} if seen else set()
        in_use = announced | ({adopted[1]} if adopted else set())
        trained = {str(record.report.get("trained", "")) for record in rounds[-1:]}
        self._blobs.keep_only(in_use | trained | self._store.kept_blobs())
        self._fetcher.keep_only(announced)
        AdapterFiles(store=self._store, base=self._membership.base).keep_only(in_use)

    async def _personal(self, release: Manifest, community_loss: float | None) -> None:
        """Keep what this device learned beyond the community, where it helps its owner."""
        rounds = self._store.rounds()
        trained = str(rounds[-1].report.get("trained", "")) if rounds else ""
        if not (self._settings.personal_adapter and trained and self._blobs.has(trained)):
            return
        text = await self._prepared()
        community, personal = await keep_personal(
            self._store,
            self._membership,
            self._settings,
            text,
            release=release.sha256,
            trained=trained,
            community_loss=community_loss,
            workers=self._workers,
            on_start=self._worker_started,
        )
        self._events.say(
            "personal",
            f"personal adapter: {community:.4f} → {personal:.4f}, " + ("kept" if personal < community else "not kept"),
            community=community,
            personal=personal,
        )

    async def _judge(self, candidate: Manifest, current: Manifest, number: int) -> None:
        before, after, targets = await self._compare(
            current.sha256, candidate.sha256, f"round {number}: trying the candidate on held-out text"
        )
        about = self._sender.new_id()
        verdict = Verdict(
            about=about,
            round=number,
            candidate=candidate.sha256,
            before=before,
            after=after,
            targets=targets,
        )
        with self._store.transaction():
            self._store.add_verdict(candidate.sha256, number=number, about=about, before=before, after=after)
            self._sender.queue_verdict(verdict)
        self._sender.wake()
        self._events.say(
            "judged",
            f"round {number}: candidate {candidate.sha256[:10]}: {before:.4f} → {after:.4f}",
            round=number,
            before=before,
            after=after,
        )

    async def _compare(self, current: str, candidate: str, words: str) -> tuple[float, float, int]:
        """Give the held-out losses with two adapters, and over how many tokens.

        An adapter whose numbers overflow has no loss; it is as bad as one can be.
        """
        text = await self._prepared()
        self._tell("judging", words)
        files = AdapterFiles(store=self._store, base=self._membership.base)
        paths = {name: (await asyncio.to_thread(files.gguf, sha),) for name, sha in (("a", current), ("b", candidate))}
        result = await measure(
            self._membership,
            self._settings,
            text,
            paths,
            workers=self._workers,
            on_progress=self._progress,
            on_start=self._worker_started,
        )
        before, after = (_sayable(result.losses[name]) for name in "ab")
        return before, after, result.targets

    async def _train(self, training: Train) -> None:
        number, start = training.round, training.start
        text = await self._prepared()
        self._tell("training", f"round {number}: training from release {start.number}", round=number)
        sources = self._sources()
        self._training = training
        self._stop_training.clear()
        watch = asyncio.create_task(self._watch_consent(sources), name="device-consent")
        try:
            learned = await learn(
                self._store,
                self._membership,
                self._settings,
                text,
                sources=sources,
                device=self._identity.id,
                round_number=number,
                release=start,
                seal_key=training.seal_key,
                factors=training.factors,
                workers=self._workers,
                pause=self._stop_training,
                on_progress=self._progress,
                on_start=self._worker_started,
            )
        except TrainingPausedError:
            if not self._stop_training.is_set():
                raise
            why = "it went on without this device's update"
            if self._sources() != sources:
                why = "the text was changed"
            elif self._charter_changed:
                why = "the community's charter was changed"
            self._tell("stopped", f"round {number}: training stopped, because {why}", round=number)
            return
        finally:
            self._training = None
            watch.cancel()
        self._sender.wake()
        result = learned.result
        self._events.say(
            "trained",
            f"round {number}: {result.steps} steps, loss {result.first_loss:.3f} → {result.last_loss:.3f},"
            f" update of {learned.wire_bytes:,} bytes is on its way",
            round=number,
            first_loss=result.first_loss,
            last_loss=result.last_loss,
            tok_s=result.tok_s,
            tokens=result.tokens,
            peak_rss_mb=result.peak_rss_mb,
            update=learned.update_id,
            bytes=learned.wire_bytes,
            fp32_bytes=learned.fp32_bytes,
        )

    async def _watch_consent(self, sources: list[Path]) -> None:
        """Stop training soon after the owner withdraws consent or adds text."""
        changed = False
        while not changed:
            with contextlib.suppress(BrambleError):  # a disk that is full for a moment does not end the watch
                changed = self._sources() != sources  # by another process, `bramble data`
            if not changed:
                await asyncio.sleep(CONSENT_SECONDS)
        self._stop_training.set()

    async def _prepared(self) -> PreparedText:
        """Give the windows of the text as it is now."""
        sources = self._sources()
        if self._text is None:
            self._tell("reading", "reading the text")
        self._text = await prepare_text(
            self._store, self._membership, self._settings, sources, workers=self._workers, on_progress=self._progress
        )
        return self._text

    def _failed(self, action: object, error: BrambleError) -> None:
        words = f"{type(action).__name__.lower()} did not work: {error} {error.advice}"
        if isinstance(error, NoTextError):
            words = f"{error}. {error.advice}"
        self._tell("failed", words, code=error.code)

    async def _wait(self, seconds: float | None) -> None:
        """Wait until something happens, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._something_happened.wait()

    # --- telling -----------------------------------------------------------------------------------------------

    def _tell(self, state: str, reason: str, **fields: str | float) -> None:
        """Say what the device does now, and keep it for `bramble status`; nothing where it is still the same."""
        if (state, reason) == self._told:
            return
        self._told = (state, reason)
        self._save_status()
        self._events.say(state, reason, **fields)

    def _save_status(self) -> None:
        state, reason = self._told
        self._store.save_status(
            {
                "state": state,
                "reason": reason,
                "since": int(time.time()),
                "connected_to": self._broker,
                "not_arriving": self._not_arriving,
                "refused": dict(self._refusals.counts),
                "clock": self._clock_words(),
            }
        )

    def _clock_words(self) -> str:
        """Say that this machine's clock is wrong, or the hub's; empty where they agree."""
        ahead = self._clock.ahead_seconds
        if abs(ahead) < CLOCK_SECONDS:
            return ""
        return f"{abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} the hub's; nothing depends on it"

    def _stalled(self, *, stalled: bool) -> None:
        """What this device sends gets nowhere, or gets there again."""
        self._not_arriving = NOT_ARRIVING if stalled else ""
        self._save_status()
        words = NOT_ARRIVING if stalled else "what this device sends reaches the hub again"
        self._events.say("not-arriving" if stalled else "arriving", words)

    def _progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last_shown < 0.5 and progress.step != progress.steps:
            return
        self._last_shown = now
        self._events.say(
            "progress",
            phase=progress.phase,
            step=progress.step,
            steps=progress.steps,
            loss=progress.loss,
            tok_s=progress.tok_s,
        )

    def _worker_started(self, pid: int) -> None:
        self._events.say("worker", pid=pid)

    def _link_changed(self, state: LinkState) -> None:
        self._events.say("link", f"broker: {state.reason}", connected=state.connected, broker=state.broker)
        self._broker = state.broker if state.connected else ""
        if not (self._is_ready or state.connected):
            self._tell("waiting", state.reason)
        elif self._told[0]:
            self._save_status()
        if state.connected:
            self._sender.wake()
            self._fetcher.begin_anew()
            self._something_happened.set()

    # --- hearing -----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for message in self._link.messages():
            try:
                self._hear(message)
            except ProtocolError as error:
                self._refuse(error.code, f"a message was refused: {error}", message)
            except BrambleError:
                raise  # the disk or the database: the message stays with the broker until this is mended
            except Exception as error:  # noqa: BLE001 (no message, whatever is in it, may stop the device)
                self._refuse(UNEXPECTED, f"a message was dropped: {error!r}", message)
            message.ack()
            if self._put_out is not None:
                raise explain_revoked(self._membership.charter.name, self._put_out)

    def _refuse(self, reason: str, text: str, message: Message) -> None:
        """Count a message that was dropped; the status has the counts, as often as they are told of."""
        if self._refusals.note(reason, text, topic=message.topic[:256]) and self._told[0]:
            self._save_status()

    def _hear(self, message: Message) -> None:
        card = self._listening.card(message)
        if card is not None:
            self._meet(card)
            return
        envelope = self._listening.look(message)
        try:
            self._dispatch(envelope)
        except ProtocolError:
            self._listening.handled(envelope)
            raise
        self._listening.handled(envelope)

    def _meet(self, card: Unverified) -> None:
        """Follow the hub where it has changed its keys."""
        before, after = self._listening.hub, follow(self._store, card)
        if after != before:
            self._listening.hub = after
            self._fetcher.hub = after.fingerprint()
            self._membership = self._store.membership
            words = f"the hub changed its keys: {before.short_id} signed that {after.short_id} comes after it"
            self._events.say("hub-succeeded", words, hub=after.id)

    def _dispatch(self, envelope: Envelope) -> None:
        body = envelope.body
        match envelope.kind:
            case "round":
                self._announced(Announcement.decode(body), envelope.time)
            case "charter":
                self._charter_shown(CharterNotice.decode(body), envelope)
            case "offer":
                self._clock.heard(envelope.time)
                self._fetcher.offered(Offer.decode(body))
            case "chunk":
                self._clock.heard(envelope.time)
                self._fetcher.arrived(Chunk.decode(body))
            case "receipt":
                self._clock.heard(envelope.time)
                self._receipt(Receipt.decode(body))
            case "certificate":
                self._renewal.answered(Issued.decode(body))
            case "standing":
                self._revoked(StandingNotice.decode(body))

    def _charter_shown(self, notice: CharterNotice, envelope: Envelope) -> None:
        """Hold the charter that the hub shows against the one that the owner agreed to.

        Raises:
            StaleMessageError: a newer one was seen.
        """
        if envelope.counter < self._charter_counter:
            raise StaleMessageError("a charter came that is older than one that was seen", advice="It was dropped.")
        self._charter_counter = envelope.counter
        changed = agreed.note(self._store, envelope.counter, notice.charter)
        if changed == self._charter_changed:
            return
        self._charter_changed = changed
        self._stop_training.set()
        self._something_happened.set()
        if changed:
            found = agreed.differences(self._membership.charter, notice.charter)
            names = ", ".join(name for name, _before, _after in found)
            self._events.say("charter-changed", f"{CHARTER_CHANGED} (changed: {names})", changed=[*names.split(", ")])
        else:
            self._events.say("charter-agreed", "the hub shows the charter again that you agreed to")

    def _announced(self, announcement: Announcement, said_at: int) -> None:
        """Take in the hub's word on its rounds; the same one again, as after each reconnection, changes nothing.

        Raises:
            StaleMessageError: a newer one is known.
        """
        known = self._store.announcement
        if known is not None and announcement.sequence < known.sequence:
            raise StaleMessageError("an announcement came that is older than the last one", advice="It was dropped.")
        is_new = self._store.save_announcement(announcement)
        if is_new or not self._clock.is_set:
            self._clock.heard(said_at)
        if is_new:
            self._something_happened.set()
            self._fetcher.begin_anew()
            forgot = known is not None and announcement.forgets(known)
            if forgot:
                self._events.say(
                    "hub-forgot", f"the hub lost its memory of round {announcement.round} and what came after"
                )
            late = self._membership.charter.rounds.max_staleness
            current = self._training
            if current and (forgot or not goes_on(current.round, current.start, announcement, max_staleness=late)):
                self._stop_training.set()
            self._events.context["round"] = announcement.round
            self._events.say(
                "announcement",
                phase=announcement.phase,
                release=announcement.release.number,
            )

    def _revoked(self, notice: StandingNotice) -> None:
        """The hub put this device out, for good: it is kept, and everything ends."""
        save_revoked(self._store, notice)
        self._put_out = notice
        self._events.say("revoked", f"the hub revoked this device{': ' if notice.reason else ''}{notice.reason}")

    def _receipt(self, receipt: Receipt) -> None:
        self._sender.receipt(receipt)
        self._something_happened.set()
        if receipt.state != "missing":
            self._events.say(
                "receipt",
                "" if receipt.state == "done" else f"the hub refused it: {receipt.message} {receipt.advice}",
                about=receipt.about.hex(),
                state=receipt.state,
                reason=receipt.reason,
            )


def _explain(error: OSError) -> BrambleError:
    return StateError(f"the system said: {error}", advice="It is tried again after a while.")


def _sayable(loss: float) -> float:
    return min(LARGEST_LOSS, loss)  # in this order: what is no number is never smaller
