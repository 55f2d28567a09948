"""One device's work in one round: train from a release, take the difference, clip, compress, seal, queue."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.data.consent import ConsentBook
from agent.errors import AdapterError, ConsentMissingError, StateError
from agent.federation.messages import Manifest
from agent.federation.packed_update import PackedUpdate, pack_update
from agent.federation.planning import plan_round
from agent.federation.sending import queue_transfer
from agent.federation.store import DeviceStore, Membership, Residual, RoundRecord
from agent.federation.text import PreparedText
from agent.llm.adapter import Adapter, from_bytes, read_adapter
from agent.paths import BlobStore, write_atomically
from agent.settings import DeviceSettings
from agent.training.job import PlanResult, Progress, TrainJob, TrainResult
from agent.training.process import Workers, run_worker
from agent.transport.outbox import Outbox
from agent.transport.topics import Topics
from agent.update.delta import Factors, start_for_rank
from agent.update.feedback import fits


@dataclass(frozen=True, slots=True)
class Learned:
    """What a round's training gave.

    Attributes:
        update_id: hex SHA-256 of the encoded update, before sealing.
        wire_bytes: of the sealed update; ``fp32_bytes`` of the same numbers as plain float32.
        norm: Euclidean norm of the update as the hub will read it.
    """

    result: TrainResult
    update_id: str
    wire_bytes: int
    fp32_bytes: int
    norm: float


def round_seed(device: str, round_number: int) -> int:
    """The seed of a device's training in a round: recorded by being computable."""
    return int.from_bytes(hashlib.sha256(f"bramble/seed/1\0{device}\0{round_number}".encode()).digest()[:4], "big")


def training_job(
    membership: Membership,
    settings: DeviceSettings,
    text: PreparedText,
    *,
    start: Path,
    adapter: Adapter,
    seed: int,
    directory: Path,
    steps: int | None = None,
    fitted: PlanResult | None = None,
    factors: Factors = "both",
    moments: Path | None = None,
) -> TrainJob:
    """Say what a worker has to do for one round of this community, in the way that a plan fitted into its memory."""
    charter = membership.charter
    plan = charter.training
    return TrainJob(
        base_path=membership.base,
        base_sha256=charter.base_sha256,
        threads=settings.threads,
        windows_path=text.train,
        start_adapter=start,
        rank=adapter.rank,
        alpha=adapter.alpha,
        target_modules=charter.target_modules,
        steps=plan.steps if steps is None else steps,
        batch_size=plan.batch_size,
        micro_batch=fitted.micro_batch if fitted else _most_windows(settings, plan.batch_size),
        checkpointing=fitted.checkpointing if fitted else False,
        learning_rate=plan.learning_rate,
        warmup_steps=plan.warmup_steps,
        schedule=plan.schedule,
        weight_decay=plan.weight_decay,
        grad_clip=plan.grad_clip,
        start_moments=moments,
        keep_moments=plan.moments == "kept",
        seed=seed,
        factors=factors,
        compute=fitted.compute if fitted else settings.compute,
        checkpoint_dir=directory / "checkpoint",
        checkpoint_seconds=settings.checkpoint_seconds,
        out_dir=directory / "trained",
    )


def _most_windows(settings: DeviceSettings, batch_size: int) -> int | None:
    """Give how many windows a pass takes where nothing else bounds it; None for all of a step."""
    return None if settings.micro_batch is None else min(settings.micro_batch, batch_size)


async def learn(
    store: DeviceStore,
    membership: Membership,
    settings: DeviceSettings,
    text: PreparedText,
    *,
    sources: Sequence[Path],
    device: str,
    round_number: int,
    release: Manifest,
    seal_key: bytes,
    factors: Factors = "both",
    workers: Workers = run_worker,
    pause: asyncio.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_start: Callable[[int], None] | None = None,
) -> Learned:
    """Train for a round and put the sealed update into the outbox.

    Killed anywhere, the next call with the same arguments goes on: training from its checkpoint, and the update is
    queued in the very transaction that remembers the round, so it is made once. The same transaction puts what this
    update leaves over in the place of what it took up, and the moments that training ended with in the place of those
    that it began with.

    Raises:
        TrainingPausedError: ``pause`` was set; the checkpoint is kept.
        ConsentMissingError: consent for one of ``sources`` was withdrawn meanwhile; what was learned is thrown away.
        DoesNotFitError: training does not fit into the memory that the owner allows.
    """
    blobs = BlobStore(store.home.blobs)
    community = from_bytes(blobs.get(release.sha256))
    start = start_for_rank(community, min(settings.rank or community.rank, community.rank))
    directory = store.home.work / f"round-{round_number}-{release.sha256[:10]}"
    directory.mkdir(parents=True, exist_ok=True)
    start_path = directory / "start.safetensors"
    write_atomically(start_path, start.to_bytes())
    fitted = await plan_round(
        membership,
        settings,
        text,
        rank=start.rank,
        directory=directory,
        workers=workers,
        pause=pause,
        on_start=on_start,
    )
    job = training_job(
        membership,
        settings,
        text,
        start=start_path,
        adapter=start,
        seed=round_seed(device, round_number),
        directory=directory,
        fitted=fitted,
        factors=factors,
        moments=_moments(store, blobs, membership, factors=factors, directory=directory),
    )
    result = await workers(job, pause=pause, on_progress=on_progress, on_start=on_start)
    trained = read_adapter(result.adapter_path)
    packed = pack_update(
        membership,
        result,
        start=start,
        trained=trained,
        residual=_residual(store, blobs, release=release, start=start, factors=factors),
        device=device,
        round_number=round_number,
        release=release,
        seal_key=seal_key,
        factors=factors,
    )
    trained_id = blobs.put(trained.to_bytes())
    left_over = _left_over(packed, blobs, release=release, factors=factors)
    moments = None if result.moments_path is None else blobs.put(result.moments_path.read_bytes())
    record = _record(result, packed, round_number=round_number, trained=trained_id)
    before = store.kept_blobs()
    try:
        with store.transaction():
            ConsentBook(store.connection).require(sources)
            queue_transfer(Outbox(store.connection), Topics(membership.community), device, packed.offer, packed.chunks)
            store.add_round(record)
            store.replace_residual(factors, left_over, record.transfer)
            store.replace_moments(factors, moments)
    except ConsentMissingError:
        for made in (trained_id, moments, left_over and left_over.sha256):
            if made:
                blobs.discard(made)
        shutil.rmtree(directory, ignore_errors=True)
        raise
    for sha256 in before - store.kept_blobs():
        blobs.discard(sha256)
    shutil.rmtree(directory, ignore_errors=True)
    return Learned(
        result=result,
        update_id=packed.update_id,
        wire_bytes=packed.offer.size,
        fp32_bytes=packed.fp32_bytes,
        norm=packed.norm,
    )


def _residual(
    store: DeviceStore, blobs: BlobStore, *, release: Manifest, start: Adapter, factors: Factors
) -> Adapter | None:
    """Give what earlier updates left over, if it can be added to what is learned from this release.

    It cannot where the community went back to an earlier release, has another base or other modules now, or where the
    blob is gone; then the round begins without one, and what was left over is lost.
    """
    kept, seen = store.residual(factors), store.announcement
    if kept is None or not kept.precedes(release) or (seen is not None and seen.withdraws(kept.release)):
        return None
    try:
        residual = from_bytes(blobs.get(kept.sha256))
    except (StateError, AdapterError):
        return None
    return residual if fits(residual, start) else None


def _moments(
    store: DeviceStore, blobs: BlobStore, membership: Membership, *, factors: Factors, directory: Path
) -> Path | None:
    """Put the moments of the last training of these factors where a worker finds them; None where there are none.

    Those of another base, rank or other layers are not gone on with; the worker sees that.
    """
    kept = store.moments(factors)
    if kept is None or membership.charter.training.moments != "kept":
        return None
    try:
        moments = blobs.get(kept)
    except StateError:  # damaged or gone: this round begins without
        return None
    path = directory / "start_moments.safetensors"
    write_atomically(path, moments)
    return path


def _left_over(packed: PackedUpdate, blobs: BlobStore, *, release: Manifest, factors: Factors) -> Residual | None:
    """Keep what an update leaves over on the disk; nothing refers to it yet."""
    if packed.residual is None:
        return None
    return Residual(
        factors=factors,
        sha256=blobs.put(packed.residual.to_bytes()),
        release=release.number,
        start=release.sha256,
        transfer=packed.offer.transfer.hex(),
    )


def _record(result: TrainResult, packed: PackedUpdate, *, round_number: int, trained: str) -> RoundRecord:
    """Say what is remembered of a round on this device."""
    return RoundRecord(
        round=round_number,
        transfer=packed.offer.transfer.hex(),
        update_id=packed.update_id,
        wire_bytes=packed.offer.size,
        fp32_bytes=packed.fp32_bytes,
        report={
            "steps": result.steps,
            "tokens": result.tokens,
            "first_loss": result.first_loss,
            "last_loss": result.last_loss,
            "tok_s": result.tok_s,
            "peak_rss_mb": result.peak_rss_mb,
            "trained": trained,
            "seed": result.seed,
        },
    )
