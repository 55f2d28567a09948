"""The hub as certificate authority: what it issues, to whom, how often, and what it can take back."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from cryptography import x509

from agent.crypto.authority import AUTHORITY_KEY_FILE
from agent.crypto.certificates import CERTIFICATE_FILE, Certificate, TlsKey
from agent.errors import MalformedMessageError, WrongKindError
from agent.events import Events
from agent.federation.messages import JoinReply, Renew
from agent.hub.broker_files import BrokerPlan, write_broker_files
from agent.hub.issuing import (
    BOOK_FILE,
    LIST_FILE,
    MAX_LIVE,
    CertificateBook,
    authority_of,
    hub_tls,
    issue,
    published,
    renewed,
    revoke,
    with_credentials,
)
from agent.hub.process import _warn_of_the_end
from agent.hub.store import HubStore
from tests.hub.desk import Desk, make_desk

NOW = time.time()
DAY = 86_400.0


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = make_desk(tmp_path / "hub")
    made.store.save_config(made.config.model_copy(update={"certificates": True, "member_broker": "mqtts://b.example"}))
    return made


def request() -> bytes:
    return TlsKey.generate().request("x")


def listed(signed: bytes) -> set[str]:
    return {f"{entry.serial_number:x}" for entry in x509.load_pem_x509_crl(signed)}


def test_device_that_asks_again_for_the_same_key_gets_the_same_certificate_until_it_is_due(desk: Desk) -> None:
    device, asked = desk.names[0], request()
    first = issue(desk.store, device, asked, now=NOW)
    assert first.name == device
    assert issue(desk.store, device, asked, now=NOW + 19 * DAY) == first
    second = issue(desk.store, device, asked, now=NOW + 21 * DAY)
    assert second.ends == pytest.approx(NOW + 51 * DAY, abs=2)
    assert issue(desk.store, device, asked, now=NOW + 22 * DAY) == second


def test_device_gets_no_more_certificates_than_a_bound_and_again_when_old_ones_have_ended(desk: Desk) -> None:
    for _ in range(MAX_LIVE):
        issue(desk.store, desk.names[0], request(), now=NOW)
    with pytest.raises(MalformedMessageError, match="still count"):
        issue(desk.store, desk.names[0], request(), now=NOW)
    issue(desk.store, desk.names[1], request(), now=NOW)
    issue(desk.store, desk.names[0], request(), now=NOW + 31 * DAY)
    with CertificateBook(desk.home.keys / BOOK_FILE) as book:
        assert len(book.live(desk.names[0])) == 1


def test_revoking_ends_every_certificate_of_one_device_until_it_has_expired(desk: Desk) -> None:
    theirs = {issue(desk.store, desk.names[0], request(), now=NOW).serial for _ in range(3)}
    kept = issue(desk.store, desk.names[1], request(), now=NOW)
    assert listed(revoke(desk.store, desk.names[0], now=NOW)) == theirs
    assert listed(published(desk.store, now=NOW + 29 * DAY)) == theirs
    assert listed(published(desk.store, now=NOW + 31 * DAY)) == set()
    again = issue(desk.store, desk.names[0], request(), now=NOW + 1)  # whether it may ask is not for the book to say
    assert again.serial not in theirs | {kept.serial}


def test_list_is_put_among_the_brokers_files_and_has_a_higher_number_each_time(desk: Desk, tmp_path: Path) -> None:
    directory = tmp_path / "broker"
    write_broker_files(desk.home, BrokerPlan(hosts=("b.example",), directory=directory), now=NOW)
    before = (directory / LIST_FILE).read_bytes()
    issue(desk.store, desk.names[0], request(), now=NOW)
    signed = revoke(desk.store, desk.names[0], now=NOW)
    assert (directory / LIST_FILE).read_bytes() == signed
    numbers = [
        x509.load_pem_x509_crl(data).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for data in (before, signed)
    ]
    assert numbers[0] < numbers[1]


@pytest.mark.parametrize(("certificates", "asks"), [(True, True), (True, False), (False, True)])
def test_answer_to_a_newcomer_has_a_certificate_where_the_broker_wants_one_and_the_device_asks(
    desk: Desk, *, certificates: bool, asks: bool
) -> None:
    store: HubStore = desk.store
    store.save_config(store.config.model_copy(update={"certificates": certificates}))
    plain = JoinReply(accepted=True)
    reply = with_credentials(plain, store, desk.names[0], request() if asks else b"", now=NOW)
    if not (certificates and asks):
        assert reply == plain
        return
    authority = Certificate.decode(reply.authority)
    assert Certificate.decode(reply.certificate).is_issued_by(authority)
    assert authority.public == authority_of(desk.home, desk.config.community, now=NOW).public
    assert reply.broker == "mqtts://b.example"
    assert JoinReply.decode(reply.encode()) == reply


def test_where_no_certificates_are_used_nobody_gets_one_and_asking_is_held_against_nobody(desk: Desk) -> None:
    desk.store.save_config(desk.store.config.model_copy(update={"certificates": False}))
    with pytest.raises(WrongKindError):  # and not one of the errors that are strikes
        renewed(desk.store, desk.names[0], request(), now=NOW)


@pytest.mark.parametrize("size", [0, 4097])
def test_request_without_or_beyond_its_size_is_refused_before_it_is_read(size: int) -> None:
    with pytest.raises(MalformedMessageError):
        Renew.decode(b"\xa1\x73certificate_request\x59" + size.to_bytes(2, "big") + bytes(size))


def test_hub_makes_its_own_certificate_and_a_new_one_when_it_is_due_or_damaged(desk: Desk) -> None:
    path = desk.home.keys / CERTIFICATE_FILE

    def serial(now: float) -> str:
        assert hub_tls(desk.home, desk.store.config, now=now).certificate == path
        return Certificate.decode(path.read_bytes()).serial

    first = serial(NOW)
    assert serial(NOW + 19 * DAY) == first
    second = serial(NOW + 21 * DAY)
    assert second != first
    path.write_bytes(b"damaged")
    assert serial(NOW + 21 * DAY) != second
    assert Certificate.decode(path.read_bytes()).name == "hub"


@pytest.mark.parametrize(("days_ago", "warns"), [(0, False), (366, False), (368, True), (400, True)])
def test_hub_warns_before_the_brokers_certificate_ends(
    desk: Desk, tmp_path: Path, days_ago: int, *, warns: bool
) -> None:
    plan = BrokerPlan(hosts=("b.example",), directory=tmp_path / "broker")
    (desk.home.keys / AUTHORITY_KEY_FILE).unlink(missing_ok=True)
    authority_of(desk.home, desk.config.community, now=NOW - 1000 * DAY)
    config = write_broker_files(desk.home, plan, now=NOW - days_ago * DAY)
    heard: list[str] = []
    _warn_of_the_end(config, Events(quiet=True, listeners=[lambda event, _fields: heard.append(event)]))
    assert (heard == ["broker-certificate-ends"]) is warns


def test_book_is_closed_to_others(desk: Desk) -> None:
    issue(desk.store, desk.names[0], request(), now=NOW)
    assert stat.S_IMODE((desk.home.keys / BOOK_FILE).stat().st_mode) == 0o600
