"""What a device connects with: nothing is kept that does not fit, and its session's name is nobody else's to know."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import pytest

from agent.crypto.authority import Authority
from agent.crypto.certificates import Certificate, TlsKey
from agent.crypto.identity import Identity
from agent.errors import MalformedMessageError
from agent.federation.credentials import Credentials, client_id, newcomer_tls
from agent.federation.invite import Invite
from agent.federation.messages import JoinReply
from agent.transport.tls import Tls

COMMUNITY = "0123456789abcdef" * 2
DEVICE = "a" * 52
NOW = time.time()
AUTHORITY, OTHER = (Authority.make(COMMUNITY, now=NOW) for _ in range(2))
MONTH = dt.timedelta(days=30)


@pytest.fixture
def mine(tmp_path: Path) -> Credentials:
    return Credentials(tmp_path, DEVICE)


def invite(authority: bytes) -> Invite:
    return Invite(
        broker="mqtts://b.example",
        community=bytes.fromhex(COMMUNITY),
        hub="a" * 52,
        invite=bytes(8),
        secret=bytes(32),
        broker_password="",
        expires=2**40,
        authority=authority,
    )


def issued(mine: Credentials, *, by: Authority = AUTHORITY, life: dt.timedelta = MONTH) -> bytes:
    return by.certify_member(DEVICE, mine.request(), now=NOW, life=life).der


def reply(mine: Credentials, *, by: Authority = AUTHORITY) -> JoinReply:
    return JoinReply(accepted=True, certificate=issued(mine, by=by), authority=Certificate.decode(by.pem()).der)


def test_client_id_is_always_the_same_and_follows_from_nothing_that_others_know() -> None:
    one, two = Identity.generate(), Identity.generate()
    assert client_id(one, COMMUNITY) == client_id(one, COMMUNITY)
    assert len({client_id(one, COMMUNITY), client_id(one, "f" * 32), client_id(two, COMMUNITY)}) == 3
    assert len(client_id(one, COMMUNITY)) == 23
    assert client_id(one, COMMUNITY) not in one.id + one.public.fingerprint()


def test_longer_lasting_certificate_takes_the_place_of_the_one_in_use_and_no_older_one_does(mine: Credentials) -> None:
    assert mine.certificate() is None
    short, long = issued(mine, life=dt.timedelta(days=1)), issued(mine)
    for data in (short, long, short):
        kept = mine.keep(data, AUTHORITY.pem())
    assert kept.der == long
    assert mine.certificate() == Certificate.decode(long)


def test_certificate_for_another_key_device_or_of_another_authority_is_not_kept(mine: Credentials) -> None:
    mine.request()
    strangers = TlsKey.generate().request(DEVICE)
    for data in (
        AUTHORITY.certify_member(DEVICE, strangers, now=NOW, life=MONTH).der,
        AUTHORITY.certify_member("b" * 52, mine.request(), now=NOW, life=MONTH).der,
        issued(mine, by=OTHER),
        b"nonsense",
    ):
        with pytest.raises(MalformedMessageError):
            mine.keep(data, AUTHORITY.pem())
    assert mine.certificate() is None


def test_answer_of_a_hub_with_another_authority_than_its_invite_is_refused(mine: Credentials) -> None:
    with pytest.raises(MalformedMessageError, match="another certificate authority"):
        mine.joined(reply(mine, by=OTHER), invite(AUTHORITY.public))
    with pytest.raises(MalformedMessageError, match="no certificate"):
        mine.joined(JoinReply(accepted=True), invite(AUTHORITY.public))
    assert mine.joined(reply(mine), invite(AUTHORITY.public)) == AUTHORITY.pem()
    assert mine.certificate() is not None


def test_brokers_that_the_system_knows_need_no_authority_and_may_want_no_certificate(mine: Credentials) -> None:
    assert mine.joined(reply(mine), invite(b"")) == b""
    assert mine.certificate() is not None
    assert mine.joined(JoinReply(accepted=True), invite(b"")) == b""
    assert mine.certificate() is None  # that of the earlier community is gone
    assert newcomer_tls(invite(b""))() == Tls()


def test_certificate_of_an_earlier_community_gives_way_though_it_lasts_longer(mine: Credentials) -> None:
    mine.keep(issued(mine, by=OTHER, life=dt.timedelta(days=300)), OTHER.pem())
    mine.joined(reply(mine), invite(AUTHORITY.public))
    found = mine.certificate()
    assert found is not None
    assert found.is_issued_by(Certificate.decode(AUTHORITY.pem()))
