"""Invites, approval and revocation in the hub's book: what is decided holds, whoever asks, however many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from agent.crypto.identity import Identity
from agent.errors import MergeError, StateError
from agent.federation.messages import Want
from agent.hub.fence import Fence
from agent.hub.invite_book import GRACE_SECONDS
from agent.hub.merging import merge_round
from agent.hub.publishing import Publisher, Request
from agent.hub.round_book import RoundMovedError
from agent.hub.store import open_store
from agent.transport.memory import MemoryBroker, MemoryLink
from agent.transport.topics import Topics
from tests.hub.desk import Desk, make_desk

SECRET = bytes(32)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = make_desk(tmp_path / "hub", quorum=1, target=3)
    yield made
    made.close()


def to_merging(desk: Desk) -> None:
    """Let the round be full, and stop before it is merged."""
    collecting = replace(desk.state, phase="collecting")
    desk.store.move(desk.state, collecting)
    desk.store.move(collecting, replace(collecting, phase="merging"))


def test_uses_are_not_taken_twice_however_many_ask_at_once(desk: Desk) -> None:
    desk.store.add_invite("a", SECRET, uses=3, expires=2**40)

    def ask(_number: int) -> str:
        with open_store(desk.home) as store:
            return store.admit(Identity.generate().public, nickname="", invite="a", now=5)

    with ThreadPoolExecutor(8) as many:
        outcomes = list(many.map(ask, range(12)))
    assert sorted(outcomes) == ["admitted"] * 3 + ["used-up"] * 9


def test_invite_that_was_taken_back_lets_nobody_new_in_and_puts_nobody_out(desk: Desk) -> None:
    desk.store.add_invite("abc", SECRET, uses=3, expires=2**40, group="pis")
    first = Identity.generate().public
    assert desk.store.admit(first, nickname="", invite="abc", now=5) == "admitted"
    assert desk.store.take_back("ab", now=6).group == "pis"
    assert desk.store.admit(Identity.generate().public, nickname="", invite="abc", now=7) == "taken-back"
    assert desk.store.admit(first, nickname="", invite="abc", now=7) == "member"
    row = desk.store.device(first.id)
    assert row is not None
    assert (row.standing, row.group) == ("member", "pis")
    with pytest.raises(StateError, match="no invite begins"):
        desk.store.take_back("x", now=8)


def test_newcomer_whom_a_steward_is_to_approve_waits_and_its_invite_is_spent(desk: Desk) -> None:
    desk.store.add_invite("a", SECRET, uses=1, expires=100)
    public = Identity.generate().public
    members = desk.store.count_devices()
    assert desk.store.admit(public, nickname="", invite="a", now=5, approval=True) == "applied"
    assert desk.store.admit(public, nickname="", invite="a", now=6, approval=True) == "pending"
    assert (desk.store.count_devices(), desk.store.is_member(public.id)) == (members, False)
    assert desk.store.admit(Identity.generate().public, nickname="", invite="a", now=5) == "used-up"
    desk.store.decide(public.id[:12], "approve", by="ada", reason="", now=500)
    assert desk.store.admit(public, nickname="", invite="a", now=600, approval=True) == "member"
    assert desk.store.acts()[-1]["act"] == "approve"


def test_what_was_refused_revoked_or_left_is_not_undone_by_a_request_that_was_recorded(desk: Desk) -> None:
    desk.store.add_invite("a", SECRET, uses=9, expires=2**40)
    desk.store.add_invite("b", SECRET, uses=9, expires=2**40)
    gone = {word: Identity.generate().public for word in ("refused", "left", "revoked")}
    for word, public in gone.items():
        desk.store.admit(public, nickname="", invite="a", now=5, approval=word == "refused", asked=5000)
    desk.store.decide(gone["refused"].id, "refuse", by="ada", reason="", now=10)
    desk.store.decide(gone["revoked"].id, "revoke", by="ada", reason="", now=10)
    desk.store.leave(gone["left"].id, now=10)
    for word, public in gone.items():
        assert desk.store.admit(public, nickname="", invite="a", now=20, asked=5000) == word
        assert desk.store.admit(public, nickname="", invite="a", now=20, asked=20_000) == word  # the same invite
        assert desk.store.admit(public, nickname="", invite="b", now=20, asked=9000) == word  # asked before it was out
    back = {word: desk.store.admit(public, nickname="", invite="b", now=20) for word, public in gone.items()}
    assert back == {"refused": "admitted", "left": "admitted", "revoked": "revoked"}


def test_decisions_that_cannot_be_made_are_explained(desk: Desk) -> None:
    with pytest.raises(StateError, match="no device begins"):
        desk.store.decide("zzzzzz", "revoke", by="ada", reason="", now=1)
    with pytest.raises(StateError, match="begins with ''"):
        desk.store.decide("", "revoke", by="ada", reason="", now=1)
    with pytest.raises(StateError, match="is member"):
        desk.store.decide(desk.names[0], "approve", by="ada", reason="", now=1)


def test_update_of_a_revoked_device_that_waits_is_taken_out_of_the_merge(desk: Desk) -> None:
    a, b, c, _ = desk.names
    for name in (a, b, c):
        assert desk.send(name).state == "done"
    decided = desk.store.decide(b, "revoke", by="ada", reason="", now=1)
    assert len(decided.dropped.waiting) == 1
    desk.now += 10_000
    desk.advance()
    candidate = desk.store.candidate(1)
    assert candidate is not None
    assert len(candidate.updates) == 2
    assert not set(candidate.updates) & set(decided.dropped.waiting)


def test_revocation_in_the_middle_of_a_merge_has_it_made_again_without_the_device(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, _ = desk.names
    for name in (a, b, c):
        desk.send(name)
    to_merging(desk)
    read = desk.store.next_release_number

    def revoke_and_read() -> int:  # what the merge asks for once the sum is made
        desk.store.decide(b, "revoke", by="ada", reason="", now=1)
        return read()

    with monkeypatch.context() as patched:
        patched.setattr(desk.store, "next_release_number", revoke_and_read)
        with pytest.raises(RoundMovedError, match="withdrawn"):
            merge_round(desk.store, desk.blobs, desk.state, now=desk.now)
    assert desk.store.candidate(1) is None
    desk.advance()
    candidate = desk.store.candidate(1)
    assert candidate is not None
    assert len(candidate.updates) == 2


def test_round_with_too_few_updates_left_after_a_revocation_gives_no_release(tmp_path: Path) -> None:
    desk = make_desk(tmp_path / "hub", quorum=2, target=2)
    a, b, *_ = desk.names
    desk.send(a)
    desk.send(b)
    to_merging(desk)
    desk.store.decide(b, "revoke", by="ada", reason="", now=1)
    with pytest.raises(MergeError, match="only 1 updates are left"):
        merge_round(desk.store, desk.blobs, desk.state, now=desk.now)
    desk.close()


def test_trial_does_not_wait_for_the_verdict_of_a_device_that_is_out_nor_count_it(desk: Desk) -> None:
    a, b, c, _ = desk.names
    for name in (a, b, c):
        desk.send(name)
    desk.advance()
    assert desk.state.phase == "trial"
    desk.judge(a, after=9.0)
    desk.judge(b)
    decided = desk.store.decide(a, "revoke", by="ada", reason="", now=1)
    assert decided.dropped.on_trial == 1
    candidate = desk.store.candidate(1)
    assert candidate is not None
    sha256 = candidate.manifest.sha256
    assert set(desk.store.verdicts(sha256)) == {b}
    assert desk.store.tally(desk.state, sha256).unheard == 1
    desk.judge(c)
    desk.advance()
    assert desk.store.current().manifest.number == 1


def test_embedded_broker_lets_to_the_door_only_who_may_still_come_in_or_waits_for_an_answer(desk: Desk) -> None:
    store = desk.store
    store.add_invite("used", SECRET, uses=1, expires=10_000)
    assert store.door_is_open("used", now=100)
    assert not store.door_is_open("used", now=10_001)
    assert not store.door_is_open("unknown", now=100)
    store.admit(Identity.generate().public, nickname="", invite="used", now=100)
    assert store.door_is_open("used", now=200)  # its answer may be lost
    assert not store.door_is_open("used", now=101 + GRACE_SECONDS)
    store.add_invite("waits", SECRET, uses=1, expires=10_000)
    store.admit(Identity.generate().public, nickname="", invite="waits", now=100, approval=True)
    assert store.door_is_open("waits", now=10**9)


def test_device_that_is_out_hears_at_the_embedded_broker_only_what_is_said_to_it(desk: Desk) -> None:
    name, other = desk.names[:2]
    now = [0.0]
    keeper = Fence(desk.store, clock=lambda: now[0])
    topics = Topics(desk.config.community)
    everything = {topics.hub("round"), topics.to(name, "standing"), topics.to(other, "receipt")}

    def heard() -> set[str]:
        return {topic for topic in everything if keeper.allowed(name, "receive", topic)}

    assert heard() == {topics.hub("round"), topics.to(name, "standing")}
    desk.store.decide(name, "revoke", by="ada", reason="", now=1)
    now[0] += 1.0
    assert heard() == {topics.to(name, "standing")}
    assert keeper.allowed(other, "receive", topics.hub("round"))
    assert keeper.allowed(name, "publish", topics.from_(name, "leave"))
    assert not keeper.allowed(name, "publish", topics.life(name))


async def test_no_release_is_sealed_for_a_device_that_was_put_out_while_it_waited_for_one(tmp_path: Path) -> None:
    desk = await asyncio.to_thread(make_desk, tmp_path / "hub")
    gone, stays = desk.names[:2]
    topics, broker = Topics(desk.config.community), MemoryBroker()
    known = {row.device: row.public for row in desk.store.devices()}
    want = Want(adapter=desk.store.current().manifest.sha256, missing=[])
    async with MemoryLink(broker=broker, client_id="hub") as link, MemoryLink(broker=broker, client_id="all") as ears:
        identity = Identity.load(desk.home.keys, "hub")
        publisher = Publisher(store=desk.store, blobs=desk.blobs, identity=identity, link=link, events=desk.events)
        await ears.subscribe(f"{topics.root}/to/+/+")
        for device in (gone, stays):
            assert publisher.wish(Request(device=device, want=want), 1000)
        desk.store.decide(gone, "revoke", by="ada", reason="", now=1)
        serving = asyncio.create_task(publisher.serve(known))
        heard = await anext(ears.messages())
        serving.cancel()
    assert topics.parse(heard.topic).device == stays
    desk.close()
