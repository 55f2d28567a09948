"""A broker that nobody should trust, between a real hub and a whole device: what it hands over changes nothing."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from agent.crypto.envelope import sign
from agent.crypto.identity import Identity
from agent.errors import NotJoinedError
from agent.federation.messages import CharterNotice
from agent.federation.store import open_device_store
from agent.governance.charter import Charter
from agent.paths import Home, exclusive
from agent.service import accept_charter, charter_review, device_status
from agent.transport.topics import Topics
from tests.federation.test_device import Losses, join, running
from tests.hub.world import World, make_world

MALLORY = "the broker itself"


def says(world: World, topic: str, payload: bytes, *, retain: bool = False) -> None:
    """Have the broker hand over anything to whoever listens."""
    world.broker.exchange.publish(MALLORY, topic, payload, retain=retain)


def heard(world: World, word: str) -> list[tuple[str, bytes]]:
    """What the hub said on topics that hold a word, oldest first."""
    return [(topic, payload) for user, topic, payload in world.seen if user == "hub" and word in topic.split("/")]


def shown(world: World, charter: Charter, counter: int) -> bytes:
    """Give a charter as the hub would publish it."""
    return sign(
        Identity.load(world.home.keys, "hub"),
        kind="charter",
        community=bytes.fromhex(world.config.community),
        counter=counter,
        time=int(time.time() * 1000),
        body=CharterNotice(charter=charter).encode(),
    )


async def test_junk_floods_and_old_words_of_the_hub_change_nothing_and_the_round_completes(
    world: World, tmp_path: Path
) -> None:
    async with world.hub() as hub:
        home = await join(world, tmp_path / "ada")
        async with running(world, home, Losses()) as (store, device):
            await device.until("announcement", 2)
            topics, me = Topics(world.config.community), Identity.load(home.keys).id
            old = [said for word in ("round", "receipt", "offer", "chunk") for said in heard(world, word)[:20]]
            for _ in range(200):
                says(world, topics.to(me, "receipt"), os.urandom(300))
                says(world, topics.hub("round"), os.urandom(300))
            for _ in range(5):
                for topic, payload in old:
                    says(world, topic, payload)
            await world.heard.until("promoted")
            await device.until("adopted", 2)
            codes = {said["code"] for said in device.all("message-refused")}
            assert {"malformed", "stale"} <= codes
            assert len(device.all("message-refused")) < 300  # the log is not theirs to fill
            assert [record.state for record in store.rounds()][:1] == ["counted"]
            assert len(hub.updates(1)) == 1
            with exclusive(home):
                refused = device_status(home)["refused"]
            assert isinstance(refused, dict)
            assert refused["malformed"] >= 50


async def test_older_announcement_takes_no_device_back_and_a_restored_hub_does(tmp_path: Path, tiny_q8: Path) -> None:
    world = make_world(tmp_path / "hub", tiny_q8, quorum=2, target=2)
    async with world.hub():
        home = await join(world, tmp_path / "ada")
    shutil.copytree(world.home.root, tmp_path / "backup")
    async with running(world, home, Losses()) as (store, device):
        async with world.hub():
            await device.until("announcement", 2)
            await device.until("trained")
        topic, first = heard(world, "round")[0]
        before, refused = store.announcement, len(device.all("message-refused"))
        says(world, topic, first, retain=True)
        stale = await device.until("message-refused", refused + 1)
        assert stale["code"] == "stale"
        assert store.announcement == before
        assert store.last_round() == 1
        shutil.rmtree(world.home.root)
        shutil.copytree(tmp_path / "backup", world.home.root)
        async with world.hub():
            await device.until("hub-forgot")
        assert before is not None
        assert store.announcement is not None
        assert store.announcement.sequence > before.sequence


async def test_another_charter_pauses_the_device_until_its_owner_agrees(world: World, tmp_path: Path) -> None:
    async with world.hub():
        home = await join(world, tmp_path / "ada")
    with pytest.raises(NotJoinedError):
        accept_charter(home)
    agreed = world.config.charter
    other = agreed.model_copy(update={"licence": "all rights reserved", "max_update_norm": 1e9})
    topic, counter = Topics(world.config.community).hub("charter"), 2**50
    async with running(world, home, Losses()) as (store, device):
        says(world, topic, shown(world, other, counter), retain=True)
        told = await device.until("charter-changed")
        assert told["changed"] == ["licence", "max_update_norm"]
        assert store.membership.charter == agreed
    async with world.hub(), running(world, home, Losses()) as (store, device):  # whose counters are older
        await device.until("waiting")
        assert not device.all("trained")
        assert store.membership.charter == agreed
        await device.until("message-refused")
        assert {said["code"] for said in device.all("message-refused")} == {"stale"}
    assert charter_review(home) == (agreed, other)
    assert accept_charter(home).charter == other
    assert charter_review(home) == (other, None)


async def test_charter_that_is_not_the_hubs_is_not_even_shown_to_the_owner(world: World, tmp_path: Path) -> None:
    async with world.hub():
        home = await join(world, tmp_path / "ada")
        topics = Topics(world.config.community)
        other = world.config.charter.model_copy(update={"licence": "theirs"})
        forged = shown(world, other, 2**50)
        foreign = sign(
            Identity.generate(),
            kind="charter",
            community=bytes.fromhex(world.config.community),
            counter=2**50,
            time=0,
            body=CharterNotice(charter=other).encode(),
        )
        async with running(world, home, Losses()) as (store, device):
            await device.until("device-ready")
            says(world, topics.hub("charter"), forged[:-1] + bytes([forged[-1] ^ 1]))
            says(world, topics.hub("charter"), foreign)
            says(world, topics.hub("round"), forged)  # genuine, and moved
            await device.until("message-refused", 3)
            codes = [said["code"] for said in device.all("message-refused")]
            assert sorted(codes) == ["bad-signature", "unknown-sender", "wrong-kind"]
            await device.until("trained")
            assert store.membership.charter == world.config.charter
    with open_device_store(Home(home.root)) as store:
        assert store.fact("charter-offered") is None


async def test_device_whose_clock_is_years_wrong_takes_part(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub refuses what comes from the future; a device does not say it."""
    async with world.hub():
        home = await join(world, tmp_path / "ada")
        world.now -= 10 * 365 * 86_400.0  # the hub's clock; its envelopes still say the time of the machine
        real = time.time
        monkeypatch.setattr("agent.hub.publishing.time.time", lambda: real() - 10 * 365 * 86_400.0)
        async with running(world, home, Losses()) as (_store, device):
            await world.heard.until("promoted")
            await device.until("adopted", 2)
