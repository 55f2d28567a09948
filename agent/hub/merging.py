"""From a round's updates to a candidate: read one at a time, in order of device, folded, and kept.

It may be killed and repeated at any point: the same updates give the same bytes, and nothing is changed before the last
transaction.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial

from threadpoolctl import threadpool_limits

from agent.crypto.sealing import KEY_BYTES
from agent.errors import MergeError
from agent.events import Value
from agent.federation.messages import Manifest
from agent.governance.charter import Charter
from agent.hub.merge.rule import load_rule, merge
from agent.hub.rounds import RoundState, after_merge
from agent.hub.store import HubStore, ReleaseRow, UpdateRow
from agent.llm.adapter import Adapter, from_bytes
from agent.paths import BlobStore
from agent.update.delta import Delta
from agent.update.wire import decode_update

MAX_WEIGHT_SHARE = 0.5
"""No device has more than this share of a merge, however much text it says it has (with three or more devices)."""


@dataclass(frozen=True, slots=True)
class MergeOutcome:
    """A candidate and what the merge found."""

    release: ReleaseRow
    report: dict[str, Value]


def capped_weights(tokens: list[int], *, share: float = MAX_WEIGHT_SHARE) -> list[float]:
    """Give each device's weight from its tokens, none above ``share`` of the sum; they sum to 1.

    Weights are clipped and the rest scaled up until the cap holds for all (it can only with ``1 / share`` devices or
    more; with fewer, all weigh the same).
    """
    count = len(tokens)
    if count * share <= 1.0:
        return [1.0 / count] * count
    weights = [max(value, 1) / sum(max(item, 1) for item in tokens) for value in tokens]
    for _ in range(count):
        over = [index for index, weight in enumerate(weights) if weight > share + 1e-12]
        if not over:
            break
        free = [index for index, weight in enumerate(weights) if weight < share - 1e-12]
        spare = sum(weights[index] - share for index in over)
        room = sum(weights[index] for index in free)
        for index in over:
            weights[index] = share
        for index in free:
            weights[index] += spare * weights[index] / room
    return weights


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
    # One thread: then the last bits of a sum do not depend on the number of cores, and BLAS does not spin.
    with threadpool_limits(limits=1, user_api="blas"):
        merged = merge(load_rule(config.charter.merge_rule), community, readers, store.fact("carry") or b"")
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
            {"device": row.device, "update": row.update_id, "weight": weight, "norm": row.norm, "tokens": row.tokens}
            for row, weight in zip(rows, weights, strict=True)
        ],
        "released_energy": merged.report.released_energy,
        "carried_energy": merged.report.carried_energy,
        "discarded_energy": merged.report.discarded_energy,
    }
    after = after_merge(state, config.charter.rounds, now)
    store.save_candidate(candidate, after, report=report, carry=merged.carry)
    return MergeOutcome(release=candidate, report=report)


def _read(
    blobs: BlobStore, row: UpdateRow, weight: float, *, community: Adapter, charter: Charter
) -> tuple[Delta, float]:
    """Read a counted update back from the disk."""
    data = blobs.get(row.update_id)
    _header, delta = decode_update(data, expected=community.shapes, max_rank=charter.rank, max_bytes=len(data))
    return delta, weight
