"""The hub over the broker in memory: rounds, refusals, and what a message can and cannot do."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from agent.crypto.identity import Identity
from agent.errors import BrokerRefusedError
from agent.federation.messages import Chunk, Offer, Verdict, Want
from agent.hub.going_back import roll_back
from agent.llm.adapter import from_bytes
from agent.paths import BlobStore
from agent.transport.memory import MemoryLink
from tests.hub.world import Member, World, make_world


async def take_part(member: Member, number: int = 1, *, seed: int = 0, tokens: int = 100) -> str:
    """Send an update for a round."""
    announcement = await member.phase("open", number)
    start = await member.fetch(announcement)
    return member.send_update(announcement, start, member.made_up(start, seed=seed), tokens=tokens)


async def test_round_goes_from_update_to_release(world: World, tmp_path: Path) -> None:
    async with world.hub() as store, world.member(tmp_path / "ada") as ada:
        update = await take_part(ada)
        trial = await ada.phase("trial")
        ada.judge(trial)
        promoted = await world.heard.until("promoted")
        opened = await ada.phase("open", 2)
        assert opened.release.number == 1
        assert opened.release.sha256 == promoted["candidate"]
        assert opened.release.parent == trial.release.sha256
        assert opened.seal_key not in {b"", trial.seal_key}
        assert [row.update_id for row in store.updates(1)] == [update]
        assert [key.round for key in store.round_keys()] == [1, 2]  # late updates of round 1 may still come
        grown = await ada.fetch(opened)
        assert any(np.any(factors.b) for factors in grown.modules.values())
        await ada.until(lambda: [record.state for record in ada.store.rounds()] == ["counted"])
        await ada.until(lambda: ada.sender.outbox.count == 0)


async def test_candidate_that_harms_is_rejected_and_the_release_stands(world: World, tmp_path: Path) -> None:
    async with world.hub() as store, world.member(tmp_path / "ada") as ada:
        await take_part(ada)
        trial = await ada.phase("trial")
        ada.judge(trial, before=2.0, after=3.0)
        rejected = await world.heard.until("rejected")
        opened = await ada.phase("open", 2)
        assert opened.release == trial.release
        assert "worse" in rejected["reason"]
        assert len(store.releases()) == 1


async def test_two_updates_of_different_devices_are_merged_into_one(tmp_path: Path, tiny_q8: Path) -> None:
    world = make_world(tmp_path / "hub", tiny_q8, quorum=2, target=2)
    async with world.hub() as store, world.member(tmp_path / "ada") as ada, world.member(tmp_path / "bob") as bob:
        first, second = await asyncio.gather(take_part(ada, seed=1), take_part(bob, seed=2))
        await ada.phase("trial")
        candidate = store.candidate(1)
        assert candidate is not None
        assert set(candidate.updates) == {first, second}


async def test_second_update_of_a_device_in_a_round_is_refused(tmp_path: Path, tiny_q8: Path) -> None:
    world = make_world(tmp_path / "hub", tiny_q8, quorum=2, target=2)
    async with world.hub() as store, world.member(tmp_path / "ada") as ada:
        await take_part(ada, seed=1)
        await world.heard.until("update-accepted")
        await take_part(ada, seed=2)
        refused = await world.heard.until("update-refused")
        assert refused["reason"] == "already-counted"
        assert len(store.updates(1)) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"round": 7}, "wrong-header"),
        ({"base_sha256": "f" * 64}, "wrong-header"),
        ({"start_release": "f" * 64}, "wrong-header"),
        ({"alpha": 16.0}, "wrong-scaling"),
    ],
)
async def test_update_whose_header_does_not_fit_is_refused(
    world: World, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    async with world.hub() as store, world.member(tmp_path / "ada") as ada:
        announcement = await ada.phase("open")
        start = await ada.fetch(announcement)
        ada.send_update(announcement, start, ada.made_up(start), **change)
        assert (await world.heard.until("update-refused"))["reason"] == reason
        assert store.updates(1) == []
        await ada.until(lambda: [record.state for record in ada.store.rounds()] == ["refused"])
        assert ada.sender.outbox.count == 0


async def test_update_that_is_too_large_in_norm_is_refused(world: World, tmp_path: Path) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        announcement = await ada.phase("open")
        start = await ada.fetch(announcement)
        ada.send_update(announcement, start, ada.made_up(start, size=100.0))
        assert (await world.heard.until("update-refused"))["reason"] == "norm"


async def test_update_sealed_for_another_key_is_refused(world: World, tmp_path: Path) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        announcement = await ada.phase("open")
        start = await ada.fetch(announcement)
        other = announcement.model_copy(update={"seal_key": Identity.generate().public.seal_key})
        ada.send_update(other, start, ada.made_up(start))
        assert (await world.heard.until("update-refused"))["reason"] == "seal-broken"


async def test_update_for_a_round_that_is_over_is_refused_before_it_travels(tmp_path: Path, tiny_q8: Path) -> None:
    world = make_world(tmp_path / "hub", tiny_q8, max_staleness=0)
    async with world.hub(), world.member(tmp_path / "ada") as ada, world.member(tmp_path / "bob") as bob:
        announcement = await bob.phase("open")
        start = await bob.fetch(announcement)
        await take_part(ada)
        await ada.phase("trial")
        bob.send_update(announcement, start, bob.made_up(start))
        refused = await world.heard.until("update-refused")
        assert refused["reason"] == "too-late"
        assert not [topic for user, topic, _payload in world.seen if user == bob.identity.id and "chunk" in topic]


async def test_message_of_a_stranger_is_refused(world: World, tmp_path: Path) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        stranger = Member(
            identity=Identity.generate(), store=ada.store, membership=ada.membership, link=ada.link, patience=1
        )
        want = Want(adapter="a" * 64, missing=[])
        topic = ada.topics.from_(stranger.identity.id, "want")
        await ada.link.publish(topic, stranger.envelope("want", want, counter=1))
        assert (await world.heard.until("message-refused"))["code"] == "unknown-sender"


async def test_message_on_the_topic_of_another_device_is_refused(world: World, tmp_path: Path) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada, world.member(tmp_path / "bob") as bob:
        want = Want(adapter="a" * 64, missing=[])
        await ada.link.publish(ada.topics.from_(bob.identity.id, "want"), ada.envelope("want", want, counter=10**6))
        assert (await world.heard.until("message-refused"))["code"] == "unknown-sender"


async def test_message_of_the_wrong_kind_community_or_form_is_refused(world: World, tmp_path: Path) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        want = Want(adapter="a" * 64, missing=[])
        offer_topic, want_topic = (ada.topics.from_(ada.identity.id, kind) for kind in ("offer", "want"))
        await ada.link.publish(offer_topic, ada.envelope("want", want, counter=10**6))
        await ada.link.publish(want_topic, ada.envelope("want", want, counter=10**6 + 1, community=bytes(16)))
        await ada.link.publish(want_topic, ada.envelope("want", b"\xff", counter=10**6 + 2))
        await ada.link.publish(want_topic, b"no envelope")
        await ada.link.publish(
            ada.topics.from_(ada.identity.id, "gossip"), ada.envelope("gossip", b"", counter=10**6 + 3)
        )
        await world.heard.until("message-refused", 5)
        codes = sorted(said["code"] for said in world.heard.all("message-refused"))
        assert codes == ["malformed", "malformed", "wrong-community", "wrong-kind", "wrong-kind"]


async def test_message_that_comes_again_is_refused_even_after_a_restart(world: World, tmp_path: Path) -> None:
    async with world.member_of_a_running_hub(tmp_path / "ada") as (ada, _store):
        want = ada.envelope("want", Want(adapter="a" * 64, missing=[]), counter=10**6)
        topic = ada.topics.from_(ada.identity.id, "want")
        await ada.link.publish(topic, want)
        await ada.until(lambda: any(receipt.reason == "no-such-adapter" for receipt in ada.receipts))
        await ada.link.publish(topic, want)
        assert (await world.heard.until("message-refused"))["code"] == "replayed"
    async with world.hub(), MemoryLink(broker=world.broker, client_id="again", username="x") as link:
        await link.publish(topic, want)
        assert (await world.heard.until("message-refused", 2))["code"] == "replayed"


async def test_join_request_on_a_topic_that_names_no_invite_is_refused_and_the_hub_lives(
    world: World, tmp_path: Path
) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        await ada.link.publish(ada.topics.join("zz", ada.identity.id), ada.envelope("join", b"x", counter=0))
        assert (await world.heard.until("message-refused"))["code"] == "malformed"
        await take_part(ada)
        await world.heard.until("update-accepted")


async def test_hub_stopped_in_any_phase_goes_on_from_there(world: World, tmp_path: Path) -> None:
    async with world.member_of_a_running_hub(tmp_path / "ada") as (ada, _store):
        announcement = await ada.phase("open")
        start = await ada.fetch(announcement)
    # stopped while open: the round is the same, and so is its key
    async with world.hub() as store:
        state = store.round_state()
        assert state is not None
        assert (state.number, state.phase) == (1, "open")
        assert world.heard.all("round-resumed")[-1]["round"] == 1
        assert len(world.heard.all("round-open")) == 1
    assert start.rank == world.config.charter.rank


async def test_closed_community_keeps_serving_its_last_release(tmp_path: Path, tiny_q8: Path) -> None:
    world = make_world(tmp_path / "hub", tiny_q8, last_round=1)
    async with world.hub() as store, world.member(tmp_path / "ada") as ada:
        await take_part(ada)
        ada.judge(await ada.phase("trial"))
        await world.heard.until("closed")
        async with world.member(tmp_path / "late") as late:
            closed = await late.phase("closed")
            adapter = await late.fetch(closed)
            assert adapter.to_bytes() == from_bytes(BlobStore(store.home.blobs).get(closed.release.sha256)).to_bytes()


async def test_opened_updates_are_forgotten_when_their_round_is_over(world: World, tmp_path: Path) -> None:
    async with world.hub() as store, world.member(tmp_path / "ada") as ada:
        update = await take_part(ada)
        trial = await ada.phase("trial")
        assert BlobStore(store.home.blobs).has(update)
        ada.judge(trial)
        await ada.phase("open", 2)
        assert not BlobStore(store.home.blobs).has(update)


async def test_member_that_signs_nonsense_is_refused_each_time_and_the_hub_lives(tmp_path: Path, tiny_q8: Path) -> None:
    world = make_world(tmp_path / "hub", tiny_q8, quorum=9, target=9)
    chance = random.Random(7)
    async with world.hub() as store, world.member(tmp_path / "ada") as ada, world.member(tmp_path / "bob") as bob:
        announcement = await ada.phase("open")
        good = {
            "want": Want(adapter=announcement.release.sha256, missing=[(0, 1)]).encode(),
            "offer": Offer(
                transfer=bytes(16),
                purpose="update",
                round=1,
                adapter=announcement.release.sha256,
                size=1000,
                chunk_bytes=90_112,
                sha256=bytes(32),
                sealed_key=bytes(100),
            ).encode(),
            "chunk": Chunk(transfer=bytes(16), index=3, data=bytes(100)).encode(),
            "verdict": Verdict(about=bytes(16), round=1, candidate="a" * 64, before=1.0, after=1.0, targets=1).encode(),
            "join": b"sealed",
        }
        for number in range(400):
            kind = chance.choice(sorted(good))
            body = bytearray(good[kind])
            for _ in range(chance.randrange(4)):
                body[chance.randrange(len(body))] = chance.choice([0, 1, 0x1B, 0x7F, 0xFF, chance.randrange(256)])
            topic = ada.topics.from_(ada.identity.id, kind)
            if kind == "join":
                topic = ada.topics.join(chance.choice(["00" * 8, "a", "zz", "0"]), ada.identity.id)
            await ada.link.publish(topic, ada.envelope(kind, bytes(body), counter=10**6 + number))
        sizes = ((2**31, 1), (2**31, 90_112), (1, 90_112), (90_112 * 16_384, 90_112))
        for number, (size, chunk_bytes) in enumerate(sizes):
            offer = Offer.decode(good["offer"]).model_copy(
                update={"size": size, "chunk_bytes": chunk_bytes, "transfer": bytes([number]) * 16}
            )
            topic = ada.topics.from_(ada.identity.id, "offer")
            await ada.link.publish(topic, ada.envelope("offer", offer, counter=2 * 10**6 + number))
        await take_part(bob)
        await world.heard.until("update-accepted")
        assert len(store.updates(1)) == 1
        assert world.heard.all("message-refused")
        stored = sum(file.stat().st_size for file in store.home.inbox.rglob("*") if file.is_file())
        assert stored < 1_000_000


async def test_rollback_by_another_process_is_noticed_and_announced_at_once(world: World, tmp_path: Path) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        first = await ada.phase("open")
        await take_part(ada)
        ada.judge(await ada.phase("trial"))
        second = await ada.phase("open", 2)
        start = await ada.fetch(second)
        assert second.release.number == 1
        done = roll_back(world.home, 0)
        assert done.withdrawn == (1,)
        third = await ada.phase("open", 3)
        assert third.release == first.release
        assert third.withdraws(1)
        ada.send_update(second, start, ada.made_up(start, seed=5))
        refused = await world.heard.until("update-refused")
        assert (refused["reason"], refused["round"], refused["device"]) == ("rolled-back", 2, ada.identity.id)
        ada.send_update(third, await ada.fetch(third), ada.made_up(start, seed=6))
        await world.heard.until("merged", 2)


async def test_withdrawn_release_is_given_to_nobody(world: World, tmp_path: Path) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        await take_part(ada)
        trial = await ada.phase("trial")
        ada.judge(trial)
        await ada.phase("open", 2)
        roll_back(world.home, 0)
        await ada.phase("open", 3)
        assert trial.candidate is not None
        await ada.sender.say("want", Want(adapter=trial.candidate.sha256, missing=[]))
        await ada.until(lambda: any(receipt.reason == "no-such-adapter" for receipt in ada.receipts))


async def test_update_that_arrives_during_the_trial_counts_in_the_next_merge(world: World, tmp_path: Path) -> None:
    async with world.hub() as store, world.member(tmp_path / "ada") as ada, world.member(tmp_path / "bob") as bob:
        announcement = await bob.phase("open")
        start = await bob.fetch(announcement)
        await take_part(ada)
        trial = await ada.phase("trial")
        bob.send_update(announcement, start, bob.made_up(start, seed=9))
        late = await world.heard.until("update-accepted", 2)
        assert (late["round"], late["merge"], late["late"], late["device"]) == (1, 2, 1, bob.identity.id)
        ada.judge(trial)
        await ada.phase("open", 2)
        await take_part(ada, 2, seed=3)
        await ada.phase("trial", 2)
        candidate = store.candidate(2)
        assert candidate is not None
        assert len(candidate.updates) == 2


async def test_hub_restored_from_an_older_backup_says_what_it_has_forgotten(world: World, tmp_path: Path) -> None:
    async with world.member_of_a_running_hub(tmp_path / "ada") as (ada, _store):
        before = await ada.phase("open")
    shutil.copytree(world.home.root, tmp_path / "backup")
    async with world.member_of_a_running_hub(tmp_path / "bob") as (bob, _store):
        await take_part(bob)
        lost = await bob.phase("trial")
    shutil.rmtree(world.home.root)
    shutil.copytree(tmp_path / "backup", world.home.root)
    async with world.hub(), MemoryLink(broker=world.broker, client_id="late", username="late") as link:
        again = Member(identity=ada.identity, store=ada.store, membership=ada.membership, link=link, patience=1)
        await link.subscribe(again.topics.hub("round"))
        listening = asyncio.create_task(again.listen())
        restored = await again.until(
            lambda: next((said for said in again.announced if said.sequence > lost.sequence), None)
        )
        listening.cancel()
    assert (restored.round, restored.phase) == (1, "open")  # the same round again, with the same key
    assert restored.forgets(lost)
    assert not restored.forgets(before)  # a restart alone is no loss


async def test_every_line_about_a_round_or_a_device_says_which(world: World, tmp_path: Path) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        await take_part(ada)
        ada.judge(await ada.phase("trial"))
        await ada.phase("open", 2)
        await ada.link.publish(ada.topics.from_(ada.identity.id, "want"), b"nonsense")
        await world.heard.until("message-refused")
    for name, fields in world.heard.names:
        if name not in {"hub-ready", "link"} or "round" in fields:
            assert fields["round"] >= 1, name
        if name in {"device-joined", "update-accepted", "update-refused", "verdict", "message-refused"}:
            assert fields["device"] == ada.identity.id, name
    before = len(world.heard.names)
    async with world.hub():
        pass
    assert all(fields["round"] >= 1 for _name, fields in world.heard.names[before:])  # after a restart: each of them


async def test_hub_goes_on_where_the_broker_refuses_what_it_says_to_one_device(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = MemoryLink.publish
    async with world.hub(), world.member(tmp_path / "ada") as ada, world.member(tmp_path / "bob") as bob:

        async def refusing(link: MemoryLink, topic: str, payload: bytes, *, retain: bool = False) -> None:
            if f"/to/{ada.identity.id}/" in topic:
                raise BrokerRefusedError("The broker refused a message.", advice="Check its quotas.")
            await publish(link, topic, payload, retain=retain)

        monkeypatch.setattr(MemoryLink, "publish", refusing)
        announcement = await ada.phase("open")
        await ada.sender.say("want", Want(adapter=announcement.release.sha256, missing=[]))
        ada.sender.queue_verdict(
            Verdict(about=bytes(16), round=1, candidate="a" * 64, before=1.0, after=1.0, targets=1)
        )
        ada.sender.wake()
        for count in (1, 2):
            assert ada.identity.id in (await world.heard.until("publish-refused", count))["topic"]
        await bob.fetch(await bob.phase("open"))


async def test_candidate_that_is_rejected_while_it_is_sent_does_not_stop_the_hub(world: World, tmp_path: Path) -> None:
    async with world.hub() as store, world.member(tmp_path / "ada") as ada, world.member(tmp_path / "bob") as bob:
        await take_part(ada)
        trial = await ada.phase("trial")
        assert trial.candidate is not None
        BlobStore(store.home.blobs).discard(trial.candidate.sha256)  # as when the next round opens at this moment
        await bob.sender.say("want", Want(adapter=trial.candidate.sha256, missing=[]))
        told = await world.heard.until("adapter-not-sent")
        assert (told["device"], told["adapter"]) == (bob.identity.id, trial.candidate.sha256)
        await bob.fetch(await bob.phase("trial"))


async def test_what_came_of_an_update_leaves_the_disk_when_it_cannot_count_any_more(
    tmp_path: Path, tiny_q8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path / "hub", tiny_q8, max_staleness=0)
    async with world.hub() as store, world.member(tmp_path / "ada") as ada, world.member(tmp_path / "bob") as bob:
        announcement = await bob.phase("open")
        start = await bob.fetch(announcement)
        monkeypatch.setattr(bob.sender, "receipt", id)  # it goes away before it sends more
        bob.send_update(announcement, start, bob.made_up(start))
        await bob.until(lambda: any(receipt.state == "missing" for receipt in bob.receipts))
        assert (store.home.inbox / bob.identity.id).exists()
        await take_part(ada)
        ada.judge(await ada.phase("trial"))
        await take_part(ada, 2)
        await ada.phase("trial", 2)
        assert not (store.home.inbox / bob.identity.id).exists()
