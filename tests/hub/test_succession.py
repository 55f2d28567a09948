"""Keys that come after others, on both sides of the wire: followed where the old ones signed, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent import keykeeping
from agent.crypto import keyfile
from agent.crypto.envelope import parse, sign
from agent.crypto.identity import Identity
from agent.crypto.succession import Succession, leads_to, statement
from agent.errors import BadSignatureError, BrokerUnreachableError, LeavingError, UnknownSenderError
from agent.events import Events
from agent.federation import succession
from agent.federation.messages import Card, Succeed
from agent.federation.store import DeviceStore, open_device_store
from agent.federation.succession import ask, finish, follow, is_agreed
from agent.hub import succession as hub_succession
from agent.hub.store import open_store
from agent.keykeeping import rotate_hub
from agent.paths import Home
from agent.service import run_device
from agent.transport.memory import MemoryLink
from tests.hub.world import World

COMMUNITY = bytes(range(16))


class KilledError(Exception):
    """The process was killed here."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "AGAIN_SECONDS", 0.1)


def link_of(world: World, identity: Identity) -> MemoryLink:
    return MemoryLink(broker=world.broker, client_id=identity.id, username=identity.id)


async def joined(world: World, directory: Path) -> Home:
    """Let a device join a running hub, and have an update of its counted."""
    async with world.member(directory) as ada:
        opened = await ada.phase("open")
        release = await ada.fetch(opened)
        ada.send_update(opened, release, ada.made_up(release))
        await ada.until(lambda: [receipt for receipt in ada.receipts if receipt.state == "done"])
    return Home(directory)


def waiting_keys(home: Home) -> Identity:
    new = Identity.generate()
    keyfile.save(new, home.keys, name=keyfile.NEXT_FILE)
    return new


# --- what is signed ----------------------------------------------------------------------------------------------


def test_successions_lead_from_the_pinned_keys_to_those_that_came_after_them_and_nowhere_else() -> None:
    keys = [Identity.generate("hub") for _ in range(4)]
    links = [Succession.make(COMMUNITY, old, new).encode() for old, new in pairwise(keys)]
    first, last = keys[0].public, keys[-1].public
    assert leads_to(first.fingerprint(), last, links, COMMUNITY)
    assert leads_to(keys[2].public.fingerprint(), last, links, COMMUNITY)
    assert leads_to(last.fingerprint(), last, [], COMMUNITY)
    assert not leads_to(last.fingerprint(), first, links, COMMUNITY)  # never back
    assert not leads_to(first.fingerprint(), last, links[::2], COMMUNITY)
    assert not leads_to(first.fingerprint(), last, links, bytes(16))
    assert not leads_to(first.fingerprint(), last, [*links[:2], b"damaged"], COMMUNITY)


@pytest.mark.parametrize("field", ["old", "new", "signature", "countersignature"])
def test_succession_in_which_anything_was_changed_is_refused(field: str) -> None:
    old, new, other = (Identity.generate("hub") for _ in range(3))
    made, others = Succession.make(COMMUNITY, old, new), Succession.make(COMMUNITY, other, other)
    made.check(COMMUNITY)
    with pytest.raises(BadSignatureError):
        replace(made, **{field: getattr(others, field)}).check(COMMUNITY)


def test_keys_of_another_role_succeed_nothing() -> None:
    made = Succession.make(COMMUNITY, Identity.generate("hub"), Identity.generate("device"))
    with pytest.raises(BadSignatureError):
        made.check(COMMUNITY)


# --- a device ----------------------------------------------------------------------------------------------------


async def test_hub_takes_the_new_keys_with_history_and_window_and_refuses_the_old_ones(
    world: World, tmp_path: Path
) -> None:
    async with world.hub() as hub:
        home = await joined(world, tmp_path / "ada")
        old, new = keyfile.load(home.keys), waiting_keys(home)
        with open_device_store(home) as store:
            assert await ask(store, old, new, link_of(world, old)) == ""
            assert finish(store)
        assert keyfile.load(home.keys).public == new.public
        (row,) = hub.devices()
        assert (row.device, row.nickname) == (new.id, "new")
        assert {update.device for update in hub.updates()} == {new.id}
        before = hub.device(old.id)
        assert before is not None
        assert (before.standing, before.successor) == ("succeeded", new.id)
        assert row.replay.next_counter >= before.replay.next_counter > 1
        recorded = next(payload for _, topic, payload in world.seen if topic.endswith(f"/from/{old.id}/offer"))
        async with link_of(world, old) as link:
            refused = len(world.heard.all("message-refused"))
            await link.publish(f"bramble/{world.config.community}/from/{old.id}/offer", recorded)
            told = await world.heard.until("message-refused", refused + 1)
        assert told["code"] == "unknown-sender"
        # A counter that the old keys had used is used up for the new ones, too.
        async with link_of(world, new) as link:
            topic = f"bramble/{world.config.community}/from/{new.id}/want"
            counter, community = parse(recorded).counter, bytes.fromhex(world.config.community)
            await link.publish(topic, sign(new, kind="want", community=community, counter=counter, time=0, body=b""))
            told = await world.heard.until("message-refused", refused + 2)
        assert told["code"] == "replayed"


async def test_answer_that_was_lost_costs_nothing(world: World, tmp_path: Path) -> None:
    async with world.hub() as hub:
        home = await joined(world, tmp_path / "ada")
        old, new = keyfile.load(home.keys), waiting_keys(home)
        with open_device_store(home) as store:
            for _ in range(2):  # the first answer was heard by a process that was killed before it wrote it down
                store.set_fact("succession", b"")
                assert await ask(store, old, new, link_of(world, old)) == ""
        assert len(world.heard.all("device-succeeded")) == 1
        assert [row.device for row in hub.devices()] == [new.id]


@pytest.mark.parametrize("step", ["succeed", "put_fact"])
async def test_change_of_keys_that_was_killed_once_the_hub_agreed_is_finished_without_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async with world.hub():
        home = await joined(world, tmp_path / "ada")
        old, new = keyfile.load(home.keys), waiting_keys(home)
        with open_device_store(home) as store:
            store.connection.execute(
                "INSERT INTO outbox (kind, topic, body) VALUES ('verdict', ?, '')", (f"x/{old.id}",)
            )
            assert await ask(store, old, new, link_of(world, old)) == ""

            def killed(*_arguments: object) -> None:
                raise KilledError

            with monkeypatch.context() as patched:
                patched.setattr(*((keyfile, step, killed) if step == "succeed" else (DeviceStore, step, killed)))
                with pytest.raises(KilledError):
                    finish(store)
            assert is_agreed(store)
    with open_device_store(home) as store:
        assert finish(store)
        assert not finish(store)
        topics = [row[0] for row in store.connection.execute("SELECT topic FROM outbox WHERE topic LIKE 'x/%'")]
        assert topics == [f"x/{new.id}"]
    assert keyfile.load(home.keys).public == new.public
    assert not (home.keys / keyfile.NEXT_FILE).exists()


async def test_device_does_not_run_while_the_hub_may_or_may_not_know_its_new_keys(world: World, tmp_path: Path) -> None:
    async with world.hub():
        home = await joined(world, tmp_path / "ada")
    waiting_keys(home)
    with open_device_store(home) as store:
        why = await ask(
            store, keyfile.load(home.keys), Identity.generate(), link_of(world, Identity.generate()), patience=0.2
        )
        assert "did not answer" in why
    with pytest.raises(LeavingError, match="change of this device's keys"):
        run_device(home, events=Events(quiet=True))


async def test_keys_that_did_not_sign_or_are_somebody_elses_are_not_taken(world: World, tmp_path: Path) -> None:
    async with world.member_of_a_running_hub(tmp_path / "ada") as (ada, hub), world.member(tmp_path / "bob") as bob:
        new, thief = Identity.generate(), Identity.generate()
        old, community = ada.identity, ada.community
        forged = Succeed(public=new.public.encode(), proof=thief.sign(statement(community, old.public, new.public)))
        own = bob.identity.sign(statement(community, old.public, bob.identity.public))
        known = Succeed(public=bob.identity.public.encode(), proof=own)
        for number, (body, code) in enumerate(((forged, "bad-signature"), (known, "malformed")), start=1):
            await ada.sender.say("succeed", body)
            assert (await world.heard.until("message-refused", number))["code"] == code
        assert {row.device for row in hub.devices()} == {old.id, bob.identity.id}


# --- a hub -------------------------------------------------------------------------------------------------------


async def test_members_and_newcomers_with_older_invites_follow_a_hub_that_changed_its_keys(
    world: World, tmp_path: Path
) -> None:
    invite = world.invite()
    async with world.hub():
        home = await joined(world, tmp_path / "ada")
    first = await asyncio.to_thread(rotate_hub, world.home)
    second = await asyncio.to_thread(rotate_hub, world.home)
    assert first.new == second.old
    async with world.hub():
        async with world.newcomer(invite) as newcomer:
            door = await newcomer.meet()
            assert door.hub.id == second.new
            assert (await newcomer.ask(door)).accepted
        card = next(payload for _, topic, payload in reversed(world.seen) if topic.endswith("/hub/card"))
    with open_device_store(home) as store:
        assert store.membership.hub_identity.id == first.old
        assert follow(store, parse(card)).id == second.new
        assert store.membership.hub_identity.id == second.new
        old = next(payload for _, topic, payload in world.seen if topic.endswith("/hub/card"))
        with pytest.raises(UnknownSenderError, match="did not come after"):
            follow(store, parse(old))  # recorded before: there is no way back


async def test_hub_that_nobody_signed_is_not_followed(world: World, tmp_path: Path) -> None:
    async with world.hub():
        home = await joined(world, tmp_path / "ada")
    thief = Identity.generate("hub")
    community = bytes.fromhex(world.config.community)
    stolen = Succession.make(community, Identity.generate("hub"), thief).encode()
    body = Card(name="x", public=thief.public.encode(), successions=[stolen]).encode()
    card = sign(thief, kind="card", community=community, counter=1, time=1, body=body)
    with open_device_store(home) as store, pytest.raises(UnknownSenderError):
        follow(store, parse(card))


STEPS: list[tuple[Any, str]] = [(keyfile, "save"), (hub_succession, "write_down"), (keyfile, "succeed")]


@pytest.mark.parametrize(("room", "step"), STEPS)
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_hub_that_was_killed_while_it_changed_its_keys_has_the_old_ones_or_the_new_ones(
    world: World, monkeypatch: pytest.MonkeyPatch, room: Any, step: str, moment: str
) -> None:
    before = keyfile.load(world.home.keys, "hub").id
    real: Callable[..., Any] = getattr(room, step)

    def dying(*arguments: Any, **options: Any) -> None:
        if moment == "after":
            real(*arguments, **options)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(room, step, dying)
        with pytest.raises(KilledError):
            await asyncio.to_thread(rotate_hub, world.home)
    with open_store(world.home) as store:  # as `bramble hub run` begins
        hub_succession.finish(store)
        now = keyfile.load(world.home.keys, "hub").id
        links = [Succession.decode(link) for link in hub_succession.successions(store)]
    assert now == (links[-1].new.id if links else before)
    invite = world.invite()
    async with world.hub(), world.newcomer(invite) as newcomer:
        assert (await newcomer.meet()).hub.id == now


async def test_hub_that_does_not_answer_leaves_the_new_keys_waiting(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.hub():
        home = await joined(world, tmp_path / "ada")
    old = keyfile.load(home.keys).id
    monkeypatch.setattr(keykeeping, "run_until_signalled", asyncio.run)  # signals are the main thread's
    monkeypatch.setattr(keykeeping, "device_link", lambda *_a, **_o: link_of(world, Identity.generate()))
    for _ in range(2):
        with pytest.raises(BrokerUnreachableError, match="not taken the new keys yet"):
            await asyncio.to_thread(keykeeping.rotate_device, home, patience=0.2)
    assert keyfile.load(home.keys).id == old
    assert (home.keys / keyfile.NEXT_FILE).exists()
