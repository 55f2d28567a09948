"""Certificates hold to RFC 5280, say what they are for, and what is none is refused."""

from __future__ import annotations

import datetime as dt
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st

from agent.crypto.authority import AUTHORITY_KEY_FILE, Authority, Revoked
from agent.crypto.certificates import KEY_FILE, SKEW, Certificate, TlsKey, read_request, trust_anchor
from agent.errors import CorruptStateError, MalformedMessageError, NotInitialisedError, StateError

COMMUNITY = "0123456789abcdef" * 2
DEVICE = "a" * 52
NOW = 1_900_000_000.0
MONTH = dt.timedelta(days=30)

AUTHORITY = Authority.make(COMMUNITY, now=NOW)
KEY = TlsKey.generate()


def loaded(certificate: Certificate | bytes) -> x509.Certificate:
    if isinstance(certificate, bytes):
        return x509.load_pem_x509_certificate(certificate)
    return x509.load_der_x509_certificate(certificate.der)


def of_a_device(*, now: float = NOW, life: dt.timedelta = MONTH) -> Certificate:
    return AUTHORITY.certify_member(DEVICE, KEY.request(DEVICE), now=now, life=life)


def of_a_broker(*hosts: str) -> Certificate:
    return AUTHORITY.certify_broker(hosts or ("broker.example",), KEY.request("x"), now=NOW)


def policy() -> PolicyBuilder:
    """A verifier of others: the web's rules, which are stricter than RFC 5280's."""
    return PolicyBuilder().store(Store([loaded(AUTHORITY.pem())])).time(dt.datetime.fromtimestamp(NOW, dt.UTC))


def test_certificate_of_a_device_is_valid_for_clients_and_names_device_and_community() -> None:
    certificate = loaded(of_a_device())
    verified = policy().build_client_verifier().verify(certificate, [])
    assert verified.subjects == [x509.UniformResourceIdentifier(f"bramble://{COMMUNITY}/{DEVICE}")]
    assert certificate.subject.rfc4514_string() == f"CN={DEVICE}"
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert of_a_device().public == KEY.public


@pytest.mark.parametrize("host", ["broker.example", "127.0.0.1", "::1"])
def test_certificate_of_a_broker_is_valid_for_its_hosts_alone(host: str) -> None:
    certificate = loaded(of_a_broker("first.example", host))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(list(names)) == 2
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    policy().build_server_verifier(x509.DNSName("first.example")).verify(certificate, [])
    with pytest.raises(VerificationError, match="leaf certificate has no matching subjectAltName"):
        policy().build_server_verifier(x509.DNSName("other.example")).verify(certificate, [])


def test_what_is_for_clients_serves_no_broker_and_the_other_way_round() -> None:
    with pytest.raises(VerificationError, match="EKU"):
        policy().build_client_verifier().verify(loaded(of_a_broker()), [])
    with pytest.raises(VerificationError, match="no matching subjectAltName"):  # it names no host to begin with
        policy().build_server_verifier(x509.DNSName(DEVICE)).verify(loaded(of_a_device()), [])


@pytest.mark.parametrize("of_a_member", [True, False])
def test_extensions_are_critical_where_rfc_5280_wants_it(*, of_a_member: bool) -> None:
    certificate = loaded(of_a_device() if of_a_member else of_a_broker())
    critical = {extension.oid._name for extension in certificate.extensions if extension.critical}
    assert critical == {"basicConstraints", "keyUsage"}
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert 0 < certificate.serial_number < 2**159
    issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    own = loaded(AUTHORITY.pem()).extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert issuer == own.digest


def test_authority_may_issue_for_end_entities_and_revoke_and_nothing_else() -> None:
    certificate = loaded(AUTHORITY.pem())
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign) == (True, True, True)
    assert not usage.value.digital_signature


def test_certificate_begins_a_day_early_and_is_renewed_at_two_thirds_of_its_life() -> None:
    certificate = of_a_device()
    assert certificate.begins == NOW - SKEW.total_seconds()
    assert certificate.ends == NOW + MONTH.total_seconds()
    assert certificate.renewal == NOW + MONTH.total_seconds() * 2 / 3


def test_nothing_outlives_its_authority_or_a_year() -> None:
    late = NOW + dt.timedelta(days=20 * 365 - 10).total_seconds()
    assert of_a_device(now=late).ends == loaded(AUTHORITY.pem()).not_valid_after_utc.timestamp()
    assert of_a_device(life=dt.timedelta(days=9999)).ends == NOW + dt.timedelta(days=397).total_seconds()


def test_hub_whose_clock_is_before_its_authority_was_made_says_so() -> None:
    with pytest.raises(StateError, match="1970") as caught:
        of_a_device(now=1000.0)
    assert "clock" in caught.value.advice


def test_serials_are_not_repeated() -> None:
    assert len({of_a_device().serial for _ in range(50)}) == 50


def test_request_proves_its_key_and_nothing_else_of_it_counts() -> None:
    wish = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name.from_rfc4514_string("CN=hub"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    data = wish.public_bytes(serialization.Encoding.DER)
    certificate = loaded(AUTHORITY.certify_member(DEVICE, data, now=NOW, life=MONTH))
    assert certificate.subject.rfc4514_string() == f"CN={DEVICE}"
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


def other_requests() -> list[bytes]:
    """Requests that prove nothing: for other kinds of keys, or cut, or changed in the signature."""
    good = KEY.request(DEVICE)
    found = [b"", good[:-1], good[:-1] + bytes([good[-1] ^ 1]), good + bytes(5000)]
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        found.append(request.sign(key, algorithm).public_bytes(serialization.Encoding.DER))
    return found


@pytest.mark.parametrize("number", range(6))
def test_request_that_proves_no_p256_key_is_refused(number: int) -> None:
    with pytest.raises(MalformedMessageError):
        read_request(other_requests()[number])


@given(st.binary(max_size=700) | st.binary(max_size=30).map(lambda noise: KEY.request(DEVICE)[:-30] + noise))
def test_anything_else_is_no_request_and_no_certificate(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        read_request(data)
    with pytest.raises(MalformedMessageError):
        Certificate.decode(data)


def test_certificate_survives_its_forms_and_knows_its_issuer() -> None:
    certificate, own = of_a_device(), Certificate.decode(AUTHORITY.pem())
    assert Certificate.decode(certificate.der) == Certificate.decode(certificate.pem()) == certificate
    assert certificate.is_issued_by(own)
    assert not certificate.is_issued_by(Certificate.decode(Authority.make(COMMUNITY, now=NOW).pem()))


def test_list_of_revoked_certificates_is_signed_and_stands_as_long_as_the_authority() -> None:
    serial = of_a_device().serial
    data = AUTHORITY.revocation_list([Revoked(serial, NOW)], number=7, now=NOW)
    found = x509.load_pem_x509_crl(data)
    public = loaded(AUTHORITY.pem()).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert found.is_signature_valid(public)
    assert [f"{entry.serial_number:x}" for entry in found] == [serial]
    assert found.next_update_utc == loaded(AUTHORITY.pem()).not_valid_after_utc
    assert found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7


def test_trust_anchor_is_made_from_the_public_key_alone() -> None:
    anchor = trust_anchor(COMMUNITY, AUTHORITY.public)
    assert loaded(anchor).subject == loaded(AUTHORITY.pem()).subject
    assert Certificate.decode(anchor).public == AUTHORITY.public
    ssl.create_default_context(cadata=anchor.decode())
    for nonsense in (b"", bytes(33), b"\x02" + b"\xff" * 32):
        with pytest.raises(MalformedMessageError):
            trust_anchor(COMMUNITY, nonsense)


def test_keys_are_made_once_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    with pytest.raises(NotInitialisedError):
        TlsKey.load(tmp_path)
    made = TlsKey.load_or_make(tmp_path)
    authority = Authority.load_or_make(tmp_path, COMMUNITY, now=NOW)
    assert TlsKey.load_or_make(tmp_path).public == made.public
    assert Authority.load_or_make(tmp_path, COMMUNITY, now=NOW).public == authority.public
    for name in (KEY_FILE, AUTHORITY_KEY_FILE):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in repr(made)


def test_key_that_others_can_read_or_that_is_damaged_is_refused(tmp_path: Path) -> None:
    TlsKey.load_or_make(tmp_path)
    (tmp_path / KEY_FILE).write_bytes(b"-----BEGIN PRIVATE KEY-----")
    with pytest.raises(CorruptStateError):
        TlsKey.load(tmp_path)
    if os.name == "posix":
        (tmp_path / KEY_FILE).chmod(0o640)
        with pytest.raises(StateError, match="can be read by others"):
            TlsKey.load(tmp_path)


def test_authority_of_another_community_or_with_another_key_is_refused(tmp_path: Path) -> None:
    Authority.load_or_make(tmp_path, COMMUNITY, now=NOW)
    with pytest.raises(CorruptStateError):
        Authority.load(tmp_path, "f" * 32)
    (tmp_path / AUTHORITY_KEY_FILE).write_bytes(KEY.pem())
    with pytest.raises(CorruptStateError):
        Authority.load(tmp_path, COMMUNITY)
