"""What one round's update leaves over, and how the next one takes it up; training is made up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.data.consent import ConsentBook
from agent.errors import ConsentMissingError
from agent.federation.messages import Announcement, Manifest
from agent.federation.store import DeviceStore
from agent.llm.adapter import Adapter, LoraFactors
from agent.service import remove_source
from agent.testing import SMALL_SHAPES, random_adapter, random_delta
from agent.transport.outbox import Outbox
from agent.update.delta import Delta, apply
from agent.update.feedback import expressed
from agent.update.layout import layout_of
from tests.federation.desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    with made.store:
        yield made


def flat(delta: Delta) -> np.ndarray:
    return layout_of(delta).flatten(delta)


def nothing(delta: Delta) -> Delta:
    modules = {name: LoraFactors(a=0 * f.a, b=0 * f.b) for name, f in delta.modules.items()}
    return Delta(rank=delta.rank, modules=modules)


START = random_adapter(seed=1)
NEXT = apply(START, random_delta(seed=50, size=0.02))
DELTA = random_delta(seed=2)
NOTHING = nothing(DELTA)


async def test_what_was_not_sent_is_sent_with_the_next_update_though_nothing_more_was_learned(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    first = desk.sent(1)
    assert np.count_nonzero(flat(first)) <= np.ceil(0.1 * flat(first).size)
    meant = flat(expressed(desk.left_over(), NEXT, "both"))
    desk.settle(1, "counted")
    await desk.learn(2, start=NEXT, release=2, delta=NOTHING)
    second = flat(desk.sent(2))
    chosen = np.flatnonzero(second)
    assert set(chosen) <= set(np.argsort(np.abs(meant))[-int(np.ceil(0.1 * meant.size)) :])
    np.testing.assert_allclose(second[chosen], meant[chosen], atol=float(np.abs(meant).max()) / 7)


@pytest.mark.parametrize("place", ["queue_transfer", "add_round", "replace_residual"])
async def test_killed_while_an_update_is_queued_it_is_taken_up_exactly_once(
    desk: Desk, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    desk.settle(1, "counted")
    before = desk.left_over().to_bytes()

    def die(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if place == "queue_transfer":
            patched.setattr("agent.federation.learning.queue_transfer", die)
        else:
            patched.setattr(DeviceStore, place, die)
        with pytest.raises(KeyboardInterrupt):
            await desk.learn(2, start=NEXT, release=2, delta=NOTHING)
    assert desk.left_over().to_bytes() == before
    assert [row.round for row in desk.store.rounds()] == [1]
    assert Outbox(desk.store.connection).count == 0
    await desk.learn(2, start=NEXT, release=2, delta=NOTHING)
    after = desk.left_over()
    assert flat(desk.sent(2)).any()
    assert after.to_bytes() != before
    assert hashlib.sha256(before).hexdigest() in desk.store.kept_blobs()  # until the hub has counted the update
    desk.settle(2, "counted")
    assert hashlib.sha256(before).hexdigest() not in desk.store.kept_blobs()


async def test_what_a_refused_update_had_taken_up_is_taken_up_again(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    desk.settle(1, "counted")
    before = desk.left_over().to_bytes()
    await desk.learn(2, start=NEXT, release=2, delta=NOTHING)
    sent = flat(desk.sent(2))
    desk.settle(2, "refused")
    assert desk.left_over().to_bytes() == before
    await desk.learn(3, start=NEXT, release=2, delta=NOTHING)
    np.testing.assert_array_equal(np.flatnonzero(flat(desk.sent(3))), np.flatnonzero(sent))


async def test_what_two_updates_in_a_row_had_taken_up_is_there_again_if_both_are_refused(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    desk.settle(1, "counted")
    before = desk.left_over().to_bytes()
    await desk.learn(2, start=NEXT, release=2, delta=NOTHING)
    await desk.learn(3, start=NEXT, release=2, delta=NOTHING)
    third = desk.left_over().to_bytes()
    desk.settle(2, "refused")
    assert desk.left_over().to_bytes() == third
    desk.settle(3, "refused")
    assert desk.left_over().to_bytes() == before


async def test_what_a_refused_update_left_over_is_forgotten(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    desk.settle(1, "refused")
    assert desk.store.residual("both") is None
    await desk.learn(2, start=START, delta=NOTHING)
    assert not flat(desk.sent(2)).any()


@pytest.mark.parametrize(
    ("start", "release", "taken_up"),
    [
        (START, 1, True),  # the candidate was rejected: the same release again
        (NEXT, 2, True),
        (NEXT, 5, True),  # the device slept through three releases
        (NEXT, 1, False),  # another release of the same number
        (NEXT, 0, False),  # the hub went back
    ],
)
async def test_it_is_taken_up_where_the_release_is_the_same_or_a_later_one(
    desk: Desk, start: Adapter, release: int, *, taken_up: bool
) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    desk.settle(1, "counted")
    await desk.learn(2, start=start, release=release, delta=NOTHING)
    assert flat(desk.sent(2)).any() == taken_up


@pytest.mark.parametrize("damage", ["gone", "changed", "another base"])
async def test_a_residual_that_cannot_be_used_is_left_out_and_the_round_goes_on(desk: Desk, damage: str) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    desk.settle(1, "counted")
    kept = desk.store.residual("both")
    assert kept is not None
    if damage == "gone":
        desk.blobs.discard(kept.sha256)
    elif damage == "changed":
        desk.blobs.path(kept.sha256).write_bytes(b"nonsense")
    else:
        other = desk.blobs.put(random_adapter(rank=8, seed=3, shapes={min(SMALL_SHAPES): (12, 20)}).to_bytes())
        with desk.store.transaction():
            desk.store.replace_residual("both", kept.model_copy(update={"sha256": other}), "another")
    await desk.learn(2, start=NEXT, release=2, delta=NOTHING)
    assert not flat(desk.sent(2)).any()


async def test_what_was_left_over_from_a_withdrawn_release_is_dropped(desk: Desk) -> None:
    await desk.learn(1, start=START, release=2, delta=DELTA)
    desk.settle(1, "counted")
    stands = Manifest(number=3, sha256="c" * 64, parent="a" * 64, size=9, round=2)
    seen = Announcement(
        sequence=1, round=3, phase="open", deadline=0, release=stands, candidate=None, seal_key=b"", withdrawn=[(2, 2)]
    )
    desk.store.save_announcement(seen)
    await desk.learn(3, start=NEXT, release=3, delta=NOTHING)
    assert not flat(desk.sent(3)).any()


async def test_rounds_that_train_other_factors_leave_it_alone(desk: Desk) -> None:
    only_b = {name: LoraFactors(a=0 * f.a, b=f.b) for name, f in DELTA.modules.items()}
    only_a = {name: LoraFactors(a=f.a, b=0 * f.b) for name, f in DELTA.modules.items()}
    await desk.learn(1, start=START, delta=Delta(rank=4, modules=only_b), factors="b")
    await desk.learn(2, start=NEXT, release=2, delta=Delta(rank=4, modules=only_a), factors="a")
    kept = [desk.store.residual(factors) for factors in ("b", "a", "both")]
    assert [None if item is None else item.factors for item in kept] == ["b", "a", None]
    assert desk.store.kept_blobs() == {item.sha256 for item in kept if item is not None}
    await desk.learn(3, start=NEXT, release=3, delta=NOTHING, factors="b")
    sent = desk.sent(3)
    assert sent.factors == "b"
    assert flat(sent).any()


async def test_a_compression_without_a_memory_ends_the_old_one(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    desk.join(compression="int4")
    await desk.learn(2, start=NEXT, release=2, delta=DELTA)
    assert desk.store.residual("both") is None


async def test_with_consent_withdrawn_meanwhile_nothing_is_left_over(desk: Desk) -> None:
    with desk.store.transaction():
        ConsentBook(desk.store.connection).withdraw(desk.source)
    with pytest.raises(ConsentMissingError):
        await desk.learn(1, start=START, delta=DELTA)
    assert desk.store.residual("both") is None
    assert [path.name for path in desk.home.blobs.iterdir()] == [desk.blobs.put(START.to_bytes())]


async def test_withdrawing_consent_forgets_what_counted_updates_left_over(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    desk.settle(1, "counted")
    (kept,) = desk.store.kept_blobs()
    remove_source(desk.home, desk.source)
    assert desk.store.kept_blobs() == frozenset()
    assert not desk.blobs.has(kept)


@pytest.mark.parametrize("compression", ["int4", "topk"])
async def test_what_is_sent_keeps_the_charter_s_norm_with_what_was_left_over(desk: Desk, compression: str) -> None:
    desk.join(compression=compression, max_update_norm=0.2, density=0.5)
    for number in range(1, 5):
        learned = await desk.learn(number, start=START, delta=random_delta(seed=number))
        assert desk.sent(number).norm == learned.norm <= 0.2
        desk.settle(number, "counted")
