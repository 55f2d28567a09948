"""Anything at any time: updates fresh, late, repeated; deadlines, verdicts, rollbacks; and the hub killed anywhere."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

import agent.hub.release_book
import agent.hub.round_book
from agent.errors import StateError
from agent.hub.placing import next_merge
from agent.hub.round_book import get_state, set_state
from agent.hub.rounds import FOLLOWERS, RoundState
from tests.hub.desk import Desk, KilledError, Sent, make_desk

MEMBERS = 4
REASONS = {"rolled-back", "too-late", "wrong-start", "release-gone", "round-closed", "superseded", "already-counted"}

taken: list[tuple[RoundState | None, RoundState]] = []
"""Every step of the rounds that was written, in the machine that runs."""


def _watched(connection: Any, before: RoundState | None, after: RoundState) -> None:
    found = get_state(connection)
    set_state(connection, before, after)
    taken.append((found, after))


@pytest.fixture(autouse=True)
def _watch_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(agent.hub.round_book, "set_state", _watched)
    monkeypatch.setattr(agent.hub.release_book, "set_state", _watched)
    monkeypatch.setattr(os, "fsync", lambda _file: None)  # what is killed here is a process, not the power
    yield
    taken.clear()


class Interleavings(RuleBasedStateMachine):
    """Devices that keep what they made until they have a receipt, and a hub that may die between any two writes."""

    mode = "synchronous"
    made = Bundle("made")

    @initialize(staleness=st.integers(0, 2), keep=st.integers(1, 3))
    def begin(self, staleness: int, keep: int) -> None:
        taken.clear()
        self.room = tempfile.TemporaryDirectory()
        self.desk: Desk = make_desk(
            Path(self.room.name), members=MEMBERS, mode=self.mode, buffer=2, max_staleness=staleness, keep_releases=keep
        )
        self.receipts: dict[bytes, tuple[str, str]] = {}
        self.numbers: set[int] = {0}

    @rule(target=made, who=st.integers(0, MEMBERS - 1))
    def device_trains(self, who: int) -> Any:
        sent = self.desk.make(self.desk.names[who]) if self.desk.collects() else None
        return multiple() if sent is None else sent

    @rule(sent=made)
    def update_arrives_perhaps_late_and_perhaps_again(self, sent: Sent) -> None:
        receipt = self.desk.deliver(sent)
        said = (receipt.state, receipt.reason)
        assert receipt.state == "done" or receipt.reason in REASONS
        assert self.receipts.setdefault(sent.offer.transfer, said) == said  # the hub never changes its mind

    @rule(sent=consumes(made), lives=st.integers(0, 1), moment=st.sampled_from(["before", "inside", "after"]))
    def hub_dies_as_an_update_arrives(self, sent: Sent, lives: int, moment: str) -> None:
        self.dies(lambda: self.desk.deliver(sent), lives, moment)
        self.update_arrives_perhaps_late_and_perhaps_again(sent)  # the device has no receipt and offers it again

    @rule(seconds=st.sampled_from([1, 150, 1500]))
    def time_passes(self, seconds: float) -> None:
        self.desk.now += seconds
        self.desk.advance()

    @rule(
        lives=st.integers(0, 4),
        moment=st.sampled_from(["before", "inside", "after"]),
        seconds=st.sampled_from([0, 1500]),
    )
    def hub_dies_as_it_moves_on(self, lives: int, moment: str, seconds: float) -> None:
        self.desk.now += seconds
        self.dies(self.desk.advance, lives, moment)

    @rule(who=st.integers(0, MEMBERS - 1), better=st.booleans())
    def device_judges(self, who: int, better: bool) -> None:  # noqa: FBT001 (hypothesis hands them over by name)
        self.desk.judge(self.desk.names[who], after=1.9 if better else 2.5)

    @rule(first=st.integers(0, MEMBERS - 1), better=st.booleans())
    def round_passes(self, first: int, better: bool) -> None:  # noqa: FBT001
        names = [self.desk.names[first], self.desk.names[(first + 1) % MEMBERS]]
        for name in names:
            sent = self.desk.make(name) if self.desk.collects() else None
            if sent is not None:
                self.update_arrives_perhaps_late_and_perhaps_again(sent)
        self.desk.advance()
        for name in self.desk.names:
            self.desk.judge(name, after=1.9 if better else 2.5)
        self.desk.advance()

    @rule(chance=st.integers(0, 10))
    def operator_goes_back(self, chance: int) -> None:
        kept = [row.manifest.number for row in self.desk.store.releases() if row.kept][:-1]
        if not kept:
            with pytest.raises(StateError):
                self.desk.store.roll_back(0, by="operator", oldest_after=self.late())
            return
        self.desk.store.roll_back(kept[chance % len(kept)], by="operator", oldest_after=self.late())

    def late(self) -> int:
        return self.desk.config.charter.rounds.max_staleness

    def dies(self, work: Any, lives: int, moment: str) -> None:
        self.desk.store.lives, self.desk.store.moment = lives, moment
        with contextlib.suppress(KilledError):
            work()
        self.desk.reopen()

    @invariant()
    def every_step_is_a_legal_one(self) -> None:
        for before, after in taken:
            assert before is None or after.phase == before.phase or after.phase in FOLLOWERS[before.phase]
            assert before is None or after.number >= before.number

    @invariant()
    def every_update_counts_once_or_not_at_all(self) -> None:
        if not hasattr(self, "desk"):
            return
        rows = self.desk.store.updates()
        assert max(Counter((row.round, row.device) for row in rows).values(), default=1) == 1
        counted = [row for row in rows if row.state in {"waiting", "merged", "spent"}]
        assert max(Counter((row.merge, row.device) for row in counted).values(), default=1) == 1
        merged: Counter[str] = Counter()
        for ended in self.desk.store.round_rows():
            merged.update(item["update"] for item in ended["report"].get("updates", []))
        assert set(merged.values()) <= {1}
        assert {row.update_id for row in rows if row.state == "merged"} == set(merged)
        settled = {row.transfer for row in rows}
        done = {transfer.hex() for transfer, said in self.receipts.items() if said[0] == "done"}
        assert done <= settled
        for row in rows:
            assert row.late <= self.late() or row.state == "withdrawn"

    @invariant()
    def what_waits_can_be_merged(self) -> None:
        if not hasattr(self, "desk"):
            return
        line, merge = self.desk.store.line(), next_merge(self.desk.state)
        for row in self.desk.store.updates():
            if row.state == "waiting":
                assert row.start in line.positions
                assert self.desk.blobs.has(row.update_id)
                assert row.merge == merge or (row.merge == self.desk.state.number == merge - 1)
                # the second: the merge is asked for and has not happened yet; or an operator has just gone back

    @invariant()
    def whatever_stands_is_whole(self) -> None:
        if not hasattr(self, "desk"):
            return
        store = self.desk.store
        for row in store.releases():
            if row.kept:
                assert self.desk.blobs.has(row.manifest.sha256)
                assert not row.carry or self.desk.blobs.has(row.carry)
        numbers = [row.manifest.number for row in (*store.releases(), *store.withdrawn())]
        assert len(numbers) == len(set(numbers))
        assert {row.manifest.number for row in store.withdrawn()} <= {
            number for one, two in store.withdrawn_ranges() for number in range(one, two + 1)
        }

    @invariant()
    def keys_are_kept_as_long_as_they_are_needed_and_no_longer(self) -> None:
        if not hasattr(self, "desk"):
            return
        state = self.desk.state
        held = [key.round for key in self.desk.store.round_keys()]
        if state.phase in {"open", "collecting"}:
            assert min(held) >= state.number - self.late()
            assert max(held) == state.number
        elif state.phase == "trial":
            assert all(number >= state.number + 1 - self.late() for number in held)

    def teardown(self) -> None:
        """Whatever happened, devices and time bring the next release."""
        if not hasattr(self, "desk"):
            return
        desk = self.desk
        release = desk.store.current().manifest.number
        for _ in range(12):
            desk.now += 1500
            desk.advance()
            for name in desk.names[:2]:
                if desk.collects():
                    sent = desk.make(name)
                    assert sent is not None
                    desk.deliver(sent)
            desk.advance()
            for name in desk.names:
                desk.judge(name, after=1.0)
            desk.advance()
            if desk.store.current().manifest.number > release:
                break
        else:
            raise AssertionError(f"the community hangs in {desk.state}")
        desk.close()
        self.room.cleanup()


class BufferedInterleavings(Interleavings):
    """The same in asynchronous mode."""

    mode = "asynchronous"


@pytest.mark.parametrize("machine", [Interleavings, BufferedInterleavings])
def test_rounds_survive_any_interleaving(machine: type[Interleavings]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=settings().max_examples // 10,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )
