"""At the door, from both sides: who gets in, who does not, and what is lost or changed on the way costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.crypto.identity import Identity
from agent.errors import (
    BadSignatureError,
    BrokerUnreachableError,
    InviteRefusedError,
    ProtocolError,
    UnknownSenderError,
)
from agent.transport.exchange import Exchange
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
        for invite in (world.invite(expires_seconds=-1.0), replace(world.invite(), invite=b"unknown!")):
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
