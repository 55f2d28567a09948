"""From a round's updates to a candidate: read one at a time, in order of device, folded, and kept.

It may be killed and repeated at any point: the same updates give the same bytes, and nothing is changed before the last
transaction.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial

from agent.crypto.sealing import KEY_BYTES
from agent.errors import MergeError
from agent.events import Value
from agent.federation.messages import Manifest
from agent.governance.charter import Charter
from agent.hub.merge.packed import PackedUpdate
from agent.hub.merge.rule import Contribution, load_rule, merge
from agent.hub.rounds import RoundState, after_merge
from agent.hub.store import HubStore, ReleaseRow, UpdateRow
from agent.hub.weights import capped_weights
from agent.llm.adapter import Adapter, from_bytes
from agent.paths import BlobStore
from agent.update.delta import Delta
from agent.update.wire import decode_update


@dataclass(frozen=True, slots=True)
class MergeOutcome:
    """A candidate and what the merge found."""

    release: ReleaseRow
    report: dict[str, Value]


def merge_round(store: HubStore, blobs: BlobStore, state: RoundState, *, now: float) -> MergeOutcome:
    """Merge the updates of a round into a candidate and begin its trial.

    Raises:
        MergeError: there is no update, or an update that was kept cannot be read any more.
    """
    config = store.config
    release = store.releases()[-1]
    community = from_bytes(blobs.get(release.manifest.sha256))
    rows = store.updates(state.number)
    if not rows:
        raise MergeError(f"round {state.number} has no update to merge", advice="Wait for devices to send some.")
    weights = capped_weights([row.tokens for row in rows])
    readers = {
        row.device: partial(_read, blobs, row, weight, community=community, charter=config.charter)
        for row, weight in zip(rows, weights, strict=True)
    }
    merged = merge(
        load_rule(config.charter.merge_rule),
        community,
        readers,
        store.fact("carry") or b"",
        outer=config.charter.outer,
    )
    data = merged.adapter.to_bytes()
    manifest = Manifest(
        number=release.manifest.number + 1,
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
    )
    report: dict[str, Value] = {
        "rule": config.charter.merge_rule,
        "updates": [
            {
                "device": row.device,
                "update": row.update_id,
                "weight": share,
                "norm": row.norm,
                "cosine": cosine,
                "tokens": row.tokens,
            }
            for row, share, cosine in zip(rows, merged.report.weights, merged.report.cosines, strict=True)
        ],
        "released_energy": merged.report.released_energy,
        "carried_energy": merged.report.carried_energy,
        "discarded_energy": merged.report.discarded_energy,
    }
    after = after_merge(state, config.charter.rounds, now)
    store.save_candidate(candidate, after, report=report, carry=merged.carry)
    return MergeOutcome(release=candidate, report=report)


def read_update(data: bytes, *, community: Adapter, max_rank: int) -> Delta | PackedUpdate:
    """Read an opened update in the form that merging takes.

    Args:
        data: its bytes, as they were checked when it came.
        community: the adapter that it is merged into.
        max_rank: the charter's.

    Raises:
        UpdateRefusedError: it is not what it was.
    """
    _header, delta = decode_update(data, expected=community.shapes, max_rank=max_rank, max_bytes=len(data))
    return delta


def _read(blobs: BlobStore, row: UpdateRow, weight: float, *, community: Adapter, charter: Charter) -> Contribution:
    """Read a counted update back from the disk."""
    update = read_update(blobs.get(row.update_id), community=community, max_rank=charter.rank)
    return Contribution(delta=update, weight=weight)
