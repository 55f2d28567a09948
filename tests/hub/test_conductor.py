"""The rounds over a real store and inbox: late updates, buffers, draws, rejected candidates, and the way back."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from agent.errors import BrambleError, StateError, UpdateRefusedError
from agent.federation.draw import lot
from agent.hub.merge.carry import carry_from_bytes, products_from_tensors
from agent.hub.merge.defence import merge_robustly
from agent.hub.merge.rule import Merged
from agent.hub.reporting import round_report
from agent.llm.adapter import from_bytes
from agent.testing import random_delta
from tests.hub.desk import Desk, make_desk

MakeDesk = Callable[..., Desk]


@pytest.fixture
def desk_of(tmp_path: Path) -> Iterator[MakeDesk]:
    """Make desks that are closed at the end."""
    made: list[Desk] = []

    def make(**options: Any) -> Desk:
        made.append(make_desk(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


# --- late updates ----------------------------------------------------------------------------------------------------


def test_update_that_comes_during_the_merge_or_the_trial_counts_in_the_next_merge(desk_of: MakeDesk) -> None:
    desk = desk_of()
    a, b, c, _d = desk.names
    slow = desk.make(c)
    assert slow is not None
    desk.send(a)
    desk.send(b)
    desk.advance()
    assert desk.state.phase == "trial"
    assert desk.deliver(slow).state == "done"
    assert [(row.device, row.round, row.merge, row.late) for row in desk.store.updates_in(2, "waiting")] == [
        (c, 1, 2, 1)
    ]
    desk.judge(a)
    desk.judge(b)
    desk.advance()
    assert desk.state.number == 2
    assert desk.round(a, b) == 2
    rows = desk.store.round_rows(2)[0]["report"]["updates"]
    assert {row["device"]: row["staleness"] for row in rows} == {a: 0, b: 0, c: 1}
    weights = {row["device"]: row["weight"] for row in rows}
    assert weights[c] / weights[a] == pytest.approx(2**-0.5)  # the same tokens, one release behind


def test_late_update_whose_round_was_rejected_is_not_stale(desk_of: MakeDesk) -> None:
    desk = desk_of()
    a, b, c, _d = desk.names
    slow = desk.make(c)
    assert slow is not None
    assert desk.round(a, b, after=9.0) == 0  # rejected: release 0 stands
    assert desk.deliver(slow).state == "done"
    desk.round(a, b)
    rows = desk.store.round_rows(2)[0]["report"]["updates"]
    assert {row["device"]: (row["round"], row["staleness"]) for row in rows} == {a: (2, 0), b: (2, 0), c: (1, 0)}
    assert len({row["weight"] for row in rows}) == 1


def test_late_update_is_merged_as_a_change_of_the_release_that_it_started_from(desk_of: MakeDesk) -> None:
    """Alone in its merge it adds exactly what its device changed, to a release that has moved on meanwhile."""
    desk = desk_of(quorum=1, target=1)
    a, b, *_ = desk.names
    slow = desk.make(b)
    assert slow is not None
    desk.round(a)
    first = from_bytes(desk.blobs.get(desk.store.current().manifest.sha256))
    carry = desk.blobs.get(desk.store.current().carry) if desk.store.current().carry else b""
    desk.deliver(slow)
    desk.now += 10_000
    desk.advance()
    row = desk.store.updates_in(2, "merged")[0]
    assert (row.device, row.start) == (b, slow.start)
    second = desk.store.candidate(2)
    assert second is not None
    start = from_bytes(desk.blobs.get(slow.start))
    delta = random_delta(rank=4, seed=slow.seed)
    after = from_bytes(desk.blobs.get(second.manifest.sha256))
    left, before = (
        products_from_tensors(carry_from_bytes("stack", data), first.shapes, "residual/")
        for data in (desk.blobs.get(second.carry) if second.carry else b"", carry)
    )
    for name, factors in start.modules.items():
        change = delta.modules[name]
        own = (factors.b + change.b) @ (factors.a + change.a) - factors.b @ factors.a
        there = first.modules[name].b @ first.modules[name].a + own
        if name in before:
            there = there + before[name].left @ before[name].right
        here = after.modules[name].b @ after.modules[name].a
        if name in left:
            here = here + left[name].left @ left[name].right
        np.testing.assert_allclose(here, there, atol=1e-4)


def test_update_that_is_too_late_is_refused_with_a_stable_reason(desk_of: MakeDesk) -> None:
    desk = desk_of(max_staleness=1)
    a, b, c, d = desk.names
    slow, slower = desk.make(c), desk.make(d)
    assert slow is not None
    assert slower is not None
    desk.round(a, b)
    assert desk.deliver(slow).state == "done"
    desk.round(a, b)
    refused = desk.deliver(slower)
    assert (refused.state, refused.reason) == ("refused", "too-late")
    assert [key.round for key in desk.store.round_keys()] == [2, 3]  # nobody can open updates of round 1 any more


def test_without_staleness_the_key_of_a_round_is_forgotten_when_it_is_merged(desk_of: MakeDesk) -> None:
    desk = desk_of(max_staleness=0)
    a, b, c, _d = desk.names
    slow = desk.make(c)
    assert slow is not None
    desk.send(a)
    desk.send(b)
    desk.advance()
    assert desk.state.phase == "trial"
    assert desk.store.round_keys() == []
    assert desk.deliver(slow).reason == "too-late"


@pytest.mark.parametrize("late_first", [True, False])
def test_of_a_late_and_a_fresh_update_in_one_merge_the_fresh_one_counts_in_either_order(
    desk_of: MakeDesk,
    late_first: bool,  # noqa: FBT001
) -> None:
    desk = desk_of(target=3)
    a, b, c, d = desk.names
    slow = desk.make(d)
    assert slow is not None
    desk.round(a, b, c)
    fresh = desk.make(d)
    assert fresh is not None
    receipts = [desk.deliver(sent) for sent in ((slow, fresh) if late_first else (fresh, slow))]
    waiting = desk.store.updates_in(2, "waiting")
    assert [(row.device, row.round) for row in waiting] == [(d, 2)]
    if late_first:
        assert [receipt.state for receipt in receipts] == ["done", "done"]
        assert [row.state for row in desk.store.updates(1) if row.device == d] == ["superseded"]
    else:
        assert (receipts[1].state, receipts[1].reason) == ("refused", "superseded")
    assert desk.deliver(slow).state == receipts[0 if late_first else 1].state  # and whatever was said stays so
    assert {path.name for path in desk.home.blobs.iterdir()} >= {row.update_id for row in waiting}


def test_updates_of_a_rejected_candidate_are_spent(desk_of: MakeDesk) -> None:
    desk = desk_of()
    a, b, *_ = desk.names
    before = desk.store.current()
    assert desk.round(a, b, after=9.0) == 0
    assert desk.store.current() == before
    assert [row.state for row in desk.store.updates(1)] == ["merged", "merged"]
    assert desk.store.updates_in(2, "waiting") == []
    assert {path.name for path in desk.home.blobs.iterdir()} == {before.manifest.sha256}  # and nothing of it is left


# --- asynchronous mode -----------------------------------------------------------------------------------------------


def test_asynchronous_hub_merges_each_buffer_and_takes_updates_all_the_while(desk_of: MakeDesk) -> None:
    desk = desk_of(mode="asynchronous", buffer=2)
    a, b, c, d = desk.names
    desk.send(a)
    desk.advance()
    assert desk.state.phase == "collecting"
    desk.send(b)
    desk.advance()
    assert (desk.state.number, desk.state.phase) == (1, "trial")
    assert desk.collects() == 2  # round 1 is tried, and devices train for the next merge already
    assert desk.send(c).state == "done"
    assert desk.send(c).reason == "already-counted"
    assert desk.send(d).state == "done"
    desk.judge(a)
    desk.judge(b)
    desk.advance()
    assert (desk.state.number, desk.state.phase) == (2, "trial")  # the buffer was full when round 2 opened
    rows = desk.store.round_rows(2)[0]["report"]["updates"]
    assert [row["staleness"] for row in rows] == [1, 1]  # they started before release 1 was promoted


def test_device_counts_once_in_a_buffer_whatever_it_started_from(desk_of: MakeDesk) -> None:
    desk = desk_of(mode="asynchronous", buffer=3)
    a, b, *_ = desk.names
    early = desk.make(a)
    assert early is not None
    for device in (*desk.names[1:],):
        desk.send(device)
    desk.advance()
    assert desk.state.phase == "trial"
    assert desk.send(a).state == "done"  # made for the buffer that collects now
    assert desk.deliver(early).reason == "superseded"
    assert [row.device for row in desk.store.updates_in(2, "waiting")] == [a]
    assert b not in {row.device for row in desk.store.updates_in(2, "waiting")}


def test_asynchronous_update_of_a_release_that_is_too_old_is_refused(desk_of: MakeDesk) -> None:
    desk = desk_of(mode="asynchronous", buffer=2, max_staleness=1)
    a, b, c, _d = desk.names
    old = desk.store.current().manifest.sha256
    for _ in range(2):
        desk.round(a, b)
    assert desk.send(c, start=old).reason == "too-late"
    assert desk.send(c).reason == "already-counted" or desk.send(c, start=old).state == "refused"


# --- draws -----------------------------------------------------------------------------------------------------------


def test_only_devices_that_were_drawn_count_and_the_others_are_told_so(desk_of: MakeDesk) -> None:
    desk = desk_of(members=6, wanted=2, target=5)
    start = desk.store.current().manifest.sha256
    limit = desk.state.draw
    assert limit is not None
    drawn = [
        name for name in desk.names if lot(name, community=desk.config.community, round_number=1, release=start) < limit
    ]
    assert len(drawn) == desk.state.drawn == 2
    others = [name for name in desk.names if name not in drawn]
    assert desk.send(others[0]).reason == "not-drawn"
    assert [desk.send(name).state for name in drawn] == ["done", "done"]
    desk.advance()
    assert desk.state.phase == "trial"  # everybody who was drawn is in: there is nobody to wait for


def test_draw_is_widened_when_the_deadline_passes_without_a_quorum(desk_of: MakeDesk) -> None:
    desk = desk_of(members=6, wanted=2)
    before = desk.state
    desk.now = before.deadline
    desk.advance()
    after = desk.state
    assert after.draw is not None
    assert before.draw is not None
    assert (after.drawn, after.extended) == (4, 1)
    assert after.draw > before.draw
    assert {key.round: key.draw for key in desk.store.round_keys()} == {1: after.draw}
    desk.now = after.deadline
    desk.advance()
    assert desk.state.draw is None  # eight of six: everybody


def test_nobody_is_left_out_where_there_are_no_more_than_wanted(desk_of: MakeDesk) -> None:
    desk = desk_of(members=3, wanted=3)
    assert desk.state.draw is None
    assert all(desk.send(name).state == "done" for name in desk.names)


# --- the way back ----------------------------------------------------------------------------------------------------


def grown(desk: Desk, releases: int) -> list[str]:
    """Let releases be promoted, and give the hashes of all."""
    for number in range(1, releases + 1):
        assert desk.round(*desk.names[:2]) == number
    return [row.manifest.sha256 for row in desk.store.releases()]


def test_going_back_restores_a_release_with_its_carry_and_devices_are_told(desk_of: MakeDesk) -> None:
    desk = desk_of()
    hashes = grown(desk, 3)
    carries = {row.manifest.number: row.carry for row in desk.store.releases()}
    before = desk.state
    done = desk.store.roll_back(1, by="operator", oldest_after=2)
    assert (done.release.sha256, done.withdrawn) == (hashes[1], (2, 3))
    announced = desk.publisher.announced
    desk.advance()
    assert (desk.state.number, desk.state.phase) == (before.number + 1, "open")
    assert desk.store.current().manifest.sha256 == hashes[1]
    assert desk.store.current().carry == carries[1] != ""
    assert desk.blobs.has(carries[1])
    assert not desk.blobs.has(carries[3])
    assert not desk.blobs.has(hashes[3])
    assert desk.publisher.announced > announced
    assert desk.store.withdrawn_ranges() == [(2, 3)]
    acts = desk.store.acts()
    assert [(act["act"], act["operator"]) for act in acts] == [("rollback", "operator")]
    assert acts[0]["details"] == {"from": 3, "to": 1, "withdrawn": [2, 3], "round": before.number, "phase": "open"}
    assert desk.round(*desk.names[:2]) == 4  # a number is never given twice


def test_update_of_a_release_that_was_rolled_back_is_refused_and_one_that_waited_is_withdrawn(
    desk_of: MakeDesk,
) -> None:
    desk = desk_of(target=4)
    a, b, c, d = desk.names
    assert desk.round(a, b) == 1
    waits, comes = desk.make(c), desk.make(d)
    assert waits is not None
    assert comes is not None
    assert desk.deliver(waits).state == "done"
    desk.store.roll_back(0, by="operator", oldest_after=2)
    assert desk.deliver(comes).reason == "rolled-back"
    desk.advance()
    assert desk.deliver(desk.make(d) or comes).state == "done"
    fates = {(row.device, row.round): row.state for row in desk.store.updates()}
    assert fates[c, 2] == "withdrawn"
    assert fates[d, 3] == "waiting"
    assert {path.name for path in desk.home.blobs.iterdir()} == desk.store.wanted_blobs()


def test_late_update_of_a_release_that_still_stands_is_not_lost_by_going_back(desk_of: MakeDesk) -> None:
    desk = desk_of()
    a, b, c, _d = desk.names
    slow = desk.make(c)
    assert slow is not None
    assert desk.round(a, b) == 1
    assert desk.deliver(slow).state == "done"  # started from release 0, waits for the merge of round 2
    desk.store.roll_back(0, by="operator", oldest_after=2)
    desk.advance()
    assert [(row.device, row.merge) for row in desk.store.updates_in(3, "waiting")] == [(c, 3)]
    desk.round(a, b)
    rows = desk.store.round_rows(3)[0]["report"]["updates"]
    assert {row["device"]: row["staleness"] for row in rows} == {a: 0, b: 0, c: 0}


@pytest.mark.parametrize("phase", ["open", "collecting", "merging", "trial", "promoted", "closed"])
@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
def test_going_back_is_safe_in_every_phase(desk_of: MakeDesk, phase: str, mode: str) -> None:
    desk = desk_of(mode=mode, buffer=2, last_round=2 if phase == "closed" else None)
    a, b, *_ = desk.names
    hashes = grown(desk, 1 if phase != "closed" else 2)
    if phase not in {"open", "closed"}:
        desk.send(a)
        for wanted in ("collecting", "merging", "trial", "promoted"):
            if desk.state.phase == phase:
                break
            if wanted == "merging":
                desk.send(b)
            if wanted == "promoted":
                desk.judge(a)
                desk.judge(b)
            asyncio.run(desk.conductor._step())  # as a hub does that is killed after it
    assert desk.state.phase == phase
    desk.store.roll_back(0, by="operator", oldest_after=2)
    desk.reopen()  # the hub was killed at the same moment
    desk.advance()
    assert desk.store.current().manifest.sha256 == hashes[0]
    if phase == "closed":
        assert desk.state.phase == "closed"
        return
    assert desk.state.phase == "open"
    assert desk.round(a, b) > len(hashes) - 1
    assert {row["outcome"] for row in desk.store.round_rows()} <= {"promoted", "rolled-back", "running"}


def test_merge_that_was_under_way_while_an_operator_went_back_changes_nothing(
    desk_of: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of()
    a, b, *_ = desk.names
    grown(desk, 1)
    desk.send(a)
    desk.send(b)

    def meanwhile(*arguments: Any, **options: Any) -> Merged:
        desk.store.roll_back(0, by="operator", oldest_after=2)
        return merge_robustly(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr("agent.hub.merging.merge_robustly", meanwhile)
        desk.advance()
    assert desk.store.candidate(2) is None
    desk.advance()
    assert (desk.state.number, desk.state.phase) == (3, "open")
    assert [row["outcome"] for row in desk.store.round_rows()] == ["promoted", "rolled-back", "running"]
    assert [row.state for row in desk.store.updates(2)] == ["withdrawn", "withdrawn"]


def test_going_back_is_refused_with_what_can_be_gone_back_to(desk_of: MakeDesk) -> None:
    desk = desk_of(keep_releases=3)
    grown(desk, 5)
    for number, words in ((5, "stands"), (9, "no release 9"), (1, "not kept")):
        with pytest.raises(StateError, match=words) as caught:
            desk.store.roll_back(number, by="operator", oldest_after=2)
        assert "0, 3, 4" in caught.value.advice
    desk.store.roll_back(3, by="operator", oldest_after=2)
    with pytest.raises(StateError, match="withdrawn"):
        desk.store.roll_back(4, by="operator", oldest_after=2)
    assert len(desk.store.acts()) == 1


def test_withdrawn_ranges_take_one_another_in(desk_of: MakeDesk) -> None:
    desk = desk_of()
    grown(desk, 3)
    desk.store.roll_back(2, by="operator", oldest_after=2)
    desk.advance()
    assert desk.round(*desk.names[:2]) == 4
    desk.store.roll_back(2, by="operator", oldest_after=2)
    assert desk.store.withdrawn_ranges() == [(3, 4)]
    desk.advance()
    assert desk.round(*desk.names[:2]) == 5
    desk.store.roll_back(0, by="operator", oldest_after=2)
    assert desk.store.withdrawn_ranges() == [(1, 5)]


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_newest_releases_and_the_first_are_kept_with_their_carries_and_no_others(desk_of: MakeDesk) -> None:
    desk = desk_of(keep_releases=3)
    hashes = grown(desk, 5)
    kept = [row.manifest.number for row in desk.store.releases() if row.kept]
    assert kept == [0, 3, 4, 5]
    carries = {row.carry for row in desk.store.releases() if row.carry}
    assert {path.name for path in desk.home.blobs.iterdir()} == {hashes[0], *hashes[3:], *carries}


def test_of_two_updates_of_a_device_that_wait_when_an_operator_goes_back_the_newer_one_counts(
    desk_of: MakeDesk,
) -> None:
    desk = desk_of(max_staleness=4)
    a, b, c, d = desk.names
    older = desk.make(d)
    assert desk.round(a, b) == 1
    newer = desk.make(d)
    assert desk.round(a, b) == 2
    assert older is not None
    assert newer is not None
    assert desk.deliver(newer).state == "done"
    desk.store.move(desk.state, dataclasses.replace(desk.state, phase="merging"))
    assert desk.deliver(older).state == "done"  # it waits for the next merge
    desk.store.roll_back(1, by="operator", oldest_after=4)
    desk.advance()
    number = desk.state.number
    assert [(row.round, row.merge) for row in desk.store.updates() if row.state == "waiting"] == [(2, number)]
    assert desk.send(c).state == "done"
    assert desk.round(a, b) > 0
    fates = [(row.round, row.state) for row in desk.store.updates() if row.device == d]
    assert fates == [(1, "superseded"), (2, "merged")]


# --- merges that do not work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        np.linalg.LinAlgError("SVD did not converge"),
        UpdateRefusedError("of another version", advice="", reason="version"),
    ],
    ids=["decomposition", "update"],
)
def test_round_that_cannot_be_merged_ends_and_the_next_one_begins(
    desk_of: MakeDesk, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    desk = desk_of()
    a, b, *_ = desk.names
    desk.send(a)
    desk.send(b)

    def failing(*_arguments: Any, **_options: Any) -> Merged:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("agent.hub.merging.merge_robustly", failing)
        desk.advance()
    assert (desk.state.number, desk.state.phase) == (2, "open")
    assert str(error) in desk.store.round_rows(1)[0]["reason"]
    assert desk.round(a, b) == 1


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_update_that_is_damaged_on_the_disk_costs_nobody_else_theirs(desk_of: MakeDesk, damage: str) -> None:
    desk = desk_of(target=3)
    a, b, c, _d = desk.names
    for device in (a, b, c):
        desk.send(device)
    (lost,) = (row for row in desk.store.updates(1) if row.device == b)
    if damage == "gone":
        desk.blobs.discard(lost.update_id)
    else:
        desk.blobs.path(lost.update_id).write_bytes(b"changed")
    desk.advance()
    assert desk.state.phase == "trial"
    assert [(row.device, row.state) for row in desk.store.updates(1)] == [(a, "merged"), (b, "spent"), (c, "merged")]
    assert [told["device"] for told in desk.said("update-lost")] == [b]
    for device in (a, c):
        assert desk.judge(device)
    desk.advance()
    assert desk.store.current().manifest.number == 1


def test_release_that_a_late_update_started_from_is_damaged_and_costs_nobody_else_theirs(desk_of: MakeDesk) -> None:
    desk = desk_of()
    a, b, c, _d = desk.names
    start, slow = desk.store.current().manifest.sha256, desk.make(c)
    assert slow is not None
    desk.round(a, b)
    assert desk.deliver(slow).state == "done"
    desk.blobs.discard(start)
    desk.round(a, b)
    assert desk.store.current().manifest.number == 2
    assert [told["device"] for told in desk.said("update-lost")] == [c]


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_carry_that_is_damaged_on_the_disk_costs_no_update_and_the_report_says_so(
    desk_of: MakeDesk, damage: str
) -> None:
    desk = desk_of()
    a, b, *_ = desk.names
    desk.round(a, b)
    carry = desk.store.current().carry
    assert carry
    if damage == "gone":
        desk.blobs.discard(carry)
    else:
        desk.blobs.path(carry).write_bytes(b"changed")
    assert desk.round(a, b) == 2
    assert len(desk.said("carry-lost")) == 1
    assert carry in round_report(desk.store, 2)["carry_lost"]
    assert desk.round(a, b) == 3  # the carry of release 2 is whole again
    assert len(desk.said("carry-lost")) == 1


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_standing_release_that_is_damaged_is_told_with_what_a_hub_can_do_about_it(
    desk_of: MakeDesk, damage: str
) -> None:
    desk = desk_of()
    a, b, *_ = desk.names
    desk.round(a, b)
    if damage == "gone":
        desk.blobs.discard(desk.store.current().manifest.sha256)
    else:
        desk.blobs.path(desk.store.current().manifest.sha256).write_bytes(b"changed")
    desk.reopen()
    with pytest.raises(StateError) as caught:
        desk.send(a)
    assert "bramble hub rollback" in caught.value.advice
    assert "fetched" not in caught.value.advice
    desk.store.roll_back(0, by="ada", oldest_after=2)
    desk.advance()
    assert desk.round(a, b) == 2


def test_database_that_is_held_by_another_program_costs_no_update(
    desk_of: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of()
    a, b, *_ = desk.names
    desk.send(a)
    desk.send(b)
    desk.store.move(desk.state, dataclasses.replace(desk.state, phase="merging"))
    desk.reopen()
    event.listen(desk.store._engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=0"))
    desk.store._engine.dispose()
    other = sqlite3.connect(desk.home.database, isolation_level=None, check_same_thread=False)
    save = desk.store.save_candidate

    def held(*arguments: Any, **options: Any) -> None:
        other.execute("BEGIN IMMEDIATE")
        try:
            save(*arguments, **options)
        finally:
            other.execute("ROLLBACK")

    with monkeypatch.context() as patched:
        patched.setattr(desk.store, "save_candidate", held)
        with pytest.raises(BrambleError, match="locked"):
            desk.advance()
    other.close()
    desk.advance()
    assert desk.state.phase == "trial"
    assert [row.state for row in desk.store.updates(1)] == ["merged", "merged"]
