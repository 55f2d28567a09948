"""Certificates for devices: the hub is the community's certificate authority, and keeps a book of what it issued.

Key, certificate and book lie together in the hub's directory of keys, and travel together in a backup. A certificate is
in the book before anybody gets it, so that whatever was given out can be revoked. A device that asks again for the same
key gets the same certificate, until it is due to be renewed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from agent.crypto.authority import Authority, Revoked
from agent.crypto.certificates import (
    CERTIFICATE_FILE,
    KEY_FILE,
    Certificate,
    TlsKey,
    compressed,
    public_id,
    read_request,
)
from agent.errors import MalformedMessageError, StateError, WrongKindError
from agent.federation.messages import Issued, JoinReply
from agent.hub.store import HubConfig, HubStore
from agent.paths import Home, explained_disk, write_atomically
from agent.transport.access import HUB_USER
from agent.transport.tls import Tls

BOOK_FILE = "certificates.db"
BROKER_CERTIFICATE_FILE = "server.crt"
LIST_FILE = "crl.pem"
"""The list of revoked certificates, among the files for the broker."""

MAX_LIVE = 16
"""Certificates that a device may hold at a time, for different keys; more are a sign that something asks in a loop."""

_SCHEMA = """CREATE TABLE IF NOT EXISTS certificates (
    serial TEXT PRIMARY KEY,      -- hex
    device TEXT NOT NULL,
    key TEXT NOT NULL,            -- hex SHA-256 of the public key
    certificate BLOB NOT NULL,    -- DER
    expires REAL NOT NULL,        -- Unix time, seconds
    revoked REAL                  -- likewise; null while it counts
) STRICT"""


class CertificateBook:
    """What the authority has issued, as long as it counts. One SQLite file; a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._explained():
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(_SCHEMA)
        with explained_disk(path):
            path.chmod(0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close()

    def add(self, certificate: Certificate) -> None:
        """Write one down; those that have expired are forgotten."""
        values = (
            certificate.serial,
            certificate.name,
            public_id(certificate.public),
            certificate.der,
            certificate.ends,
        )
        with self._explained():
            self._connection.execute("INSERT INTO certificates VALUES (?, ?, ?, ?, ?, NULL)", values)

    def forget_expired(self, now: float) -> None:
        """Forget what has ended by itself."""
        with self._explained():
            self._connection.execute("DELETE FROM certificates WHERE expires <= ?", (now,))

    def live(self, device: str) -> list[Certificate]:
        """Give what a device may still use, the one that lasts longest first."""
        query = "SELECT certificate FROM certificates WHERE device = ? AND revoked IS NULL ORDER BY expires DESC"
        with self._explained():
            return [Certificate.decode(bytes(row[0])) for row in self._connection.execute(query, (device,))]

    def revoke(self, device: str, now: float) -> int:
        """Have nothing of a device's count any more, and give how many certificates that was."""
        statement = "UPDATE certificates SET revoked = ? WHERE device = ? AND revoked IS NULL"
        with self._explained():
            return self._connection.execute(statement, (now, device)).rowcount

    def revoked(self) -> list[Revoked]:
        """Give what belongs on the list."""
        query = "SELECT serial, revoked FROM certificates WHERE revoked IS NOT NULL ORDER BY revoked, serial"
        with self._explained():
            return [Revoked(serial=str(row[0]), at=float(row[1])) for row in self._connection.execute(query)]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as cause:
            raise StateError(
                f"the book of certificates {self._path} cannot be used: {cause}",
                advice="Check the disk. If the file is damaged, restore it from a backup of the hub's keys.",
            ) from cause


def authority_of(home: Home, community: str, *, now: float) -> Authority:
    """Give the community's certificate authority, made the first time it is needed."""
    return Authority.load_or_make(home.keys, community, now=now)


def issue(store: HubStore, device: str, request: bytes, *, now: float) -> Certificate:
    """Give a device a certificate for the key in its request (PKCS#10, DER).

    Raises:
        MalformedMessageError: the request proves no key, or the device has asked for too many different ones.
    """
    config = store.config
    key = public_id(compressed(read_request(request)))
    with CertificateBook(store.home.keys / BOOK_FILE) as book:
        book.forget_expired(now)
        live = book.live(device)
        for certificate in live:
            if public_id(certificate.public) == key and now < certificate.renewal:
                return certificate
        if len(live) >= MAX_LIVE:
            raise MalformedMessageError(
                f"{device[:10]} has {len(live)} certificates that still count, and asks for another",
                advice="It was dropped. Older ones end by themselves; if this goes on, look into that device.",
            )
        life = dt.timedelta(seconds=config.certificate_seconds)
        authority = authority_of(store.home, config.community, now=now)
        certificate = authority.certify_member(device, request, now=now, life=life)
        book.add(certificate)
    return certificate


def with_credentials(reply: JoinReply, store: HubStore, device: str, request: bytes, *, now: float) -> JoinReply:
    """Give the answer to a device that was let in with what it needs to connect as a member.

    Nothing is added where the community's broker asks for no certificates, or the device for none.

    Raises:
        MalformedMessageError: the request proves no key.
    """
    config = store.config
    if not (config.certificates and request):
        return reply
    certificate = issue(store, device, request, now=now)
    authority = Certificate.decode(authority_of(store.home, config.community, now=now).pem())
    return reply.model_copy(
        update={"certificate": certificate.der, "authority": authority.der, "broker": config.member_broker}
    )


def renewed(store: HubStore, device: str, request: bytes, *, now: float) -> Issued:
    """Answer a member that asks for a new certificate.

    Raises:
        MalformedMessageError: the request proves no key.
        WrongKindError: this community has no certificates, any more perhaps.
    """
    config = store.config
    if not config.certificates:
        raise WrongKindError("a certificate was asked for where none are used", advice="It was dropped.")
    certificate = issue(store, device, request, now=now)
    authority = Certificate.decode(authority_of(store.home, config.community, now=now).pem())
    return Issued(certificate=certificate.der, authority=authority.der)


def revoke(store: HubStore, device: str, *, now: float) -> bytes:
    """Revoke every certificate of a device; gives the new list (PEM) for the broker, which is also :func:`published`.

    The broker keeps a connection that stands until it is told of the list and restarted, and the hub must refuse the
    device by itself: this only ends its certificates.
    """
    with CertificateBook(store.home.keys / BOOK_FILE) as book:
        book.revoke(device, now)
    return published(store, now=now)


def published(store: HubStore, *, now: float) -> bytes:
    """Sign the list of revoked certificates (PEM), and put it among the broker's files if they are on this machine.

    Whoever is no member any more is on it, whichever way it went.
    """
    config = store.config
    with CertificateBook(store.home.keys / BOOK_FILE) as book:
        book.forget_expired(now)
        for row in store.everybody():
            if row.standing in {"revoked", "left", "succeeded"}:
                book.revoke(row.device, now)
        revoked = book.revoked()
    authority = authority_of(store.home, config.community, now=now)
    signed = authority.revocation_list(revoked, number=store.next_number("revocation-list"), now=now)
    path = broker_list(config)
    if path is not None:
        write_atomically(path, signed, mode=0o644)
    return signed


def broker_list(config: HubConfig) -> Path | None:
    """Give where the broker's list is on this machine; None where its files are not here."""
    path = Path(config.broker_directory) / LIST_FILE
    return path if config.broker_directory and path.is_file() else None


def broker_certificate(config: HubConfig) -> Certificate | None:
    """Give the broker's own certificate, where its files are on this machine."""
    with contextlib.suppress(OSError, MalformedMessageError):
        if config.broker_directory:
            return Certificate.decode((Path(config.broker_directory) / BROKER_CERTIFICATE_FILE).read_bytes())
    return None


def hub_tls(home: Home, config: HubConfig, *, now: float) -> Tls:
    """Give what the hub connects with: a certificate of its own, made anew when it is due. Called for each connection.

    Raises:
        StateError: the keys cannot be read, or there is no room for the certificate.
    """
    authority = authority_of(home, config.community, now=now)
    key = TlsKey.load_or_make(home.keys)
    path = home.keys / CERTIFICATE_FILE
    if not _is_fresh(path, key, Certificate.decode(authority.pem()), now):
        life = dt.timedelta(seconds=config.certificate_seconds)
        made = authority.certify_member(HUB_USER, key.request(HUB_USER), now=now, life=life)
        write_atomically(path, made.pem())
    return Tls(authority=authority.pem(), certificate=path, key=home.keys / KEY_FILE)


def _is_fresh(path: Path, key: TlsKey, authority: Certificate, now: float) -> bool:
    try:
        found = Certificate.decode(path.read_bytes())
    except (OSError, MalformedMessageError):
        return False
    return found.public == key.public and now < found.renewal and found.is_issued_by(authority)
