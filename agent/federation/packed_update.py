"""What a round's training becomes before it travels: the difference, clipped, compressed, sealed, in chunks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from agent.federation.messages import Chunk, Manifest, Offer
from agent.federation.sealing import wrap_update
from agent.federation.store import Membership
from agent.llm.adapter import Adapter
from agent.training.job import TrainResult
from agent.update.delta import Factors, difference
from agent.update.feedback import send
from agent.update.wire import UpdateHeader


@dataclass(frozen=True, slots=True)
class PackedUpdate:
    """A sealed update.

    Attributes:
        offer: what the hub is told first.
        chunks: the sealed bytes, in order.
        update_id: hex SHA-256 of the encoded update, before sealing.
        fp32_bytes: of the same numbers as plain float32, both factors of every module.
        norm: Euclidean norm of the update as the hub will read it.
        residual: what it leaves over, for the next one; it stays on the device.
    """

    offer: Offer
    chunks: tuple[Chunk, ...]
    update_id: str
    fp32_bytes: int
    norm: float
    residual: Adapter | None


def pack_update(
    membership: Membership,
    result: TrainResult,
    *,
    start: Adapter,
    trained: Adapter,
    residual: Adapter | None = None,
    device: str,
    round_number: int,
    release: Manifest,
    seal_key: bytes,
    factors: Factors = "both",
) -> PackedUpdate:
    """Seal what a round changed in the adapter it started from, and what earlier updates left over."""
    charter = membership.charter
    header = UpdateHeader(
        round=round_number,
        base_sha256=charter.base_sha256,
        start_release=release.sha256,
        rank=start.rank,
        alpha=start.alpha,
        tokens=result.tokens,
        steps=result.steps,
        seed=result.seed,
        factors=factors,
    )
    sending = send(
        header,
        start,
        difference(start, trained, factors),
        residual,
        compression=charter.compression,
        density=charter.density,
        max_norm=charter.max_update_norm,
    )
    body, sent = sending.update.data, sending.update.sent
    sealed = wrap_update(
        body,
        seal_key=seal_key,
        community=bytes.fromhex(membership.community),
        hub=membership.hub_identity.fingerprint(),
        device=device,
        round_number=round_number,
        start_sha256=release.sha256,
    )
    transfer = sealed.offer.transfer
    return PackedUpdate(
        offer=sealed.offer,
        chunks=tuple(Chunk(transfer=transfer, index=index, data=data) for index, data in enumerate(sealed.chunks)),
        update_id=hashlib.sha256(body).hexdigest(),
        fp32_bytes=sent.parameter_count * 4,
        norm=sent.norm,
        residual=sending.residual,
    )
