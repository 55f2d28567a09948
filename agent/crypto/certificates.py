"""Certificates as their holders see them: the TLS key, the request for a certificate, and what is checked of one.

A device's name at the broker is the common name of its certificate, so the broker can hold each connection to the
topics of that device. The key is P-256: every TLS library speaks it, where many refuse Ed25519.
The profile is RFC 5280's; requests are PKCS#10 (RFC 2986). Who issues is :mod:`agent.crypto.authority`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import CorruptStateError, MalformedMessageError, NotInitialisedError, StateError
from agent.paths import explained_disk, read_secret, write_atomically

KEY_FILE = "tls.key"
CERTIFICATE_FILE = "tls.crt"
AUTHORITY_FILE = "authority.crt"

MAX_CERTIFICATE_BYTES = 4096
"""Of a certificate or a request, in DER. A device's has 600, a request 300."""

POINT_BYTES = 33
"""Of a P-256 public key, compressed (SEC 1 section 2.3.3)."""

SKEW = dt.timedelta(days=1)
"""How long before it was made a certificate begins to be valid, for machines whose clocks are behind."""

_ADVICE = "It was dropped. The sender speaks another protocol, or was changed on its way."


class TlsKey:
    """A P-256 private key. On the disk it is a PEM file of mode 0600, because TLS libraries read it from there."""

    __slots__ = ("_key",)

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """Make a fresh key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, directory: Path, name: str = KEY_FILE) -> Self:
        """Read a key from a directory of keys.

        Raises:
            NotInitialisedError: there is none.
            StateError: others on this machine can read it.
            CorruptStateError: the file is no such key.
        """
        path = directory / name
        with explained_disk(path):
            try:
                data, mode = read_secret(path, MAX_CERTIFICATE_BYTES)
            except FileNotFoundError as cause:
                raise NotInitialisedError(
                    f"there is no key in {path}", advice="It is made when a device joins, and with a new hub."
                ) from cause
        if mode:
            raise StateError(
                f"the key in {path} can be read by others on this machine (mode {mode})",
                advice=f"If nobody else had access, run: chmod 600 {path}. Otherwise remove it, and join again.",
            )
        key: object
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise CorruptStateError(
                f"the key in {path} is damaged", advice="Restore it from a backup, or remove it and join again."
            )
        return cls(key)

    @classmethod
    def load_or_make(cls, directory: Path, name: str = KEY_FILE) -> Self:
        """Give the key that lies there, or make one and put it there, mode 0600."""
        try:
            return cls.load(directory, name)
        except NotInitialisedError:
            made = cls.generate()
            write_atomically(directory / name, made.pem())
            return made

    @property
    def public(self) -> bytes:
        """The public half, compressed: 33 bytes."""
        return compressed(self._key.public_key())

    def pem(self) -> bytes:
        """Give the private key as PKCS#8 PEM, not encrypted."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def request(self, name: str) -> bytes:
        """Give a request for a certificate (PKCS#10, DER), which proves that this key is held."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self._key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.DER)

    def sign_with(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a certificate with this key."""
        return builder.sign(self._key, hashes.SHA256())

    def sign_list(self, builder: x509.CertificateRevocationListBuilder) -> x509.CertificateRevocationList:
        """Sign a list of revoked certificates with this key."""
        return builder.sign(self._key, hashes.SHA256())

    def __repr__(self) -> str:
        return "TlsKey(…)"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says, as far as its holder and its issuer need to know.

    Attributes:
        der: the whole of it.
        name: its common name: a device's id, ``hub``, or a broker's host.
        public: the public key, compressed.
        begins: Unix time, seconds; a day before it was made (:data:`SKEW`).
        ends: likewise, when it expires.
        serial: lower-case hex.
    """

    der: bytes
    name: str
    public: bytes
    begins: float
    ends: float
    serial: str

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a certificate for a P-256 key, DER or PEM.

        Raises:
            MalformedMessageError: it is none.
        """
        return cls.of(_load(data))

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """Read what a certificate says.

        Raises:
            MalformedMessageError: it is not for a P-256 key, or has no common name.
        """
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if len(names) != 1:
            raise MalformedMessageError("a certificate names nobody", advice=_ADVICE)
        return cls(
            der=certificate.public_bytes(serialization.Encoding.DER),
            name=str(names[0].value),
            public=_p256(certificate.public_key()),
            begins=certificate.not_valid_before_utc.timestamp(),
            ends=certificate.not_valid_after_utc.timestamp(),
            serial=f"{certificate.serial_number:x}",
        )

    @property
    def renewal(self) -> float:
        """Unix time from which a new one is asked for: when two thirds of its life are over."""
        return self.ends - (self.ends - self.begins - SKEW.total_seconds()) / 3

    def pem(self) -> bytes:
        """Give it as PEM."""
        return _load(self.der).public_bytes(serialization.Encoding.PEM)

    def is_issued_by(self, authority: Certificate) -> bool:
        """Say whether an authority's key has signed it (not whether it is valid at this time)."""
        try:
            _load(self.der).verify_directly_issued_by(_load(authority.der))
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def read_request(data: bytes) -> ec.EllipticCurvePublicKey:
    """Give the public key of a request whose sender holds the private one. The rest of it counts for nothing.

    Raises:
        MalformedMessageError: it is no request for a P-256 key, or its signature is another key's.
    """
    try:
        request = x509.load_der_x509_csr(data[: MAX_CERTIFICATE_BYTES + 1])
        valid = len(data) <= MAX_CERTIFICATE_BYTES and request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as cause:
        raise MalformedMessageError("a request for a certificate cannot be read", advice=_ADVICE) from cause
    if not valid:
        raise MalformedMessageError("a request for a certificate does not prove its key", advice=_ADVICE)
    _p256(key)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def authority_name(community: str) -> x509.Name:
    """Give the name of a community's certificate authority; ``community`` is 32 hexadecimal digits."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bramble community {community}")])


def trust_anchor(community: str, public: bytes) -> bytes:
    """Give what TLS libraries take as a trust anchor for an authority of which only the public key is known, as PEM.

    A trust anchor is a name and a key (RFC 5280 section 6.1.1 (d)). OpenSSL wants them in the form of a certificate
    that vouches for itself, and does not look at its signature, so any key may have made it; this one is thrown away.

    Raises:
        MalformedMessageError: ``public`` is no compressed P-256 key.
    """
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    except ValueError as cause:
        raise MalformedMessageError("the key of a certificate authority cannot be read", advice=_ADVICE) from cause
    now = dt.datetime.now(dt.UTC)
    builder = authority_builder(community, key, begins=now - SKEW, ends=now + dt.timedelta(days=1))
    return TlsKey.generate().sign_with(builder).public_bytes(serialization.Encoding.PEM)


def authority_builder(
    community: str, key: ec.EllipticCurvePublicKey, *, begins: dt.datetime, ends: dt.datetime
) -> x509.CertificateBuilder:
    """Give the certificate of an authority, not yet signed: it may issue for end entities and revoke, nothing else."""
    name = authority_name(community)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def key_usage(*, authority: bool) -> x509.KeyUsage:
    """Give what a key may be used for (RFC 5280 section 4.2.1.3): to issue, or to sign handshakes."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def compressed(key: ec.EllipticCurvePublicKey) -> bytes:
    """Give a P-256 public key in 33 bytes."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def public_id(public: bytes) -> str:
    """Give hex SHA-256 of a compressed public key, as a name for it."""
    return hashlib.sha256(public).hexdigest()


def _p256(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedMessageError("a certificate is for a key that is not P-256", advice=_ADVICE)
    return compressed(key)


def _load(data: bytes) -> x509.Certificate:
    try:
        if len(data) > 2 * MAX_CERTIFICATE_BYTES:
            raise ValueError  # noqa: TRY301 (said below, like all that is no certificate)
        return x509.load_pem_x509_certificate(data) if data.startswith(b"-") else x509.load_der_x509_certificate(data)
    except ValueError as cause:
        raise MalformedMessageError("a certificate cannot be read", advice=_ADVICE) from cause
