r"""The envelope every message travels in.

On the wire it is the canonical CBOR array ``[version, kind, community, sender, counter, time, body, signature]``. The
signature is Ed25519 over ``"bramble/signed/" + role of the sender + "\0"`` and then ``SHA-512("bramble/envelope/2\0" +
canonical CBOR of the first seven)``: a device's key signs nothing that a hub could have said.

Reading is in two steps, so that nobody uses a body by mistake whose signature was not checked: ``parse`` gives an
``Unverified`` that says who claims to have sent it, and ``verify`` turns it into an ``Envelope``.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from agent.crypto import canonical
from agent.crypto.identity import SIGNATURE_BYTES, DeviceId, Identity, PublicIdentity, is_device_id
from agent.crypto.replay import MAX_COUNTER
from agent.errors import BadSignatureError, MalformedMessageError, OversizedMessageError

VERSION: Final = 2
MAX_BYTES: Final = 96 * 1024 - 512
"""The largest envelope. With its topic and MQTT's header the packet stays within 96 KiB."""

MAX_OVERHEAD: Final = 256
"""What an envelope adds to its body, at most."""

MAX_BODY_BYTES: Final = MAX_BYTES - MAX_OVERHEAD
MAX_TIME: Final = 2**53 - 1
COMMUNITY_BYTES: Final = 16

_DOMAIN = b"bramble/envelope/2\0"
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_ADVICE = "It is dropped. If this repeats, the sender runs another version or somebody is forging messages."


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message whose sender is certain."""

    version: int
    kind: str
    community: bytes
    """Which community it belongs to, 16 bytes."""
    sender: DeviceId
    counter: int
    """Grows with every message of this sender."""
    time: int
    """When the sender says it was sent: milliseconds since 1970, UTC."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Unverified:
    """A message that is well formed and says who sent it. Nothing in it is to be believed yet."""

    claimed: Envelope
    signature: bytes
    digest: bytes
    """What the signature is over, beside the sender's role: 64 bytes."""

    @property
    def kind(self) -> str:
        """What it claims to be."""
        return self.claimed.kind

    @property
    def community(self) -> bytes:
        """The community it claims to belong to."""
        return self.claimed.community

    @property
    def sender(self) -> DeviceId:
        """Who it claims to come from: whose key to look up."""
        return self.claimed.sender

    @property
    def counter(self) -> int:
        """The counter it claims, for a look into the replay window before paying for the signature check."""
        return self.claimed.counter


def sign(identity: Identity, *, kind: str, community: bytes, counter: int, time: int, body: bytes) -> bytes:
    """Sign ``body`` and give the envelope's bytes.

    Args:
        identity: who sends.
        kind: what the body is; lower case, digits and hyphens, 32 characters at most.
        community: 16 bytes.
        counter: larger than any this sender used before.
        time: milliseconds since 1970, UTC.
        body: at most ``MAX_BODY_BYTES``.

    Raises:
        OversizedMessageError: the envelope would not fit one MQTT packet of 96 KiB.
        ValueError: a field outside its range.
    """
    envelope = Envelope(
        version=VERSION, kind=kind, community=community, sender=identity.id, counter=counter, time=time, body=body
    )
    wrong = _wrong_field(envelope)
    if wrong:
        raise ValueError(f"an envelope's {wrong} is out of range")
    if len(body) > MAX_BODY_BYTES:
        raise _oversized(len(body), MAX_BODY_BYTES)
    fields = _fields(envelope)
    return canonical.encode([*fields, identity.sign(_digest(fields))])


def parse(data: bytes) -> Unverified:
    """Read an envelope without believing it.

    Raises:
        OversizedMessageError: more than ``MAX_BYTES``; nothing of it was read.
        MalformedMessageError: not an envelope of this version.
    """
    match canonical.decode(data, max_bytes=MAX_BYTES, max_items=16):
        case [int(version), *_] if version is not True and version != VERSION:
            raise MalformedMessageError(
                f"An envelope has version {version}; version {VERSION} is understood here.",
                advice="One of the two sides needs an update.",
            )
        case [int(version), str(kind), bytes(community), str(sender), int(counter), int(time), bytes(body), bytes(sig)]:
            claimed = Envelope(
                version=version,
                kind=kind,
                community=community,
                sender=DeviceId(sender),
                counter=counter,
                time=time,
                body=body,
            )
        case _:
            raise MalformedMessageError("A message is not an envelope.", advice=_ADVICE)
    wrong = "signature" if len(sig) != SIGNATURE_BYTES else _wrong_field(claimed)
    if wrong:
        raise MalformedMessageError(f"An envelope's {wrong} is out of range.", advice=_ADVICE)
    return Unverified(claimed, sig, _digest(_fields(claimed)))


def verify(unverified: Unverified, signer: PublicIdentity) -> Envelope:
    """Check the signature and give the message.

    Args:
        unverified: from ``parse``.
        signer: the public keys, and with them the role, of whoever ``unverified.sender`` names.

    Raises:
        BadSignatureError: it was not signed by the holder of those keys in that role, or another sender is claimed.
    """
    claimed = unverified.claimed
    if signer.id != claimed.sender or not signer.has_signed(unverified.signature, unverified.digest):
        raise BadSignatureError(
            f"A message of kind {claimed.kind} was not signed by {claimed.sender[:10]}, who it names as its sender.",
            advice=_ADVICE,
        )
    return claimed


def _fields(envelope: Envelope) -> list[canonical.Value]:
    return [
        envelope.version,
        envelope.kind,
        envelope.community,
        envelope.sender,
        envelope.counter,
        envelope.time,
        envelope.body,
    ]


def _digest(fields: list[canonical.Value]) -> bytes:
    return hashlib.sha512(_DOMAIN + canonical.encode(fields)).digest()


def _wrong_field(envelope: Envelope) -> str | None:
    """Name the field that is out of range. Booleans are integers to Python, not to the protocol."""
    right = {
        "version": envelope.version is not True,
        "kind": _KIND.fullmatch(envelope.kind) is not None,
        "community": len(envelope.community) == COMMUNITY_BYTES,
        "sender": is_device_id(envelope.sender),
        "counter": not isinstance(envelope.counter, bool) and 0 <= envelope.counter <= MAX_COUNTER,
        "time": not isinstance(envelope.time, bool) and 0 <= envelope.time <= MAX_TIME,
    }
    return next((field for field, fits in right.items() if not fits), None)


def _oversized(size: int, limit: int) -> OversizedMessageError:
    return OversizedMessageError(
        f"A message body of {size} bytes does not fit: at most {limit} do.",
        advice="Large things are sealed as a stream and sent as a transfer of chunks.",
    )
