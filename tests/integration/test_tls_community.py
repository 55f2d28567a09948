"""A real mosquitto over TLS 1.3 with certificates from enrolment: who gets in, and whom the broker itself refuses."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.crypto.authority import Authority
from agent.crypto.certificates import TlsKey
from agent.crypto.identity import Identity
from agent.errors import BrokerRefusedError, BrokerUnreachableError
from agent.federation.credentials import Credentials, client_id, newcomer_tls
from agent.federation.invite import parse_invite
from agent.hub.issuing import revoke
from agent.hub.setup import make_invite
from agent.hub.store import open_store
from agent.keykeeping import rotate_hub
from agent.transport.access import HUB_USER, allowed
from agent.transport.tls import Tls
from agent.transport.topics import Topics
from tests.hub.test_broker_files import WHO
from tests.integration.community import grown_release, make_community
from tests.integration.processes import succeed
from tests.integration.secured import Secured, replace_certificate, secured
from tests.transport.brokers import free_port, mosquitto, mosquitto_with
from tests.transport.conftest import take
from tests.transport.test_access import ALICE, BOB, EVERYTHING

DAYS = dt.timedelta(days=1)


@pytest.fixture
def community(tmp_path: Path, tiny_q8: Path) -> Iterator[Secured]:
    with secured(tmp_path, tiny_q8) as made:
        yield made


async def refusal(community: Secured, tls: Tls, **options: str) -> BrokerUnreachableError:
    """Why a connection does not come about."""
    with pytest.raises(BrokerUnreachableError) as caught:
        async with community.link(tls, **options):
            pass
    return caught.value


# -- the happy path ---------------------------------------------------------------------------------------------------


async def test_newcomer_joins_by_one_listener_and_takes_part_by_the_other_with_its_own_certificate(
    community: Secured, tmp_path: Path
) -> None:
    async with community.hub():
        home, membership = await community.join(tmp_path / "ada")
        credentials = Credentials(home.keys, Identity.load(home.keys).id)
        assert membership.broker == community.config.member_broker != community.newcomers
        for path in (credentials.key_path, credentials.certificate_path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        certificate = credentials.certificate()
        assert certificate is not None
        assert certificate.name == credentials.device
        assert certificate.ends == pytest.approx(time.time() + 30 * 86_400, abs=60)
        async with community.device(home) as heard:
            await heard.until("device-ready")
    log = community.broker.log.read_text()
    assert f"as {credentials.device} (" in log  # at the newcomers' door, by its id
    assert f"as {client_id(Identity.load(home.keys), membership.community)} (" in log
    assert f"u'{credentials.device}'" in log
    assert "u'hub'" in log


@pytest.mark.slow
def test_whole_community_by_its_commands_learns_a_round_over_tls(tmp_path: Path) -> None:
    port, newcomers = free_port(), free_port()
    community = make_community(tmp_path / "community")
    where = ("--port", str(port), "--newcomers-port", str(newcomers), "--listen", "127.0.0.1")
    written = json.loads(
        succeed("hub", "broker-config", "--home", community.hub_home.root, "--host", "localhost", *where, "--json")
    )
    with (
        mosquitto_with(Path(written["directory"]) / "mosquitto.conf", port, other_ports=[newcomers]),
        community.hub() as hub,
    ):
        hub.wait_for("hub-ready")
        community.join_all()
        with community.device("ada"), community.device("bob"):
            assert grown_release(hub, 1).name == "promoted"
    assert community.counted(1) == community.everybody()


# -- certificates are renewed -----------------------------------------------------------------------------------------


async def test_certificate_is_renewed_over_the_link_when_two_thirds_of_its_life_are_over(
    community: Secured, tmp_path: Path
) -> None:
    async with community.hub():
        home, membership = await community.join(tmp_path / "ada")
        old = replace_certificate(community, home, age=21 * DAYS)
        async with community.device(home) as heard:
            said = await heard.until("certificate-renewed")
            assert said["ends"] > old.ends
        assert not heard.all("certificate-expired")
        async with community.device(home) as heard:
            await heard.until("device-ready")
    assert membership.door == community.newcomers


@pytest.mark.parametrize(("days", "name"), [(31, ""), (0, ALICE)])
async def test_device_whose_certificate_has_expired_or_is_for_its_earlier_keys_comes_back_by_the_other_door(
    community: Secured, tmp_path: Path, days: int, name: str
) -> None:
    async with community.hub():
        home, _membership = await community.join(tmp_path / "ada")
        replace_certificate(community, home, age=days * DAYS, name=name)
        async with community.device(home) as heard:
            await heard.until("certificate-expired")
            await heard.until("certificate-renewed")
            await heard.until("device-ready")
        assert not heard.all("link")[0]["connected"]


async def test_device_whose_hub_changed_its_keys_while_it_was_away_and_its_certificate_expired_comes_back(
    community: Secured, tmp_path: Path
) -> None:
    async with community.hub():
        home, _membership = await community.join(tmp_path / "ada")
    replace_certificate(community, home, age=31 * DAYS, name="")
    await asyncio.to_thread(rotate_hub, community.home)
    async with community.hub(), community.device(home) as heard:
        await heard.until("hub-succeeded")
        await heard.until("certificate-renewed")
        await heard.until("device-ready")


# -- the broker refuses -----------------------------------------------------------------------------------------------


async def test_without_a_certificate_nobody_gets_in_as_a_member(community: Secured) -> None:
    error = await refusal(community, community.trusting())
    assert "without a certificate" in str(error)
    assert "joining" in error.advice


async def test_expired_certificate_is_refused(community: Secured) -> None:
    error = await refusal(community, community.shown(ALICE, age=31 * DAYS))
    assert "our certificate has expired" in str(error)


async def test_certificate_of_another_authority_is_refused(community: Secured) -> None:
    other = Authority.make(community.config.community, now=time.time())
    error = await refusal(community, community.shown(ALICE, by=other))
    assert "does not know who issued our certificate" in str(error)


async def test_revoked_certificate_is_refused_once_the_broker_has_read_the_list(
    community: Secured, tmp_path: Path
) -> None:
    async with community.hub() as store:
        home, _membership = await community.join(tmp_path / "ada")
        device = Identity.load(home.keys).id
        own = Credentials(home.keys, device)
        tls = Tls(authority=community.authority.pem(), certificate=own.certificate_path, key=own.key_path)
        async with community.link(tls):
            pass
        revoke(store, device, now=time.time())
        assert community.broker.process is not None
        community.broker.process.send_signal(signal.SIGHUP)
        async with community.link(community.shown(BOB)):  # which mosquitto lets in after it has read the list
            pass
        error = await refusal(community, tls)
    assert "our certificate was revoked" in str(error)


async def test_certificate_of_a_broker_does_not_let_its_holder_in_as_a_member(community: Secured) -> None:
    key = TlsKey.generate()
    made = community.authority.certify_broker([HUB_USER], key.request(HUB_USER), now=time.time())
    error = await refusal(community, community.kept(key, made))
    assert "certificate" in str(error)


@pytest.mark.parametrize(("user", "client"), WHO)
async def test_broker_lets_each_user_say_and_hear_exactly_what_the_rules_say(
    community: Secured, user: str, client: str
) -> None:
    name = community.config.community
    everything = {what: topic.replace("0123456789abcdef" * 2, name) for what, topic in EVERYTHING.items()}
    ours = {what: topic for what, topic in everything.items() if name in topic}
    newcomer = user == "newcomer"
    tls = community.trusting() if newcomer else community.shown(user)
    url = community.newcomers if newcomer else community.config.member_broker
    async with community.link(tls, client_id=client, url=url, protocol=5) as link:
        said = set()
        for what, topic in everything.items():
            try:
                await link.publish(topic, b"x")
                said.add(what)
            except BrokerRefusedError:
                pass
        await link.subscribe("#")  # mosquitto takes any filter, and looks at each message
        async with community.link(community.shown(HUB_USER), client_id="the-hub", protocol=5) as hub:
            for topic in ours.values():
                await hub.publish(topic, b"y")
            await hub.publish(ours["hub card"], b"last")
        heard = set()
        while (message := (await take(link, 1))[0]).payload != b"last":
            heard |= {what for what, topic in everything.items() if topic == message.topic}
    for what, topic in everything.items():
        assert (what in said) == allowed(user, "publish", topic, name, client=client), what
        assert (what in heard) == allowed(user, "receive", topic, name, client=client), what


async def test_newcomers_listener_lets_nobody_in_without_the_account_of_invites(community: Secured) -> None:
    bare = community.newcomers.split("@")[1]
    for url in (f"mqtts://{bare}", f"mqtts://newcomer:guess@{bare}", f"mqtts://hub@{bare}", f"mqtts://{ALICE}@{bare}"):
        with pytest.raises(BrokerRefusedError):
            async with community.link(community.trusting(), url=url):
                pass


async def test_newcomer_cannot_put_a_member_out_by_taking_its_client_id(community: Secured, tmp_path: Path) -> None:
    async with community.hub():
        home, membership = await community.join(tmp_path / "ada")
        identity = Identity.load(home.keys)
        async with community.device(home) as heard:
            await heard.until("device-ready")
            async with community.link(community.trusting(), client_id=identity.id, url=community.newcomers) as link:
                await link.subscribe(Topics(membership.community).all_to(identity.id))
                await community.heard.until("device-joined")
            assert all(said["connected"] for said in heard.all("link"))


# -- the device refuses -----------------------------------------------------------------------------------------------


async def test_broker_with_a_certificate_for_another_host_is_refused(tmp_path: Path, tiny_q8: Path) -> None:
    with secured(tmp_path, tiny_q8, host="elsewhere.example") as community:
        url = f"mqtts://localhost:{community.broker.port}"
        error = await refusal(community, community.shown(ALICE), url=url)
    assert "another host" in str(error)
    assert "--host" in error.advice


async def test_broker_that_the_invites_authority_does_not_vouch_for_is_refused(
    community: Secured, tmp_path: Path
) -> None:
    invite = parse_invite(make_invite(community.home, uses=1, expires_seconds=60).encode())
    async with community.link(newcomer_tls(invite)(), url=invite.broker):
        pass
    (other := tmp_path / "other").mkdir()
    imposter = Authority.make(community.config.community, now=time.time())  # which takes the same name
    key = TlsKey.generate()
    certificate = imposter.certify_broker(["localhost"], key.request("localhost"), now=time.time())
    (other / "crt").write_bytes(certificate.pem())
    (other / "key").write_bytes(key.pem())
    config = ["allow_anonymous true", f"certfile {other / 'crt'}", f"keyfile {other / 'key'}", "user root"]
    with mosquitto(other, config) as broker:
        error = await refusal(community, newcomer_tls(invite)(), url=f"mqtts://localhost:{broker.port}")
    assert "vouches" in str(error)
    assert "new invite" in error.advice


@pytest.mark.parametrize("what", ["member", "expired", "not yet valid"])
async def test_broker_with_a_certificate_that_is_for_a_device_or_for_another_time_is_refused(
    community: Secured, tmp_path: Path, what: str
) -> None:
    (other := tmp_path / "other").mkdir()
    key, now = TlsKey.generate(), time.time()
    if what == "member":
        made = community.authority.certify_member("localhost", key.request("x"), now=now, life=DAYS)
    else:
        at = now - 3 * 86_400 if what == "expired" else now + 3 * 86_400
        made = community.authority.certify_broker(["localhost"], key.request("x"), now=at, life=DAYS)
    (other / "crt").write_bytes(made.pem())
    (other / "key").write_bytes(key.pem())
    config = ["allow_anonymous true", f"certfile {other / 'crt'}", f"keyfile {other / 'key'}", "user root"]
    with mosquitto(other, config) as broker:
        error = await refusal(community, community.trusting(), url=f"mqtts://localhost:{broker.port}")
    words = {"member": "certificate", "expired": "it has expired", "not yet valid": "it is not valid yet"}
    assert words[what] in str(error)
    if what != "member":
        assert time.strftime("%Y-%m-%d") in str(error)
        assert "clock" in error.advice


def test_who_was_never_a_member_has_nothing_to_be_revoked(community: Secured) -> None:
    with open_store(community.home) as store:
        assert b"BEGIN X509 CRL" in revoke(store, ALICE, now=time.time())
