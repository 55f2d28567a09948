"""What hub and devices say to one another: the bodies inside the envelopes (``docs/protocol.md``).

Every body is a frozen model with bounded fields, encoded as a canonical CBOR map. Decoding checks everything before the
body is used; what does not fit is a :class:`~agent.errors.MalformedMessageError`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from agent.crypto import canonical
from agent.crypto.succession import MAX_BYTES as MAX_LINK_BYTES
from agent.crypto.succession import MAX_LINKS
from agent.errors import MalformedMessageError
from agent.governance.charter import Charter, Sha256Hex
from agent.settings import printable
from agent.transport.transfer import CHUNK_BYTES, MAX_CHUNKS, TransferPlan
from agent.update.delta import Factors

MAX_BODY_BYTES = 96 * 1024
MAX_BODY_ITEMS = 2048
"""Values in one body, at most; the fullest one has 256 ranges. Walking 65,536 takes a tenth of a second, which somebody
hostile could ask for again and again."""

LARGEST_LOSS = 1000.0
"""What a verdict says of an adapter that is worse than this, or whose loss is no number, nats a token."""

Id16 = Annotated[bytes, Field(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, Field(min_length=32, max_length=32)]
CertificateBytes = Annotated[bytes, Field(max_length=4096)]
Text = Annotated[str, StringConstraints(max_length=500)]
_Count = Annotated[int, Field(ge=0, le=MAX_CHUNKS)]
Range = Annotated[tuple[_Count, _Count], Field(strict=False)]  # CBOR knows lists only


def _no_more_than_a_transfer_has(ranges: list[Range]) -> list[Range]:
    """Refuse ranges that name more chunks, together, than any transfer has: its receiver counts them out."""
    if sum(length for _first, length in ranges) > MAX_CHUNKS:
        message = f"they name more than {MAX_CHUNKS:,} chunks"
        raise ValueError(message)
    return ranges


Ranges = Annotated[list[Range], Field(max_length=256), AfterValidator(_no_more_than_a_transfer_has)]
"""Chunks as (first, how many)."""
_Number = Annotated[int, Field(ge=0, le=2**63 - 1)]
Span = Annotated[tuple[_Number, _Number], Field(strict=False)]


class Body(BaseModel):
    """One message body. The envelope kind of each is in :data:`KINDS`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def encode(self) -> bytes:
        """Give the canonical CBOR of the body."""
        return canonical.encode(_plain(self.model_dump(mode="python")))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a body.

        Raises:
            MalformedMessageError: it is not canonical CBOR, too large, or does not fit the model.
        """
        value = canonical.decode(data, max_bytes=MAX_BODY_BYTES, max_items=MAX_BODY_ITEMS)
        try:
            return cls.model_validate(value)
        except ValidationError as cause:
            first = cause.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            raise MalformedMessageError(
                f"a {cls.__name__} does not fit the protocol at {where}: {first['msg']}",
                advice="The sender runs another version, or the message was made up; it was dropped.",
            ) from cause


def _plain(value: Any) -> canonical.Value:
    """Turn tuples into lists and models' dumps into what CBOR knows."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    plain: canonical.Value = value
    return plain


Admission = Literal["automatic", "approval"]
"""Whether a hub lets in whoever holds an invite, or whom a steward has approved."""


class Card(Body):
    """Who the hub is. Retained; self-signed; its fingerprint is in every invite.

    Attributes:
        name: of the community.
        operator: who runs the hub, in the operator's own words; empty where they did not say.
        admission: how newcomers are let in.
        successions: how these keys came after earlier ones, oldest first (:mod:`agent.crypto.succession`).
    """

    name: Annotated[Text, AfterValidator(printable)]
    public: Annotated[bytes, Field(max_length=4096)]
    operator: Annotated[str, StringConstraints(max_length=200), AfterValidator(printable)] = ""
    admission: Admission = "automatic"
    successions: Annotated[list[Annotated[bytes, Field(max_length=MAX_LINK_BYTES)]], Field(max_length=MAX_LINKS)] = []


class CharterNotice(Body):
    """The community's charter. Retained; signed by the hub."""

    charter: Charter


class JoinRequest(Body):
    """A device asks to be let in; sealed for the hub."""

    public: Annotated[bytes, Field(max_length=4096)]
    proof: Bytes32
    nickname: Annotated[str, StringConstraints(max_length=64), AfterValidator(printable)]
    certificate_request: CertificateBytes = b""
    """PKCS#10, DER, for the device's TLS key."""


class JoinReply(Body):
    """The hub's answer; sealed for the device.

    Attributes:
        accepted: the device is a member.
        pending: it is not yet: a steward is to approve it. Asking again later gives the same answer or a better one.
        certificate: DER, for the key of the request; empty where the community's broker asks for none.
        authority: DER of the certificate of whoever issued it.
        broker: URL of the broker for members; empty where it is the one of the invite.
    """

    accepted: bool
    pending: bool = False
    username: Text = ""
    password: Text = ""
    message: Text = ""
    advice: Text = ""
    certificate: CertificateBytes = b""
    authority: CertificateBytes = b""
    broker: Text = ""


class Renew(Body):
    """A member asks for a new certificate. It may come by the newcomers' door, where the last one has expired."""

    certificate_request: Annotated[bytes, Field(min_length=1, max_length=4096)]


class Issued(Body):
    """The hub's answer: a certificate for the key of the request, and whose it is (both DER)."""

    certificate: Annotated[bytes, Field(min_length=1, max_length=4096)]
    authority: Annotated[bytes, Field(min_length=1, max_length=4096)]


class Manifest(Body):
    """What an adapter is: a release, or the candidate for one.

    Attributes:
        number: of the release; a candidate has the number it would get.
        sha256: hex, of the adapter's bytes (safetensors), unsealed.
        parent: hex SHA-256 of the adapter it grew from, empty for release 0.
        size: bytes.
    """

    number: Annotated[int, Field(ge=0, le=2**32)]
    sha256: Sha256Hex
    parent: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
    size: Annotated[int, Field(gt=0, le=2**31)]
    round: Annotated[int, Field(ge=0, le=2**32)]


class Announcement(Body):
    """The whole state of the hub's rounds in one retained message, so that a device may come at any time.

    Attributes:
        sequence: grows with every announcement; an older one is ignored.
        round: the current round, from 1.
        phase: ``open`` collects updates, ``merging`` does not, ``trial`` asks for verdicts, ``closed`` is the end.
        deadline: Unix time, milliseconds, at which the phase is looked at again.
        seal_key: HPKE public key of the round that updates are made for now; empty when none are wanted.
        factors: what devices train for that round.
        draw: devices whose lot for it is below this take part (:mod:`agent.federation.draw`); None for everybody.
        withdrawn: numbers of releases that the hub went back from, as (first, last); a device leaves such a release
            without asking its held-out text.
        forgotten: sequences between which the hub remembers no announcement, as (last before, first after), one for
            each time that it was started. A device that has seen one in between knows that the hub lost its memory of
            what came after: it was restored from a backup.
    """

    sequence: Annotated[int, Field(ge=0)]
    round: Annotated[int, Field(ge=0, le=2**32)]
    phase: Literal["open", "merging", "trial", "closed"]
    deadline: Annotated[int, Field(ge=0)]
    release: Manifest
    candidate: Manifest | None
    seal_key: Annotated[bytes, Field(max_length=2048)]
    factors: Factors = "both"
    draw: _Number | None = None
    withdrawn: Annotated[list[Span], Field(max_length=64)] = []
    forgotten: Annotated[list[Span], Field(max_length=64)] = []

    @property
    def collects(self) -> int:
        """The round that updates are made for now; 0 for none. It is the next one where this one is merged or tried."""
        if not self.seal_key:
            return 0
        return self.round if self.phase == "open" else self.round + 1

    def withdraws(self, release: int) -> bool:
        """Say whether the hub went back from a release of this number, or has forgotten that there was one."""
        return release > self.release.number or any(first <= release <= last for first, last in self.withdrawn)

    def forgets(self, seen: Announcement) -> bool:
        """Say whether the hub does not remember an announcement that was seen, and what came after it."""
        return any(before < seen.sequence < after for before, after in self.forgotten)


class Offer(Body):
    """The start of a transfer: what will come, and the sealed key that opens it.

    Attributes:
        transfer: id, also what receipts speak of.
        purpose: an ``update`` for a round, or an ``adapter``.
        round: of the update; 0 for an adapter.
        adapter: hex SHA-256 of the adapter; of the one it started from, for an update.
        size: bytes of all chunks together, as sent.
        chunk_bytes: of every chunk but the last, as sent: ``CHUNK_BYTES``, where there is more than one. Smaller ones
            would be no use but to have the receiver keep very many files.
        sha256: of all chunks together, as sent.
        sealed_key: HPKE-sealed 32-byte key of the chunks' ChaCha20-Poly1305.
    """

    transfer: Id16
    purpose: Literal["update", "adapter"]
    round: Annotated[int, Field(ge=0, le=2**32)]
    adapter: Sha256Hex
    size: Annotated[int, Field(gt=0, le=2**31)]
    chunk_bytes: Annotated[int, Field(gt=0, le=CHUNK_BYTES)]
    sha256: Bytes32
    sealed_key: Annotated[bytes, Field(max_length=2048)]

    @model_validator(mode="after")
    def _chunks_are_no_smaller_than_they_must_be(self) -> Self:
        if self.chunk_bytes != CHUNK_BYTES and self.size > self.chunk_bytes:
            message = f"chunks have {CHUNK_BYTES:,} bytes where there is more than one"
            raise ValueError(message)
        return self

    @property
    def plan(self) -> TransferPlan:
        """What the receiver holds the transfer to.

        Raises:
            TransferError: the numbers do not make a transfer.
        """
        return TransferPlan(id=self.transfer, total_bytes=self.size, chunk_bytes=self.chunk_bytes, sha256=self.sha256)


class Chunk(Body):
    """One sealed piece of a transfer."""

    transfer: Id16
    index: Annotated[int, Field(ge=0, lt=MAX_CHUNKS)]
    data: Annotated[bytes, Field(min_length=1, max_length=CHUNK_BYTES)]


class Want(Body):
    """A device asks the hub for an adapter, or for the chunks of it that it still misses.

    Attributes:
        missing: chunks as (first, how many); none means everything, the offer included.
        transfer: the one that the missing chunks belong to. Where the hub would send another one by now, it sends all.
        have: adapters that the device has: the hub may send the difference from one of them.
    """

    adapter: Sha256Hex
    missing: Ranges
    transfer: Annotated[bytes, Field(max_length=16)] = b""
    have: Annotated[list[Sha256Hex], Field(max_length=8)] = []


class Verdict(Body):
    """A device's judgement of a candidate on the text it held back.

    Attributes:
        about: id of this message, which its receipt names.
        before: mean loss with the current release, nats a token, at most :data:`LARGEST_LOSS`.
        after: mean loss with the candidate, likewise.
        targets: tokens that were predicted.
    """

    about: Id16
    round: Annotated[int, Field(ge=1, le=2**32)]
    candidate: Sha256Hex
    before: Annotated[float, Field(ge=0, le=LARGEST_LOSS, allow_inf_nan=False)]
    after: Annotated[float, Field(ge=0, le=LARGEST_LOSS, allow_inf_nan=False)]
    targets: Annotated[int, Field(gt=0, le=2**40)]


class Receipt(Body):
    """The receiver's durable state of a transfer or message.

    Attributes:
        about: the transfer or message.
        state: ``done`` (forget it), ``missing`` (send these), ``refused`` (forget it, it will never count).
        missing: chunks as (first, how many).
        reason: stable code of a refusal.
    """

    about: Id16
    state: Literal["done", "missing", "refused"]
    missing: Ranges = []
    reason: Annotated[str, StringConstraints(max_length=64)] = ""
    message: Text = ""
    advice: Text = ""


class Leave(Body):
    """A device says that it takes part no more; what it sent and is not merged yet is not to be.

    Attributes:
        about: id of this message, which its receipt names.
    """

    about: Id16


class Succeed(Body):
    """A device asks the hub, by its old keys, to take its new ones from now on.

    Attributes:
        public: the new ones.
        proof: their signature over :func:`agent.crypto.succession.statement`.
    """

    public: Annotated[bytes, Field(max_length=4096)]
    proof: Annotated[bytes, Field(min_length=64, max_length=64)]


class SuccessionReply(JoinReply):
    """The hub has taken the new keys; sealed for them. What a newcomer gets, the new keys get."""


class StandingNotice(Body):
    """The hub tells a device that it is no member any more.

    Attributes:
        standing: what it is.
        reason: a steward's words, if any.
        at: since when, Unix time, seconds.
    """

    standing: Literal["revoked"]
    reason: Text = ""
    at: Annotated[int, Field(ge=0)]


KINDS: dict[str, type[Body]] = {
    "card": Card,
    "charter": CharterNotice,
    "join": JoinRequest,
    "joined": JoinReply,
    "renew": Renew,
    "certificate": Issued,
    "round": Announcement,
    "offer": Offer,
    "chunk": Chunk,
    "want": Want,
    "verdict": Verdict,
    "receipt": Receipt,
    "leave": Leave,
    "standing": StandingNotice,
    "succeed": Succeed,
    "succeeded": SuccessionReply,
}
"""The body that belongs to each envelope kind."""
