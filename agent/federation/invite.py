"""Invites: one line that carries a newcomer to a community's hub.

``bramble1:`` and base64url of a canonical CBOR array, with the first four bytes of its SHA-256 behind it, so that a
line that was cut or mistyped is told from one that the hub refuses. What is random or a hash travels as bytes, so that
the line stays short enough for a QR code in a terminal of 80 columns.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass

from agent.crypto import canonical
from agent.errors import InvalidInviteError, MalformedMessageError, OversizedMessageError

PREFIX = "bramble1:"
MAX_BYTES = 1024
_BASE32_PADDING = "===="
MAX_EXPIRES = 2**40
"""Unix time, some 30,000 years from now: later than every clock, and not later than calendars can say."""

_ADVICE = "Ask the hub's operator for a new one (`bramble hub invite`), and paste the whole line."


@dataclass(frozen=True, slots=True)
class Invite:
    """What a newcomer needs to know, and one secret.

    Attributes:
        broker: URL of the MQTT broker.
        community: 16-byte id.
        hub: fingerprint of the hub's public keys (52 characters of base32); nothing else is trusted.
        invite: 8-byte id of this invite.
        secret: 32 bytes that prove to the hub that its holder was invited; never sent.
        broker_password: for the broker's narrow newcomer account; empty where the URL has what it takes.
        expires: Unix time, seconds.
        authority: public key of the certificate authority that the broker is known by (P-256, compressed); empty for
            those of the system.
    """

    broker: str
    community: bytes
    hub: str
    invite: bytes
    secret: bytes
    broker_password: str
    expires: int
    authority: bytes = b""

    @property
    def broker_username(self) -> str:
        """The newcomer account at an embedded broker."""
        return f"join-{self.invite.hex()}"

    def proof(self, device_public: bytes) -> bytes:
        """Prove knowledge of the secret for one device's keys (HMAC-SHA-256, 32 bytes)."""
        return invite_proof(self.secret, self.community, device_public)

    def encode(self) -> str:
        """Give the line."""
        body = canonical.encode(
            [
                self.broker,
                self.community,
                base64.b32decode(self.hub.upper() + _BASE32_PADDING),
                self.invite,
                self.secret,
                self.broker_password,
                self.expires,
                self.authority,
            ]
        )
        checked = body + hashlib.sha256(body).digest()[:4]
        return PREFIX + base64.urlsafe_b64encode(checked).decode().rstrip("=")


def invite_proof(secret: bytes, community: bytes, device_public: bytes) -> bytes:
    """HMAC-SHA-256 of the device's public keys under the invite's secret."""
    return hmac.digest(secret, b"bramble/join/1\0" + community + device_public, "sha256")


def parse_invite(line: str) -> Invite:
    """Read an invite.

    Raises:
        InvalidInviteError: it is no invite, or was cut or changed on its way.
    """
    text = re.sub(r"\s+", "", line)
    if not text.startswith(PREFIX):
        raise InvalidInviteError(f"this is no invite: an invite begins with {PREFIX!r}", advice=_ADVICE)
    encoded = text.removeprefix(PREFIX)
    if len(encoded) > 2 * MAX_BYTES:
        raise InvalidInviteError(f"this invite is {len(encoded)} characters long, too long to be one", advice=_ADVICE)
    try:
        checked = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        body, checksum = checked[:-4], checked[-4:]
        if hashlib.sha256(body).digest()[:4] != checksum:
            raise InvalidInviteError("this invite was cut or mistyped: its checksum is wrong", advice=_ADVICE)
        match canonical.decode(body, max_bytes=MAX_BYTES):
            case [
                str(broker),
                bytes(community),
                bytes(hub),
                bytes(name),
                bytes(secret),
                str(password),
                int(expires),
                bytes(authority),
            ]:
                pass
            case _:
                raise InvalidInviteError("this invite is of a kind this version does not know", advice=_ADVICE)
    except (binascii.Error, ValueError, MalformedMessageError, OversizedMessageError) as cause:
        raise InvalidInviteError("this invite is damaged", advice=_ADVICE) from cause
    if (len(community), len(hub), len(name), len(secret)) != (16, 32, 8, 32) or len(authority) not in {0, 33}:
        raise InvalidInviteError("this invite is damaged: its parts have the wrong lengths", advice=_ADVICE)
    if isinstance(expires, bool) or not 0 <= expires <= MAX_EXPIRES:
        raise InvalidInviteError("this invite is damaged: it expires at a time that does not exist", advice=_ADVICE)
    return Invite(
        broker=broker,
        community=community,
        hub=base64.b32encode(hub).decode().lower().rstrip("="),
        invite=name,
        secret=secret,
        broker_password=password,
        expires=expires,
        authority=authority,
    )
