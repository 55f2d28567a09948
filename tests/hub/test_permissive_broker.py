"""A broker that lets everybody say and hear everything: what its rules would refuse, the hub and devices refuse."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from agent.crypto.certificates import TlsKey
from agent.crypto.envelope import sign
from agent.crypto.identity import Identity
from agent.crypto.sealing import unseal
from agent.errors import BadSignatureError, SealBrokenError
from agent.federation.messages import Offer, Renew, Want
from agent.federation.sealing import adapter_info
from agent.hub.store import HubStore, open_store
from agent.transport.memory import MemoryLink
from tests.hub.world import Member, World

WANT = Want(adapter="a" * 64, missing=[])


def claiming(sender: Identity, signer: Identity, member: Member, kind: str = "want") -> bytes:
    """An envelope in the name of one identity, signed by another."""

    class Claimed:
        id = sender.id
        sign = signer.sign

    body = Renew(certificate_request=TlsKey.generate().request("x")) if kind == "renew" else WANT
    return sign(
        Claimed(),  # type: ignore[arg-type]
        kind=kind,
        community=member.community,
        counter=10**15,
        time=int(time.time() * 1000),
        body=body.encode(),
    )


def certified(store: HubStore) -> None:
    store.save_config(store.config.model_copy(update={"certificates": True}))


@pytest.mark.parametrize("kind", ["want", "renew"])
async def test_device_that_publishes_as_another_is_refused_by_its_signature(
    world: World, tmp_path: Path, kind: str
) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada, world.member(tmp_path / "bob") as bob:
        topic = ada.topics.from_(bob.identity.id, kind)
        await ada.link.publish(topic, claiming(bob.identity, ada.identity, ada, kind))
        assert (await world.heard.until("message-refused"))["code"] == BadSignatureError.code
        await ada.link.publish(
            topic, claiming(ada.identity, ada.identity, ada, kind)
        )  # in its own name, on bob's topic
        assert (await world.heard.until("message-refused", 2))["code"] == "unknown-sender"


@pytest.mark.parametrize("room", ["from", "join"])
async def test_who_is_no_member_gets_no_certificate_by_either_door(world: World, tmp_path: Path, room: str) -> None:
    with open_store(world.home) as store:
        certified(store)
    stranger = Identity.generate()
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        topic = ada.topics.from_(stranger.id, "renew")
        if room == "join":
            topic = ada.topics.join("renew", stranger.id)
        await ada.link.publish(topic, claiming(stranger, stranger, ada, "renew"))
        assert (await world.heard.until("message-refused"))["code"] == "unknown-sender"
        assert not world.heard.all("certificate-issued")


async def test_member_whose_request_for_a_certificate_is_heard_and_sent_again_is_refused(
    world: World, tmp_path: Path
) -> None:
    with open_store(world.home) as store:
        certified(store)
    async with world.hub(), world.member(tmp_path / "ada") as ada:
        asked = Renew(certificate_request=TlsKey.generate().request("x"))
        envelope, topic = ada.envelope("renew", asked, counter=10**15), ada.topics.join("renew", ada.identity.id)
        await ada.link.publish(topic, envelope)
        await world.heard.until("certificate-issued")
        await ada.link.publish(topic, envelope)
        assert (await world.heard.until("message-refused"))["code"] == "replayed"
        assert len(world.heard.all("certificate-issued")) == 1


async def test_device_that_hears_what_is_for_another_cannot_open_it(world: World, tmp_path: Path) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada, world.member(tmp_path / "bob") as bob:
        offers: list[Offer] = []
        take = ada.fetcher.offered

        def offered(offer: Offer) -> None:
            offers.append(offer)
            take(offer)

        ada.fetcher.offered = offered  # type: ignore[method-assign]
        announcement = await ada.phase("open")
        await ada.fetch(announcement)
        assert any(topic == ada.topics.to(ada.identity.id, "offer") for _user, topic, _payload in world.seen)
        (offer,) = offers  # which bob can hear as well: this broker hides nothing

        def info(name: str) -> bytes:
            hub = Identity.load(world.home.keys, "hub").public.fingerprint()
            return adapter_info(ada.community, hub, name, offer.transfer, offer.adapter)

        assert unseal(ada.identity, offer.sealed_key, info(ada.identity.id))
        for name in (ada.identity.id, bob.identity.id):
            with pytest.raises(SealBrokenError):
                unseal(bob.identity, offer.sealed_key, info(name))


async def test_what_is_said_in_the_hubs_name_is_not_the_hubs(world: World, tmp_path: Path) -> None:
    async with world.hub(), world.member(tmp_path / "ada") as ada, world.newcomer(world.invite()) as newcomer:
        door = await newcomer.meet()
        forged = claiming(Identity.load(world.home.keys, "hub"), ada.identity, ada)
        async with MemoryLink(broker=world.broker, client_id="loud", username="loud") as link:
            await link.publish(ada.topics.hub("card"), forged, retain=True)
            await link.publish(ada.topics.hub("charter"), forged, retain=True)
        async with world.newcomer(world.invite()) as late:
            assert (await late.meet()).hub == door.hub  # once the hub has said it again
