"""The conductor moves the rounds on: it looks where the hub is, asks the state machine what follows, and does it.

It is the only one in the hub's process that changes where the rounds are. Another process may go back to an earlier
release at any time; every change says what it believed to change, so whoever comes second looks again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from agent.crypto.sealing import SealKey
from agent.errors import BrambleError, CorruptStateError, DiskFullError, MergeError, StateError, UpdateRefusedError
from agent.events import Events
from agent.federation.draw import limit_for
from agent.hub.database import DatabaseRefusedError
from agent.hub.gate import GateDecision, gate
from agent.hub.merging import UnreadableUpdateError, merge_round
from agent.hub.publishing import Publisher, phase_for_devices
from agent.hub.round_book import RoundMovedError
from agent.hub.rounds import RoundState, begin, step, wanted_in
from agent.hub.store import HubStore
from agent.paths import BlobStore


class Conductor:
    """Runs the rounds of one community.

    Args:
        store: where the rounds are.
        blobs: where updates, adapters and carries are.
        publisher: tells the devices.
        events: where to tell what happens.
        clock: Unix time in seconds.
    """

    def __init__(
        self, *, store: HubStore, blobs: BlobStore, publisher: Publisher, events: Events, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._publisher = publisher
        self._events = events
        self._clock = clock
        self._config = store.config
        self._rules = self._config.charter.rounds
        self._announced: object = None

    def resume(self) -> None:
        """Open the first round, or say where a hub goes on that was stopped or killed."""
        self._blobs.keep_only(self._store.wanted_blobs())  # what a killed hub wrote and had no time to name
        state = self._store.round_state()
        if state is None:
            self._open(None, 1)
        else:
            self._events.context["round"] = state.number
            self._events.say("round-resumed", f"round {state.number}: {state.phase}", phase=state.phase)

    async def advance(self) -> None:
        """Do whatever the state and the clock ask for, until there is nothing but to wait."""
        try:
            while await self._step():
                pass
        except RoundMovedError:
            pass  # an operator was quicker; the next look finds where the rounds are now
        await self._announce_changes()

    async def _step(self) -> bool:
        """Take one step; False where there was none."""
        state = self._store.round_state()
        if state is None:
            return False
        candidate = self._store.candidate(state.number) if state.phase == "trial" else None
        sha256 = "" if candidate is None else candidate.manifest.sha256
        after = step(state, self._store.tally(state, sha256), self._rules, self._clock())
        if isinstance(after, RoundState):
            return after != state and self._move(state, after)
        if after == "next":
            if state.phase == "rolled-back":
                release = self._store.current().manifest.number
                self._events.say("rolled-back", f"an operator went back to release {release}", release=release)
            self._open(state, state.number + 1)
        elif after == "merge":
            await self._merge(state)
        else:
            self._decide(state, sha256)
        return True

    def _move(self, state: RoundState, after: RoundState) -> bool:
        """Take a step that needs nothing done; a deadline that passed without a quorum widens the draw."""
        if after.extended > state.extended:
            if after.phase != "trial":
                after = self._drawn(after)
            tally = self._store.tally(after)
            self._events.say(
                "round-extended",
                f"round {after.number}: {phase_for_devices(after)} goes on, without a quorum yet",
                phase=after.phase,
                updates=tally.fresh + tally.late,
                drawn=after.drawn,
            )
        if after.phase == "merging" and self._rules.mode == "asynchronous" and self._rules.max_staleness:
            # Devices go on training while this one is merged and tried; what they make counts in the next.
            start = self._store.current().manifest.number
            seed = SealKey.generate().seed
            with self._store.transaction():
                self._store.move(state, after)
                if not self._is_last(after.number):
                    self._store.prepare_round(after.number + 1, start_release=start, seal_seed=seed)
            return True
        self._store.move(state, after)
        return True

    def _is_last(self, number: int) -> bool:
        return self._config.last_round is not None and number >= self._config.last_round

    def _drawn(self, state: RoundState) -> RoundState:
        """Draw the devices of a round, where it wants fewer than there are."""
        wanted = wanted_in(state, self._rules)
        if wanted is None:
            return RoundState(state.number, state.phase, state.deadline, state.extended)
        release = self._store.current().manifest.sha256
        limit, drawn = limit_for(
            (row.device for row in self._store.devices()),
            wanted,
            community=self._config.community,
            round_number=state.number,
            release=release,
        )
        return RoundState(state.number, state.phase, state.deadline, state.extended, limit, drawn if limit else 0)

    def _open(self, before: RoundState | None, number: int) -> None:
        """Open a round, and forget what nothing needs any longer."""
        state = begin(number, self._rules, self._clock(), last_round=self._config.last_round)
        start = self._store.current().manifest
        closed = state.phase == "closed"
        with self._store.transaction():
            self._store.open_round(
                before,
                state if closed else self._drawn(state),
                start_release=start.number,
                seal_seed=SealKey.generate().seed,
                oldest=number + 1 if closed else number - self._rules.max_staleness,
            )
            over = self._store.forget_releases(self._config.releases_kept)
        if before is not None:
            over += [row.update_id for row in self._store.updates_over(before.number)]
        for blob in over:
            self._blobs.discard(blob)
        self._events.context["round"] = state.number
        if closed:
            self._events.say(
                "closed",
                f"round {state.number} was the last; release {start.number} stands",
                release=start.number,
                sha256=start.sha256,
            )
            return
        words = f"round {number} is open, from release {start.number}"
        self._events.say("round-open", words, start_release=start.number)

    async def _merge(self, state: RoundState) -> None:
        started = time.monotonic()
        try:
            outcome = await asyncio.to_thread(merge_round, self._store, self._blobs, state, now=self._clock())
        except (DiskFullError, DatabaseRefusedError, CorruptStateError, RoundMovedError):
            raise  # nothing is wrong with the round: it is merged once the disk lets it, or not at all
        except UnreadableUpdateError as error:
            self._leave_out(state, error)
            return
        except (MergeError, StateError, UpdateRefusedError) as error:
            self._give_up(state, error)
            return
        manifest = outcome.release.manifest
        if outcome.carry_lost:
            words = f"round {state.number} is merged without what earlier merges left over: {outcome.carry_lost}"
            self._events.say("carry-lost", words, parent=manifest.parent)
        self._events.say(
            "merged",
            f"round {state.number}: {len(outcome.release.updates)} updates make candidate {manifest.sha256[:10]}",
            candidate=manifest.sha256,
            updates=len(outcome.release.updates),
            seconds=round(time.monotonic() - started, 3),
            discarded_energy=outcome.report["discarded_energy"],
        )

    def _leave_out(self, state: RoundState, error: UnreadableUpdateError) -> None:
        """Go on without one update; the next step merges the others."""
        self._store.spend_update(error.row.update_id)
        words = f"round {state.number} is merged without an update: {error}"
        self._events.say("update-lost", words, device=error.row.device, update=error.row.update_id)

    def _give_up(self, state: RoundState, error: BrambleError) -> None:
        """End a round that cannot be merged; the release stays what it is."""
        reason = f"could not be merged: {error}"
        self._store.end_round(state, "", GateDecision(promote=False, reason=reason))
        self._events.say("rejected", f"round {state.number} {reason} {error.advice}", reason=reason)

    def _decide(self, state: RoundState, sha256: str) -> None:
        candidate = self._store.release(sha256)
        if candidate is None:
            self._give_up(state, StateError("its candidate is gone", advice="The next round begins."))
            return
        decision = gate(list(self._store.verdicts(sha256).values()), self._rules)
        self._store.end_round(state, sha256, decision)
        self._events.say(
            "promoted" if decision.promote else "rejected",
            f"round {state.number}: candidate {sha256[:10]} "
            + (f"is release {candidate.manifest.number}" if decision.promote else "is rejected")
            + f" ({decision.reason})",
            candidate=sha256,
            release=candidate.manifest.number,
            reason=decision.reason,
            median_change=decision.median_change,
            worst_change=decision.worst_change,
        )

    async def _announce_changes(self) -> None:
        """Tell the devices where the rounds are, if that is news to them."""
        state = self._store.round_state()
        if state is None:
            return
        phase = phase_for_devices(state)
        news = (state.number, phase, state.deadline, state.draw, self._store.current().manifest.sha256)
        if news != self._announced:
            self._announced = news
            await self._publisher.announce()
