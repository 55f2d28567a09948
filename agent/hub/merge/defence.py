"""A merge that single devices cannot steer: any merge rule, behind what the charter says of hostile updates.

Robustness is not a merge rule but stands before one. A rule knows how changes of factors become the next adapter;
nothing of that changes when some updates count less. So every rule, a plug-in too, can be combined with:

- ``clipping``: every update is scaled down to the median norm of the merge. No more than that is done where a merge
  must cost no more than a sum: nothing is read twice where the norms are known.
- ``geometric-median``, ``multi-krum``, and ``mixing`` before any: they give each (clipped) update a weight, by its
  distances to the others, and the rule takes their weighted mean. For a linear rule distances are those of the rows of
  numbers, for any other those of the changes of the weights (:mod:`agent.hub.merge.inner_products`).
- ``trimmed-mean`` and ``median`` of each number. The outcome is handed to the rule as if it were the only update, which
  for a linear rule is the same as a mean; for others the numbers of factors do not mean that, and they are refused.

Weights say how much text stands behind an update, which its device only claims. The first three use them, capped by
:mod:`agent.hub.weights`; who is near whom, and the order statistics, know nothing of them: there every update counts
the same, late or not.

Updates are read in order of device id, as everywhere (:mod:`agent.hub.merge.rule`), so the same updates give the same
bytes. Memory does not grow with the number of devices; the rules beyond clipping write all rows into a temporary file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from agent.errors import MergeError
from agent.governance.charter import OuterOptimiser, RobustRules
from agent.hub.merge.inner_products import change_products, row_products
from agent.hub.merge.intake import Intake, require_sane
from agent.hub.merge.outer import PLAIN
from agent.hub.merge.packed import PackedUpdate, RowLayout
from agent.hub.merge.robust import (
    clip_scales,
    geometric_median,
    median,
    multi_krum,
    nearest_neighbour_mixing,
    trimmed_mean,
)
from agent.hub.merge.row import Places
from agent.hub.merge.rule import Contribution, Merged, MergeRule, merge
from agent.hub.merge.spool import Spool
from agent.llm.adapter import Adapter, FloatArray, LoraFactors
from agent.update.codes import Codes
from agent.update.delta import Delta, Factors
from agent.update.layout import Layout

Reader = Callable[[], Contribution]
Vector = NDArray[np.float64]

_ORDER_STATISTICS = ("trimmed-mean", "median")


def require_fitting(rule: MergeRule, robust: RobustRules) -> None:
    """Check that a merge rule can be combined with what a charter says of hostile updates.

    Raises:
        MergeError: it cannot.
    """
    if robust.name in _ORDER_STATISTICS and not rule.linear:
        raise MergeError(
            f"the merge rule {rule.name} does not average numbers, and a {robust.name} is one of numbers",
            advice="Choose geometric-median or multi-krum, which weigh whole updates, or a linear rule such as fedavg.",
        )


def merge_robustly(
    rule: MergeRule,
    community: Adapter,
    updates: Mapping[str, Reader],
    carry: bytes = b"",
    *,
    robust: RobustRules,
    outer: OuterOptimiser = PLAIN,
    norms: Mapping[str, float] | None = None,
    scratch: Path | None = None,
) -> Merged:
    """Merge updates so that none counts for more than the median one, and as the charter says beyond that.

    Args:
        rule: how changes become an adapter.
        community: the adapter that is merged into.
        updates: by device id, what reads each; more than once, unless norms are known and updates only clipped.
        carry: what the last merge left.
        robust: what the charter says.
        outer: what becomes of the mean change.
        norms: the Euclidean norm of each update's numbers, where whoever took it in has measured it.
        scratch: a directory with room for all updates in float32, for the rules beyond clipping; the system's own for
            temporary files if not given.

    Returns:
        The outcome. In its report, weights are the shares with which updates came to count, 0 for one that was left
        out; norms are those after clipping.

    Raises:
        MergeError: as :func:`~agent.hub.merge.rule.merge`, or the rule does not fit.
        DiskFullError: there is no room for the temporary file.
    """
    require_fitting(rule, robust)
    devices = sorted(updates)
    if not devices:
        return merge(rule, community, {}, carry, outer=outer)
    known = [_norm(updates[device]) if norms is None else norms[device] for device in devices]
    for norm in known:
        require_sane(norm**2, "an update")
    scales = clip_scales(known, robust.norm_bound)
    clipped = {device: partial(_clipped, updates[device], scale) for device, scale in zip(devices, scales, strict=True)}
    if robust.name == "clipping" and not robust.mixing:
        merged = merge(rule, community, clipped, carry, outer=outer)
    else:
        with (
            threadpool_limits(limits=1, user_api="blas"),
            Spool(Places(community.shapes, community.rank, "both"), scratch) as spool,
        ):
            table = _read_all(community, clipped, spool)
            if robust.name in _ORDER_STATISTICS:
                merged = _merge_numbers(rule, community, table, carry, robust=robust, outer=outer)
            else:
                merged = _merge_weighted(rule, community, clipped, table, carry, robust=robust, outer=outer)
    return replace(merged, report=replace(merged.report, scales=tuple(scales)))


@dataclass(frozen=True, slots=True)
class _Table:
    """All updates of a merge, clipped.

    Attributes:
        spool: their rows, with zeros for factors that were not trained.
        kinds: as what the outcome is handed to a rule: the factors that updates have trained.
        starts: what each started from.
        weights: of each.
        norms: of each.
    """

    spool: Spool
    kinds: tuple[Factors, ...]
    starts: tuple[Adapter, ...]
    weights: tuple[float, ...]
    norms: tuple[float, ...]

    def hostile(self, robust: RobustRules) -> int:
        """How many of the updates may be hostile."""
        return int(robust.hostile * self.spool.count + 1e-9)


def _read_all(community: Adapter, updates: Mapping[str, Reader], spool: Spool) -> _Table:
    """Read each update once, into a row of the spool."""
    intake = Intake(community, ("both", "a", "b"))
    whole = np.zeros(spool.places.length, np.float32)
    kinds, starts, weights, norms = set[Factors](), [], [], []
    for read in updates.values():
        update = read()
        row = intake.read(update.delta, 1.0, update.start)
        for name, side, view in row.places.views(row.numbers):
            np.copyto(spool.places.view(whole, name, side), view)
        spool.add(whole)
        whole.fill(0)
        kinds.add(row.places.factors)
        starts.append(update.start or community)
        weights.append(update.weight)
        norms.append(row.norm)
    return _Table(
        spool=spool,
        kinds=("both",) if "both" in kinds else tuple(sorted(kinds)),
        starts=tuple(starts),
        weights=tuple(weights),
        norms=tuple(norms),
    )


def _merge_weighted(
    rule: MergeRule,
    community: Adapter,
    updates: Mapping[str, Reader],
    table: _Table,
    carry: bytes,
    *,
    robust: RobustRules,
    outer: OuterOptimiser,
) -> Merged:
    """Let the rule take a weighted mean, by weights that follow from distances."""
    gram = row_products(table.spool) if rule.linear else change_products(table.spool, table.starts)
    shares = _shares(gram, table, robust)
    counting = {
        device: partial(_weighing, read, share)
        for (device, read), share in zip(updates.items(), shares.tolist(), strict=True)
        if share != 0
    }
    merged = merge(rule, community, counting, carry, outer=outer)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    report = replace(
        merged.report,
        updates=len(shares),
        weights=tuple(shares.tolist()),
        norms=tuple((norms * (1.0 if rule.linear else community.scaling)).tolist()),
        cosines=_cosines(gram @ shares, norms, float(shares @ gram @ shares)),
    )
    return replace(merged, report=report)


def _shares(gram: Vector, table: _Table, robust: RobustRules) -> Vector:
    """Give the share of each update in the mean that the rule takes."""
    hostile = table.hostile(robust)
    mixing = nearest_neighbour_mixing(gram, hostile) if robust.mixing else np.eye(len(gram))
    gram = mixing @ gram @ mixing.T
    if robust.name == "geometric-median":
        found = geometric_median(gram, table.weights)
    elif robust.name == "multi-krum":
        found = multi_krum(gram, table.weights, hostile)
    else:
        found = np.array(table.weights) / sum(table.weights)
    return mixing.T @ found


def _merge_numbers(
    rule: MergeRule,
    community: Adapter,
    table: _Table,
    carry: bytes,
    *,
    robust: RobustRules,
    outer: OuterOptimiser,
) -> Merged:
    """Take an order statistic of each number, a slice of them after another, and hand it to the rule."""
    spool, hostile = table.spool, table.hostile(robust)
    mixing = nearest_neighbour_mixing(row_products(spool), hostile) if robust.mixing else None
    outcome = np.zeros(spool.places.length, np.float32)
    counted, along = np.zeros(spool.count), np.zeros(spool.count)
    for columns, rows in spool.slices():
        mixed = rows if mixing is None else mixing @ rows
        means, counts = median(mixed) if robust.name == "median" else trimmed_mean(mixed, hostile)
        outcome[columns] = means
        counted += counts if mixing is None else mixing.T @ counts
        along += rows @ means
    accumulator = rule.start(community, carry, outer=outer)
    for delta in _deltas(outcome, community, table.kinds):
        accumulator.add(delta, 1.0)
    merged = accumulator.finish()
    norms = np.array(table.norms)
    report = replace(
        merged.report,
        updates=spool.count,
        weights=tuple((counted / counted.sum()).tolist()),
        norms=table.norms,
        cosines=_cosines(along, norms, float(np.square(outcome, dtype=np.float64).sum())),
    )
    return replace(merged, report=report)


def _deltas(outcome: FloatArray, community: Adapter, kinds: tuple[Factors, ...]) -> list[Delta]:
    """Give a row as updates of these kinds whose mean it is: a rule wants to know which factors were trained."""
    modules = Layout(rank=community.rank, factors="both", modules=community.shapes).restore(outcome).modules
    times = np.float32(len(kinds))
    found = []
    for kind in kinds:
        of_a, of_b = (times if kind in ("both", side) else np.float32(0) for side in ("a", "b"))
        parts = {name: LoraFactors(a=of_a * f.a, b=of_b * f.b) for name, f in modules.items()}
        found.append(Delta(rank=community.rank, modules=parts, factors=kind))
    return found


def _cosines(along: Vector, norms: Vector, squared: float) -> tuple[float, ...]:
    """Give cosines with the outcome from inner products with it; 0 where one of both is nothing."""
    lengths = norms * np.sqrt(max(squared, 0.0))
    found = np.divide(along, lengths, out=np.zeros(len(along)), where=lengths > 0)
    return tuple(np.clip(found, -1.0, 1.0).tolist())


def _norm(read: Reader) -> float:
    """Measure an update of which nobody knows the norm."""
    update = read().delta
    return (update if isinstance(update, Delta) else update.delta()).norm


def _weighing(read: Reader, share: float) -> Contribution:
    return replace(read(), weight=share)


def _clipped(read: Reader, scale: float) -> Contribution:
    """Read an update, and scale it down."""
    update = read()
    if scale == 1:
        return update
    if isinstance(update.delta, Delta):
        return replace(update, delta=_scaled(update.delta, scale))
    return replace(update, delta=ClippedUpdate(update.delta, scale))


@dataclass(frozen=True, slots=True)
class ClippedUpdate:
    """A packed update that is scaled down as it is unpacked; a :class:`~agent.hub.merge.packed.PackedUpdate`."""

    whole: PackedUpdate
    scale: float

    @property
    def layout(self) -> RowLayout:
        """What its numbers are."""
        return self.whole.layout

    def write(self, row: FloatArray, weight: float) -> None:
        """Write ``weight`` times its numbers over a row."""
        self.whole.write(row, weight * self.scale)

    def codes(self, weight: float) -> Codes | None:
        """Give ``weight`` times its numbers as codes; None where it is packed in another way."""
        return self.whole.codes(weight * self.scale)

    def delta(self) -> Delta:
        """Give its numbers as factors."""
        return _scaled(self.whole.delta(), self.scale)


def _scaled(delta: Delta, scale: float) -> Delta:
    modules = {
        name: LoraFactors(a=f.a * np.float32(scale), b=f.b * np.float32(scale)) for name, f in delta.modules.items()
    }
    return Delta(rank=delta.rank, modules=modules, factors=delta.factors)
