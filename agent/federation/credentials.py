"""What a device connects with: its TLS key and certificate, beside its identity, and the name its session has.

They are files, because TLS libraries read them from there; the key never leaves the device. A certificate is looked at
before it is kept, so that what is in the file is for this key, this device, and of the authority that was pinned.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent.crypto.certificates import CERTIFICATE_FILE, KEY_FILE, Certificate, TlsKey, trust_anchor
from agent.crypto.identity import Identity
from agent.errors import MalformedMessageError
from agent.federation.invite import Invite
from agent.federation.messages import JoinReply
from agent.federation.store import Membership
from agent.paths import write_atomically
from agent.transport.tls import Tls

_CLIENT_DOMAIN = b"bramble/client-id/1\0"
_CLIENT_LETTERS = 23  # what every broker of MQTT 3.1.1 takes (section 3.1.3.1); 115 bits
_ADVICE = "It was dropped; the hub is asked again."


def client_id(identity: Identity, community: str) -> str:
    """Give the MQTT client id of a member or hub: always the same, and known to nobody but itself and the broker.

    Who knows a client id can take its session over and put its owner out, whatever the access rules say. So it must not
    follow from what others know: it is a hash of a signature that is never shown (Ed25519 is deterministic).
    """
    digest = hashlib.sha256(identity.sign(_CLIENT_DOMAIN + community.encode())).digest()
    return base64.b32encode(digest).decode().lower()[:_CLIENT_LETTERS]


def newcomer_tls(invite: Invite) -> Callable[[], Tls]:
    """Give whom a newcomer trusts: the authority whose key is in the invite; the system's where there is none."""
    if not invite.authority:
        return Tls
    return partial(Tls, authority=trust_anchor(invite.community.hex(), invite.authority))


def member_tls(credentials: Credentials, membership: Membership) -> Tls:
    """Give what a member connects with; asked before each connection, because the certificate may have been renewed.

    One for an earlier identity of this device is not shown: its connection could say nothing in the new one's name.
    """
    certificate = credentials.certificate()
    shows = certificate is not None and certificate.name == credentials.device
    return Tls(
        authority=membership.authority or None,
        certificate=credentials.certificate_path if shows else None,
        key=credentials.key_path if shows else None,
    )


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files of one device.

    Attributes:
        directory: of its keys.
        device: its id.
    """

    directory: Path
    device: str

    @property
    def key_path(self) -> Path:
        """The private key, PEM, mode 0600."""
        return self.directory / KEY_FILE

    @property
    def certificate_path(self) -> Path:
        """The certificate, PEM; there only where the community's broker asks for one."""
        return self.directory / CERTIFICATE_FILE

    def request(self) -> bytes:
        """Give a request for a certificate (PKCS#10, DER); the key is made the first time."""
        return TlsKey.load_or_make(self.directory).request(self.device)

    def certificate(self) -> Certificate | None:
        """Give the certificate that is in use; None for none."""
        try:
            return Certificate.decode(self.certificate_path.read_bytes())
        except (FileNotFoundError, MalformedMessageError):
            return None

    def keep(self, certificate: bytes, authority: bytes) -> Certificate:
        """Take a certificate (DER) into use, unless the one here lasts as long; gives the one that is in use then.

        Raises:
            MalformedMessageError: it is for another key or device, or the authority (PEM or DER) has not issued it.
        """
        found = Certificate.decode(certificate)
        key = TlsKey.load(self.directory)
        if found.public != key.public or found.name != self.device:
            raise MalformedMessageError("a certificate for another key or device came", advice=_ADVICE)
        if not _of(found, authority):
            raise MalformedMessageError("a certificate of another authority came", advice=_ADVICE)
        known = self.certificate()
        if known is None or known.name != self.device or known.ends < found.ends or not _of(known, authority):
            write_atomically(self.certificate_path, found.pem())
            return found
        return known

    def joined(self, reply: JoinReply, invite: Invite) -> bytes:
        """Keep what the hub gave to a device that it let in; gives the authority that brokers are known by (PEM).

        It is empty where the invite pins none, so that brokers are known by the system's. A certificate of an earlier
        community is removed.

        Raises:
            MalformedMessageError: what came does not fit this device or the invite.
        """
        if not reply.certificate:
            if invite.authority:
                raise MalformedMessageError("the hub gave no certificate", advice="Ask the hub's operator.")
            self.certificate_path.unlink(missing_ok=True)
            return b""
        authority = Certificate.decode(reply.authority)
        if invite.authority and authority.public != invite.authority:
            raise MalformedMessageError(
                "the hub names another certificate authority than its invite", advice="Ask for a new invite."
            )
        known = self.certificate()
        if known is not None and not known.is_issued_by(authority):
            self.certificate_path.unlink(missing_ok=True)
        self.keep(reply.certificate, reply.authority)
        return authority.pem() if invite.authority else b""


def _of(certificate: Certificate, authority: bytes) -> bool:
    return certificate.is_issued_by(Certificate.decode(authority))
