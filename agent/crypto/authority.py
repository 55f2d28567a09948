"""A community's certificate authority: who may connect to its broker, and as whom. The hub holds its key.

It has one P-256 key and vouches for itself. Certificates of devices live for days and are renewed, so that one that
was lost, or should be nobody's any more, ends soon by itself; a list of revoked ones ends it at once where the broker
reads that. Brokers, the hub and devices are kept apart by extended key usage (RFC 5280 section 4.2.1.12): what a
device was given does not make it a broker.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.crypto.certificates import (
    AUTHORITY_FILE,
    SKEW,
    Certificate,
    TlsKey,
    authority_builder,
    authority_name,
    key_usage,
    read_request,
)
from agent.errors import CorruptStateError, MalformedMessageError, NotInitialisedError, StateError
from agent.paths import explained_disk, write_atomically

AUTHORITY_KEY_FILE = "authority.key"

AUTHORITY_LIFE = dt.timedelta(days=20 * 365)
"""Of the authority's own certificate; a community that outlives it is made anew."""

DEVICE_LIFE = dt.timedelta(days=30)
BROKER_LIFE = dt.timedelta(days=397)
"""Of a broker's certificate: the most that TLS clients of all kinds accept."""

MAX_LIFE = dt.timedelta(days=397)


@dataclass(frozen=True, slots=True)
class Revoked:
    """A certificate that counts no more before its end.

    Attributes:
        serial: hex.
        at: Unix time, seconds, at which it was revoked.
    """

    serial: str
    at: float


class Authority:
    """Issues certificates for one community. See :meth:`load_or_make`."""

    __slots__ = ("_certificate", "_key", "community")

    def __init__(self, *, community: str, key: TlsKey, certificate: x509.Certificate) -> None:
        self.community = community
        self._key = key
        self._certificate = certificate

    @classmethod
    def make(cls, community: str, *, now: float) -> Self:
        """Make a fresh one; ``now`` is Unix time, seconds."""
        key = TlsKey.generate()
        begins = _time(now) - SKEW
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key.public)
        builder = authority_builder(community, public, begins=begins, ends=begins + AUTHORITY_LIFE)
        return cls(community=community, key=key, certificate=key.sign_with(builder))

    @classmethod
    def load(cls, directory: Path, community: str) -> Self:
        """Read the authority from a hub's keys.

        Raises:
            NotInitialisedError: there is none.
            CorruptStateError: its files do not belong together, or to this community.
        """
        key = TlsKey.load(directory, AUTHORITY_KEY_FILE)
        path = directory / AUTHORITY_FILE
        with explained_disk(path):
            try:
                data = path.read_bytes()
            except FileNotFoundError as cause:
                raise NotInitialisedError(
                    f"there is no certificate in {path}", advice="Restore the hub's keys from a backup."
                ) from cause
        with contextlib.suppress(MalformedMessageError):
            found = Certificate.decode(data)
            certificate = x509.load_der_x509_certificate(found.der)
            if found.public == key.public and certificate.subject == authority_name(community):
                return cls(community=community, key=key, certificate=certificate)
        raise CorruptStateError(
            f"the certificate authority in {directory} is damaged, or of another community",
            advice="Restore the hub's keys from a backup.",
        )

    @classmethod
    def load_or_make(cls, directory: Path, community: str, *, now: float) -> Self:
        """Give the authority that lies there; make one if there is none. The key's file has mode 0600."""
        try:
            return cls.load(directory, community)
        except NotInitialisedError:
            made = cls.make(community, now=now)
            write_atomically(directory / AUTHORITY_FILE, made.pem())
            write_atomically(directory / AUTHORITY_KEY_FILE, made._key.pem())  # noqa: SLF001 (ours)
            return made

    @property
    def public(self) -> bytes:
        """The public key, compressed: what invites carry."""
        return self._key.public

    def pem(self) -> bytes:
        """Give its own certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def certify_member(self, name: str, request: bytes, *, now: float, life: dt.timedelta) -> Certificate:
        """Issue a client certificate for a device, or for the hub.

        Args:
            name: whose; what the broker will know the connection by.
            request: PKCS#10, DER. Only its key counts, not what it asks for.
            now: Unix time, seconds.
            life: how long it is good for.

        Raises:
            MalformedMessageError: the request is none, or does not prove its key.
        """
        where = x509.UniformResourceIdentifier(f"bramble://{self.community}/{name}")
        return self._issue(name, read_request(request), [where], ExtendedKeyUsageOID.CLIENT_AUTH, now=now, life=life)

    def certify_broker(
        self, hosts: Sequence[str], request: bytes, *, now: float, life: dt.timedelta = BROKER_LIFE
    ) -> Certificate:
        """Issue a server certificate for a broker; its holder cannot connect to one with it.

        Args:
            hosts: names and addresses at which clients reach it (RFC 6125), one at least.
            request: PKCS#10, DER.
            now: Unix time, seconds.
            life: how long it is good for.

        Raises:
            MalformedMessageError: the request is none, or does not prove its key.
        """
        names = [_host(host) for host in hosts]
        return self._issue(
            hosts[0][:64], read_request(request), names, ExtendedKeyUsageOID.SERVER_AUTH, now=now, life=life
        )

    def revocation_list(self, revoked: Iterable[Revoked], *, number: int, now: float) -> bytes:
        """Give a signed list of revoked certificates (RFC 5280 section 5), as PEM.

        It says that a newer one comes when the authority ends: a broker with a list that is overdue lets nobody in, and
        what is not on an old list ends within weeks.

        Args:
            revoked: all that are not expired yet.
            number: grows with each list.
            now: Unix time, seconds.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_time(now) - SKEW)
            .next_update(self._certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(int(one.serial, 16)).revocation_date(_time(one.at))
            builder = builder.add_revoked_certificate(entry.build())
        return self._key.sign_list(builder).public_bytes(serialization.Encoding.PEM)

    def _issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        alternatives: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        *,
        now: float,
        life: dt.timedelta,
    ) -> Certificate:
        begins = max(_time(now) - SKEW, self._certificate.not_valid_before_utc)
        ends = min(_time(now) + min(life, MAX_LIFE), self._certificate.not_valid_after_utc)
        if ends <= begins:
            raise StateError(
                f"the clock here says {_time(now):%Y-%m-%d}, and the certificate authority is from {begins:%Y-%m-%d}",
                advice="Set this machine's clock, then start again.",
            )
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        return Certificate.of(self._key.sign_with(builder))

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        found = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC)
