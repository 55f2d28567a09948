"""What a device's optimiser hands from one round to the next; training is made up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.data.consent import ConsentBook
from agent.errors import ConsentMissingError
from agent.federation.store import DeviceStore
from agent.governance.charter import TrainingPlan
from agent.service import remove_source
from agent.testing import random_adapter, random_delta
from agent.transport.outbox import Outbox
from agent.update.delta import Factors, apply
from tests.federation.desk import Desk

START = random_adapter(seed=1)
DELTA = random_delta(seed=2)
NEXT = apply(START, DELTA)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    made.join(compression="int4", training=TrainingPlan(window=32))
    with made.store:
        yield made


def kept(desk: Desk, factors: Factors = "both") -> bytes | None:
    sha256 = desk.store.moments(factors)
    return None if sha256 is None else desk.blobs.get(sha256)


async def test_a_round_goes_on_with_the_moments_of_the_one_before_and_forgets_those(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    assert kept(desk) == b"both+"
    first = desk.store.moments("both")
    assert first is not None
    await desk.learn(2, start=NEXT, release=2, delta=DELTA)
    assert kept(desk) == b"both+both+"
    assert not desk.blobs.has(first)


async def test_each_set_of_factors_has_moments_of_its_own(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=random_delta(seed=3, factors="b"), factors="b")
    await desk.learn(2, start=START, delta=random_delta(seed=4, factors="a"), factors="a")
    await desk.learn(3, start=START, delta=random_delta(seed=5, factors="b"), factors="b")
    assert (kept(desk, "b"), kept(desk, "a"), kept(desk)) == (b"b+b+", b"a+", None)


async def test_they_stay_where_an_update_is_refused_or_the_hub_goes_back(desk: Desk) -> None:
    """They say how large gradients are, and that was not wrong."""
    await desk.learn(1, start=START, release=3, delta=DELTA)
    desk.settle(1, "refused")
    await desk.learn(2, start=START, release=1, delta=DELTA)
    assert kept(desk) == b"both+both+"


async def test_a_charter_that_wants_every_round_to_begin_anew_ends_them(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    desk.join(compression="int4", training=TrainingPlan(window=32, moments="fresh"))
    await desk.learn(2, start=START, delta=DELTA)
    assert desk.store.moments("both") is None
    assert desk.store.kept_blobs() == frozenset()


async def test_moments_whose_file_is_gone_are_left_out_and_the_round_goes_on(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    (sha256,) = desk.store.kept_blobs()
    desk.blobs.discard(sha256)
    await desk.learn(2, start=START, delta=DELTA)
    assert kept(desk) == b"both+"


async def test_killed_while_an_update_is_queued_a_round_begins_again_with_the_moments_it_had(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.learn(1, start=START, delta=DELTA)

    def die(*_arguments: object) -> None:
        raise KeyboardInterrupt

    for place in ("add_round", "replace_moments"):
        with monkeypatch.context() as patched:
            patched.setattr(DeviceStore, place, die)
            with pytest.raises(KeyboardInterrupt):
                await desk.learn(2, start=START, delta=DELTA)
        assert kept(desk) == b"both+"
        assert [row.round for row in desk.store.rounds()] == [1]
    await desk.learn(2, start=START, delta=DELTA)
    assert kept(desk) == b"both+both+"


async def test_with_consent_withdrawn_meanwhile_none_are_kept(desk: Desk) -> None:
    with desk.store.transaction():
        ConsentBook(desk.store.connection).withdraw(desk.source)
    with pytest.raises(ConsentMissingError):
        await desk.learn(1, start=START, delta=DELTA)
    assert desk.store.moments("both") is None
    assert [path.name for path in desk.home.blobs.iterdir()] == [desk.blobs.put(START.to_bytes())]


async def test_withdrawing_consent_forgets_them_though_the_update_was_counted(desk: Desk) -> None:
    await desk.learn(1, start=START, delta=DELTA)
    desk.settle(1, "counted")
    (sha256,) = desk.store.kept_blobs()
    remove_source(desk.home, desk.source)
    assert desk.store.moments("both") is None
    assert not desk.blobs.has(sha256)
    assert Outbox(desk.store.connection).count == 0
