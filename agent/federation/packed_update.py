"""What a round's training becomes before it travels: the difference, clipped, compressed, sealed, in chunks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from agent.federation.messages import Chunk, Manifest, Offer
from agent.federation.sealing import wrap_update
from agent.federation.store import Membership
from agent.llm.adapter import Adapter
from agent.training.job import TrainResult
from agent.update.delta import clip, difference
from agent.update.wire import UpdateHeader, encode_update


@dataclass(frozen=True, slots=True)
class PackedUpdate:
    """A sealed update.

    Attributes:
        offer: what the hub is told first.
        chunks: the sealed bytes, in order.
        update_id: hex SHA-256 of the encoded update, before sealing.
        fp32_bytes: of the same numbers as plain float32.
        norm: Euclidean norm of the update, after clipping.
    """

    offer: Offer
    chunks: tuple[Chunk, ...]
    update_id: str
    fp32_bytes: int
    norm: float


def pack_update(
    membership: Membership,
    result: TrainResult,
    *,
    start: Adapter,
    trained: Adapter,
    device: str,
    round_number: int,
    release: Manifest,
    seal_key: bytes,
) -> PackedUpdate:
    """Seal what a round changed in the adapter it started from."""
    charter = membership.charter
    delta = clip(difference(start, trained), charter.max_update_norm)
    header = UpdateHeader(
        round=round_number,
        base_sha256=charter.base_sha256,
        start_release=release.sha256,
        rank=start.rank,
        alpha=start.alpha,
        tokens=result.tokens,
        steps=result.steps,
        seed=result.seed,
    )
    body = encode_update(header, delta, charter.compression, density=charter.density)
    sealed = wrap_update(
        body,
        seal_key=seal_key,
        community=bytes.fromhex(membership.community),
        device=device,
        round_number=round_number,
        start_sha256=release.sha256,
    )
    transfer = sealed.offer.transfer
    return PackedUpdate(
        offer=sealed.offer,
        chunks=tuple(Chunk(transfer=transfer, index=index, data=data) for index, data in enumerate(sealed.chunks)),
        update_id=hashlib.sha256(body).hexdigest(),
        fp32_bytes=delta.parameter_count * 4,
        norm=delta.norm,
    )
