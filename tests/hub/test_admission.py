"""At the door, from both sides: who gets in, who does not, and what is lost or changed on the way costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.crypto.envelope import parse, sign, verify
from agent.crypto.identity import Identity
from agent.errors import (
    AwaitingApprovalError,
    BadSignatureError,
    BrokerUnreachableError,
    InviteRefusedError,
    ProtocolError,
    UnknownSenderError,
)
from agent.federation.messages import StandingNotice
from agent.hub.reception import Reception
from agent.hub.stewarding import decide, set_admission
from agent.transport.exchange import Exchange
from agent.transport.memory import MemoryLink
from agent.transport.topics import Topics
from tests.hub.world import World


@pytest.fixture
def first_of(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str, Callable[[bytes], bytes | None]], list[str]]:
    """Change or lose the first message on topics that hold a word; gives the list of what was changed."""

    def arrange(word: str, change: Callable[[bytes], bytes | None]) -> list[str]:
        changed: list[str] = []
        publish = Exchange.publish

        def meddling(self: Exchange, user: str, topic: str, payload: bytes, *, retain: bool) -> bool:
            if word in topic.split("/") and not changed:
                changed.append(topic)
                other = change(payload)
                return True if other is None else publish(self, user, topic, other, retain=retain)
            return publish(self, user, topic, payload, retain=retain)

        monkeypatch.setattr(Exchange, "publish", meddling)
        return changed

    return arrange


def flipped(payload: bytes) -> bytes:
    return payload[:-40] + bytes([payload[-40] ^ 1]) + payload[-39:]


def lost(_payload: bytes) -> None:
    return None


async def test_device_with_an_invite_gets_in_and_sees_the_charter_first(world: World) -> None:
    async with world.hub() as store, world.newcomer(world.invite()) as newcomer:
        door = await newcomer.meet()
        assert door.charter == world.config.charter
        assert store.devices() == []
        assert (await newcomer.ask(door)).accepted
        assert [row.nickname for row in store.devices()] == ["new"]


@pytest.mark.parametrize("word", ["card", "charter", "join", "joined"])
@pytest.mark.parametrize("change", [flipped, lost])
async def test_first_message_changed_or_lost_at_the_door_costs_nothing(
    world: World, first_of: Callable[..., list[str]], word: str, change: Callable[[bytes], bytes | None]
) -> None:
    changed = first_of(word, change)
    async with world.hub() as store, world.newcomer(world.invite()) as newcomer:
        assert (await newcomer.ask(await newcomer.meet())).accepted
        assert len(store.devices()) == 1
    assert len(changed) == 1
    assert len(world.heard.all("device-joined")) == 1


async def test_device_that_asks_again_uses_the_invite_once_and_gets_the_same_answer(world: World) -> None:
    identity, invite = Identity.generate(), world.invite(uses=1)
    async with world.hub():
        answers = []
        for _ in range(2):
            async with world.newcomer(invite, identity) as newcomer:
                answers.append(await newcomer.ask(await newcomer.meet()))
        assert answers[0] == answers[1]
        async with world.newcomer(invite) as other:
            with pytest.raises(InviteRefusedError, match="as often as it may"):
                await other.ask(await other.meet())


async def test_hub_refuses_an_invite_that_expired_or_that_it_never_gave_out(world: World) -> None:
    async with world.hub() as store:
        for invite in (world.invite(expires_seconds=-3600.0), replace(world.invite(), invite=b"unknown!")):
            async with world.newcomer(invite) as newcomer:
                with pytest.raises(InviteRefusedError):
                    await newcomer.ask(await newcomer.meet())
        assert store.devices() == []


async def test_invite_without_its_secret_opens_nothing(world: World) -> None:
    async with world.hub() as store:
        guessed = replace(world.invite(), secret=bytes(32))
        async with world.newcomer(guessed, patience=0.5) as newcomer:
            with pytest.raises(BrokerUnreachableError):
                await newcomer.ask(await newcomer.meet())
        assert store.devices() == []
        assert {said["code"] for said in world.heard.all("message-refused")} == {"bad-signature"}


async def test_hub_that_is_not_the_one_of_the_invite_is_not_trusted(world: World) -> None:
    stolen = replace(world.invite(), hub=Identity.generate().public.fingerprint())
    async with world.hub(), world.newcomer(stolen, patience=0.5) as newcomer:
        with pytest.raises(UnknownSenderError, match="not the one"):
            await newcomer.meet()


async def test_silent_hub_is_told_from_a_silent_broker(world: World) -> None:
    async with world.newcomer(world.invite(), patience=0.2) as newcomer:
        with pytest.raises(BrokerUnreachableError, match="the hub of the invite did not"):
            await newcomer.meet()


async def test_charter_that_is_always_damaged_is_named_as_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = Exchange.publish

    def damaging(self: Exchange, user: str, topic: str, payload: bytes, *, retain: bool) -> bool:
        return publish(self, user, topic, flipped(payload) if topic.endswith("/charter") else payload, retain=retain)

    monkeypatch.setattr(Exchange, "publish", damaging)
    async with world.hub(), world.newcomer(world.invite(), patience=0.5) as newcomer:
        with pytest.raises(ProtocolError) as caught:
            await newcomer.meet()
    assert isinstance(caught.value, BadSignatureError)


async def test_newcomer_waits_at_the_door_until_a_steward_approves(world: World) -> None:
    set_admission(world.home, "approval")
    identity, invite = Identity.generate(), world.invite()
    async with world.hub() as store:
        async with world.newcomer(invite, identity, steward=0.3) as newcomer:
            door = await newcomer.meet()
            assert door.admission == "approval"
            with pytest.raises(AwaitingApprovalError, match="a steward approves"):
                await newcomer.ask(door)
        assert [row.standing for row in store.everybody()] == ["pending"]
        assert len(world.heard.all("device-pending")) == 1
        told = asyncio.Event()
        async with world.newcomer(invite, identity, steward=20.0, told_to_wait=lambda _seconds: told.set()) as newcomer:
            asking = asyncio.create_task(newcomer.ask(await newcomer.meet()))
            await told.wait()
            decide(world.home, identity.id[:10], "approve")
            assert (await asking).accepted


async def test_newcomer_whom_a_steward_refuses_is_told_so(world: World) -> None:
    set_admission(world.home, "approval")
    identity, invite = Identity.generate(), world.invite()
    async with world.hub():
        async with world.newcomer(invite, identity, steward=0.2) as newcomer:
            with pytest.raises(AwaitingApprovalError):
                await newcomer.ask(await newcomer.meet())
        decide(world.home, identity.id, "refuse")
        async with world.newcomer(invite, identity) as newcomer:
            with pytest.raises(InviteRefusedError, match="a steward of the community said no"):
                await newcomer.ask(await newcomer.meet())


async def test_recorded_request_to_join_gets_another_device_nothing(world: World) -> None:
    """Whoever recorded it can send it again, under its own name or another's; nobody new comes in on it."""
    invite = world.invite(uses=5)
    async with world.hub() as store:
        async with world.newcomer(invite) as newcomer:
            assert (await newcomer.ask(await newcomer.meet())).accepted
        (recorded,) = [(topic, payload) for _, topic, payload in world.seen if "/join/" in topic][:1]
        thief = Identity.generate()
        topics = Topics(world.config.community)
        before = len(world.heard.all("message-refused"))
        async with MemoryLink(broker=world.broker, client_id="thief", username="thief") as link:
            await link.publish(recorded[0], recorded[1])
            await link.publish(topics.join(invite.invite.hex(), thief.id), recorded[1])
            body = parse(recorded[1]).claimed.body  # in an envelope of the thief's own
            own = sign(thief, kind="join", community=invite.community, counter=0, time=0, body=body)
            await link.publish(topics.join(invite.invite.hex(), thief.id), own)
            await world.heard.until("message-refused", before + 2)
        assert len(store.everybody()) == 1
        assert store.invites()[0].left == 4
        assert {fields["code"] for fields in world.heard.all("message-refused")} == {"unknown-sender", "seal-broken"}


async def test_keys_of_a_hub_are_not_let_in_as_a_device(world: World) -> None:
    invite = world.invite()
    async with world.hub() as store:
        async with world.newcomer(invite, Identity.generate("hub"), patience=0.5) as newcomer:
            with pytest.raises(BrokerUnreachableError):
                await newcomer.ask(await newcomer.meet())
        assert store.everybody() == []


async def test_revoked_device_is_told_and_its_messages_are_refused(world: World, tmp_path: Path) -> None:
    async with world.member_of_a_running_hub(tmp_path / "ada") as (ada, store):
        await ada.phase("open")
        decide(world.home, ada.identity.id, "revoke", reason="it was stolen")
        notice = await world.heard.until("device-revoked")
        assert notice["device"] == ada.identity.id
        await ada.sender.say("want", ada.fetcher.want(ada.announced[-1].release))
        refused = await world.heard.until("message-refused")
        assert refused["code"] == "revoked"
        assert store.devices() == []
        said = [payload for _, topic, payload in world.seen if topic.endswith("/standing")]
        told = verify(parse(said[0]), ada.membership.hub_identity)
        assert StandingNotice.decode(told.body).reason == "it was stolen"
        assert len(said) == 1  # it is not told with every message that it sends
        assert not [topic for _, topic, _ in world.seen if topic.endswith(f"{ada.identity.id}/chunk")]


async def test_device_that_was_revoked_while_the_hub_was_away_is_told_when_it_is_back(
    world: World, tmp_path: Path
) -> None:
    async with world.member_of_a_running_hub(tmp_path / "ada") as (ada, _store):
        name = ada.identity.id
    decide(world.home, name, "revoke")
    async with world.hub():
        assert (await world.heard.until("device-revoked"))["device"] == name


async def test_revocation_holds_for_the_very_next_message(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def looks_at_nothing(_reception: Reception) -> None:
        return

    async with world.member_of_a_running_hub(tmp_path / "ada") as (ada, _store):
        await ada.phase("open")
        monkeypatch.setattr(Reception, "notice_decisions", looks_at_nothing)  # which the hub does twice a second
        decide(world.home, ada.identity.id, "revoke")
        await ada.sender.say("want", ada.fetcher.want(ada.announced[-1].release))
        assert (await world.heard.until("message-refused"))["code"] == "revoked"
