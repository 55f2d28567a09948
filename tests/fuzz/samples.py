"""One good instance of everything that travels, with keys that are the same in each run."""

from __future__ import annotations

from functools import cache
from typing import Any

from agent.crypto import canonical
from agent.crypto.envelope import sign
from agent.crypto.identity import Identity
from agent.crypto.sealing import SealKey
from agent.crypto.succession import Succession
from agent.federation.invite import Invite, invite_proof
from agent.federation.messages import (
    Announcement,
    Body,
    Card,
    CharterNotice,
    Chunk,
    Issued,
    JoinReply,
    JoinRequest,
    Leave,
    Manifest,
    Offer,
    Receipt,
    Renew,
    StandingNotice,
    Succeed,
    SuccessionReply,
    Verdict,
    Want,
)
from agent.governance.charter import Charter, OuterOptimiser, RoundRules
from agent.transport.transfer import CHUNK_BYTES

COMMUNITY = bytes(range(16))
HASHES = tuple(letter * 64 for letter in "abcdef")
SECRET = b"s" * 32
INVITE_ID = b"invite-1"


@cache
def identity(name: str) -> Identity:
    """Give the keys of somebody, always the same ones."""
    return Identity(
        signing_seed=name.encode().ljust(32, b"\0"),
        seal_key=SealKey.from_seed(name.encode().ljust(96, b"\0")),
        role="hub" if "hub" in name else "device",
    )


def hub() -> Identity:
    """Give the hub."""
    return identity("hub")


def device() -> Identity:
    """Give a device."""
    return identity("device")


def invite() -> Invite:
    """Give an invite to the hub."""
    return Invite(
        broker="mqtts://broker.example:8883,wss://broker.example/mqtt",
        community=COMMUNITY,
        hub=hub().public.fingerprint(),
        invite=INVITE_ID,
        secret=SECRET,
        broker_password="password",
        expires=1_800_000_000,
    )


def manifest(number: int = 3) -> Manifest:
    """Give a release."""
    return Manifest(number=number, sha256=HASHES[0], parent=HASHES[1], size=123_456, round=number)


def bodies() -> dict[str, Body]:
    """Give a body of every kind, with something in every field."""
    public = device().public.encode()
    reply: dict[str, Any] = {
        "accepted": True,
        "pending": True,
        "username": "user",
        "password": "password",
        "message": "welcome",
        "advice": "stay",
        "certificate": b"certificate",
        "authority": b"authority",
        "broker": "mqtts://broker.example",
    }
    return {
        "card": Card(
            name="Bees of Berlin",
            public=hub().public.encode(),
            operator="Ada",
            admission="approval",
            successions=[Succession.make(COMMUNITY, identity("earlier hub"), hub()).encode()],
        ),
        "charter": CharterNotice(charter=charter()),
        "join": JoinRequest(
            public=public,
            proof=invite_proof(SECRET, COMMUNITY, public),
            nickname="pi",
            certificate_request=b"request",
        ),
        "joined": JoinReply(**reply),
        "renew": Renew(certificate_request=b"request"),
        "certificate": Issued(certificate=b"certificate", authority=b"authority"),
        "leave": Leave(about=b"l" * 16),
        "standing": StandingNotice(standing="revoked", reason="lost", at=1_700_000_000),
        "succeed": Succeed(public=public, proof=b"p" * 64),
        "succeeded": SuccessionReply(**reply),
        "round": Announcement(
            sequence=1_700_000_000_000,
            round=4,
            phase="trial",
            deadline=1_700_000_600_000,
            release=manifest(),
            candidate=manifest(4),
            seal_key=hub().public.seal_key,
            factors="a",
            draw=2**62,
            withdrawn=[(1, 2)],
            forgotten=[(5, 9)],
        ),
        "offer": Offer(
            transfer=b"t" * 16,
            purpose="update",
            round=4,
            adapter=HASHES[0],
            size=3 * CHUNK_BYTES + 5,
            chunk_bytes=CHUNK_BYTES,
            sha256=b"h" * 32,
            sealed_key=b"k" * 1168,
        ),
        "chunk": Chunk(transfer=b"t" * 16, index=2, data=b"sealed chunk"),
        "want": Want(adapter=HASHES[0], missing=[(0, 2), (5, 1)], transfer=b"t" * 16, have=[HASHES[1], HASHES[2]]),
        "verdict": Verdict(about=b"v" * 16, round=4, candidate=HASHES[0], before=3.5, after=3.25, targets=4096),
        "receipt": Receipt(
            about=b"t" * 16,
            state="refused",
            missing=[(1, 3)],
            reason="too-late",
            message="The update came too late.",
            advice="Train again.",
        ),
    }


def charter() -> Charter:
    """Give a charter in which optional things are there, too."""
    return Charter(
        name="Bees of Berlin",
        base_name="seedling",
        base_sha256=HASHES[0],
        base_bytes=4_876_032,
        target_modules=("q_proj", "v_proj"),
        outer=OuterOptimiser(name="nesterov"),
        compression="topk",
        rounds=RoundRules(mode="asynchronous", wanted=10),
    )


def envelope(kind: str, body: bytes, sender: Identity | None = None) -> bytes:
    """Give a signed message."""
    return sign(
        sender or hub(), kind=kind, community=COMMUNITY, counter=1_700_000_000_000, time=1_700_000_000_000, body=body
    )


def fields(data: bytes) -> canonical.Value:
    """Give the CBOR value of good bytes."""
    return canonical.decode(data, max_bytes=1 << 20)
