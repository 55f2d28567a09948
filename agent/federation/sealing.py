"""How a large body is sealed for one receiver: HPKE seals a fresh key, the key seals the chunks.

Everything that must not be swapped is bound into HPKE's ``info`` (RFC 9180 section 5.1), because the single-shot API
has no associated data: what it is and in which direction, the community, the hub (by the fingerprint of its keys), the
device, and what else the value belongs to. The receiver's public key is bound by the KEM itself.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.crypto import canonical, sealing
from agent.crypto.sealing import TAG_BYTES
from agent.federation.messages import Offer
from agent.transport.transfer import CHUNK_BYTES, Check, TransferPlan

PLAIN_CHUNK_BYTES = CHUNK_BYTES - TAG_BYTES


@dataclass(frozen=True, slots=True)
class Parcel:
    """A sealed body, ready to be offered and sent."""

    offer: Offer
    chunks: list[bytes]


Direction: TypeAlias = Literal["to-hub", "to-device"]


def _info(kind: str, direction: Direction, community: bytes, hub: str, device: str, *rest: canonical.Value) -> bytes:
    """What every seal is bound to, and what else one of this kind is."""
    return canonical.encode([f"bramble/{kind}/2", direction, community, hub, device, *rest])


def update_info(
    community: bytes, hub: str, device: str, transfer: bytes, *, round_number: int, start_sha256: str
) -> bytes:
    """What an update's seal is bound to."""
    return _info("update", "to-hub", community, hub, device, transfer, round_number, start_sha256)


def adapter_info(community: bytes, hub: str, device: str, transfer: bytes, adapter_sha256: str) -> bytes:
    """What an adapter's seal is bound to, for the device it is sent to."""
    return _info("adapter", "to-device", community, hub, device, transfer, adapter_sha256)


def join_info(community: bytes, hub: str, device: str, invite: bytes) -> bytes:
    """What a join request's seal is bound to."""
    return _info("join", "to-hub", community, hub, device, invite)


def joined_info(community: bytes, hub: str, device: str, invite: bytes) -> bytes:
    """What the answer's seal is bound to."""
    return _info("joined", "to-device", community, hub, device, invite)


def succeeded_info(community: bytes, hub: str, old: str, new: str) -> bytes:
    """What the answer's seal is bound to that a device gets which changed its keys."""
    return _info("succeeded", "to-device", community, hub, new, old)


def wrap_update(
    body: bytes, *, seal_key: bytes, community: bytes, hub: str, device: str, round_number: int, start_sha256: str
) -> Parcel:
    """Seal one device's encoded update for the key of a round; ``hub`` is the fingerprint of the hub's keys."""
    transfer = secrets.token_bytes(16)
    key = secrets.token_bytes(32)
    chunks = sealing.seal_stream(body, key, PLAIN_CHUNK_BYTES)
    info = update_info(community, hub, device, transfer, round_number=round_number, start_sha256=start_sha256)
    sealed_key = sealing.seal(seal_key, key, info)
    offer = make_offer(
        chunks,
        transfer=transfer,
        purpose="update",
        round_number=round_number,
        adapter=start_sha256,
        sealed_key=sealed_key,
    )
    return Parcel(offer=offer, chunks=chunks)


def make_offer(
    chunks: Sequence[bytes],
    *,
    transfer: bytes,
    purpose: Literal["update", "adapter"],
    round_number: int,
    adapter: str,
    sealed_key: bytes,
) -> Offer:
    """Describe a stream of sealed chunks for its receiver."""
    whole = hashlib.sha256()
    for chunk in chunks:
        whole.update(chunk)
    return Offer(
        transfer=transfer,
        purpose=purpose,
        round=round_number,
        adapter=adapter,
        size=sum(map(len, chunks)),
        chunk_bytes=CHUNK_BYTES,
        sha256=whole.digest(),
        sealed_key=sealed_key,
    )


def check_of(key: bytes, plan: TransferPlan) -> Check:
    """Give what tells a chunk of a transfer from what was sealed: whether it opens with the transfer's key.

    So each is judged as it arrives, and one that was damaged is asked for alone; nothing more has to travel for it.
    """
    last = plan.chunk_count - 1
    return lambda index, chunk: sealing.is_intact(chunk, key, index, final=index == last)


def adapter_key(content_key: bytes, content_sha256: bytes) -> bytes:
    """The key of one form of an adapter: of the release's secret and of what is sealed, so that no two share one."""
    return hmac.digest(content_key, b"bramble/adapter-key/1\0" + content_sha256, "sha256")


def adapter_transfer_id(adapter_sha256: str, device: str, content_sha256: bytes) -> bytes:
    """The transfer id under which a device receives one form of an adapter: the same each time, so that it resumes."""
    parts = (b"bramble/adapter-transfer/2", adapter_sha256.encode(), device.encode(), content_sha256)
    return hashlib.sha256(b"\0".join(parts)).digest()[:16]
