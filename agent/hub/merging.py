"""From what waits for a round's merge to a candidate: read one at a time, in order of device, folded, and kept.

It may be killed and repeated at any point: the same updates give the same bytes, and nothing is changed before the last
transaction.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from agent.crypto.sealing import KEY_BYTES
from agent.errors import MergeError, StateError, UpdateRefusedError
from agent.events import Value
from agent.federation.messages import Manifest
from agent.hub.merge.defence import merge_robustly
from agent.hub.merge.packed import PackedUpdate
from agent.hub.merge.rule import Contribution, MergeReport, load_rule
from agent.hub.placing import Line, staleness
from agent.hub.rounds import RoundState, after_merge
from agent.hub.store import HubStore, ReleaseRow, UpdateRow
from agent.hub.weights import merge_weights
from agent.llm.adapter import Adapter, ModulePath, from_bytes
from agent.paths import BlobStore
from agent.update.wire import open_update


class UnreadableUpdateError(MergeError):
    """An update that counted cannot be read any more; the others can be merged without it.

    Args:
        row: which.
        cause: what is wrong with it.
    """

    def __init__(self, row: UpdateRow, cause: StateError | UpdateRefusedError) -> None:
        super().__init__(f"the update of {row.device[:10]} cannot be read any more: {cause}", advice=cause.advice)
        self.row = row


@dataclass(frozen=True, slots=True)
class MergeOutcome:
    """A candidate and what the merge found.

    Attributes:
        carry_lost: why the merge had to do without what the one before it left over; empty where it had it.
    """

    release: ReleaseRow
    report: dict[str, Value]
    carry_lost: str = ""


def merge_round(store: HubStore, blobs: BlobStore, state: RoundState, *, now: float) -> MergeOutcome:
    """Merge what waits for a round's merge into a candidate and begin its trial.

    Raises:
        MergeError: there is no update, or their sum cannot be decomposed.
        UnreadableUpdateError: an update was damaged on the disk, or was kept by another version. Nothing was changed.
        RoundMovedError: an operator went back to another release meanwhile, or put a device out; nothing was changed.
    """
    started = time.monotonic()
    config, line = store.config, store.line()
    rules = config.charter.rounds
    release = store.current()
    community = from_bytes(blobs.get(release.manifest.sha256))
    rows = store.updates_in(state.number, "waiting")
    if not rows:
        raise MergeError(f"round {state.number} has no update to merge", advice="Wait for devices to send some.")
    if len(rows) < rules.quorum and store.updates_in(state.number, "withdrawn"):
        words = f"only {len(rows)} updates are left of round {state.number}, since devices left or were revoked"
        raise MergeError(words, advice=f"The charter wants {rules.quorum} at least. The next round begins.")
    weights = merge_weights(
        [row.tokens for row in rows], [staleness(line, row.start) for row in rows], power=rules.staleness_power
    )
    starts = lru_cache(maxsize=rules.max_staleness + 1)(lambda sha256: from_bytes(blobs.get(sha256)))
    carry, carry_lost = _carry(blobs, release)
    shapes = community.shapes
    readers = {
        row.device: partial(
            _read,
            blobs,
            row,
            weight,
            shapes=shapes,
            max_rank=config.charter.rank,
            start=partial(starts, row.start) if row.start != release.manifest.sha256 else None,
        )
        for row, weight in zip(rows, weights, strict=True)
    }
    try:
        merged = merge_robustly(
            load_rule(config.charter.merge_rule),
            community,
            readers,
            carry,
            robust=config.charter.robust,
            outer=config.charter.outer,
            norms={row.device: row.norm for row in rows},
            scratch=store.home.root,
        )
    except np.linalg.LinAlgError as cause:
        raise MergeError(
            f"the sum of the updates cannot be decomposed: {cause}", advice="The next round begins."
        ) from cause
    data = merged.adapter.to_bytes()
    manifest = Manifest(
        number=store.next_release_number(),
        sha256=blobs.put(data),
        parent=release.manifest.sha256,
        size=len(data),
        round=state.number,
    )
    candidate = ReleaseRow(
        manifest=manifest,
        content_key=secrets.token_bytes(KEY_BYTES),
        state="candidate",
        updates=tuple(row.update_id for row in rows),
        carry=blobs.put(merged.carry) if merged.carry else "",
    )
    report: dict[str, Value] = {
        "rule": config.charter.merge_rule,
        "robust": config.charter.robust.model_dump(),
        "updates": _found(rows, line, merged.report),
        "released_energy": merged.report.released_energy,
        "carried_energy": merged.report.carried_energy,
        "discarded_energy": merged.report.discarded_energy,
        "carry_lost": carry_lost,
        "seconds": round(time.monotonic() - started, 3),
    }
    after = after_merge(state, rules, now)
    oldest = state.number + 1 - rules.max_staleness
    store.save_candidate(state, after, candidate, report=report, oldest=oldest)
    return MergeOutcome(release=candidate, report=report, carry_lost=carry_lost)


def read_update(data: bytes, *, shapes: Mapping[ModulePath, tuple[int, int]], max_rank: int) -> PackedUpdate:
    """Read an opened update in the form that merging takes.

    Args:
        data: its bytes, as they were checked when it came.
        shapes: ``(out, in)`` of the modules of the adapter that it is merged into.
        max_rank: the charter's.

    Raises:
        UpdateRefusedError: it is not what it was.
    """
    return open_update(data, expected=shapes, max_rank=max_rank, max_bytes=len(data))


def _carry(blobs: BlobStore, release: ReleaseRow) -> tuple[bytes, str]:
    """Give what the release's merge left over; nothing, and why, where it was damaged on the disk or is gone.

    Nobody can send it again. The updates of a round are worth more than what was left over of earlier ones.
    """
    try:
        return blobs.get(release.carry) if release.carry else b"", ""
    except StateError as cause:
        return b"", str(cause)


def _found(rows: Sequence[UpdateRow], line: Line, report: MergeReport) -> list[Value]:
    """Say of each update what the merge made of it, in order of device."""
    return [
        {
            "device": row.device,
            "update": row.update_id,
            "round": row.round,
            "staleness": staleness(line, row.start),
            "weight": weight,
            "norm": row.norm,
            "change_norm": change,
            "cosine": cosine,
            "scale": scale,
            "tokens": row.tokens,
        }
        for row, weight, change, cosine, scale in zip(
            rows, report.weights, report.norms, report.cosines, report.scales, strict=True
        )
    ]


def _read(
    blobs: BlobStore,
    row: UpdateRow,
    weight: float,
    *,
    shapes: Mapping[ModulePath, tuple[int, int]],
    max_rank: int,
    start: partial[Adapter] | None,
) -> Contribution:
    """Read a counted update back from the disk, with the older release that it started from, if it did."""
    try:
        update = read_update(blobs.get(row.update_id), shapes=shapes, max_rank=max_rank)
        return Contribution(delta=update, weight=weight, start=start() if start is not None else None)
    except (StateError, UpdateRefusedError) as cause:
        raise UnreadableUpdateError(row, cause) from cause
