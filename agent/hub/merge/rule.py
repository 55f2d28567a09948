"""What a merge rule is: many updates in, one next adapter out.

The hub keeps accepted updates on disk and folds them when a round is full, one at a time, in order of device id. So a
rule streams (its memory must not grow with the number of devices), and need not be commutative in its last bits to give
the same bytes for the same set of updates, in whatever order they arrived: :func:`merge` sorts. Floating-point sums in
one fixed order are reproducible; sums that do not depend on any order would need exact accumulation, for which nothing
here has a use.

Rules plug in through the entry point group ``bramble.merge_rules``; ``agent.testing.check_merge_rule`` tells whether
one keeps its promises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, runtime_checkable

from threadpoolctl import threadpool_limits

from agent.errors import MergeError
from agent.governance.charter import OuterOptimiser
from agent.hub.merge.outer import PLAIN
from agent.hub.merge.packed import PackedUpdate, TakesPacked
from agent.llm.adapter import Adapter
from agent.update.delta import Delta, Factors

ENTRY_POINTS = "bramble.merge_rules"
_BUILT_IN = tuple(
    EntryPoint(name=name, value=f"agent.hub.merge.{value}", group=ENTRY_POINTS)
    for name, value in (
        ("alternate", "linear:AlternateRule"),
        ("fedavg", "linear:FedAvgRule"),
        ("ffa", "linear:FfaRule"),
        ("stack", "stack:StackRule"),
    )
)
"""Found whatever is installed, and never replaced: a charter that names them means them."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Energies are shares of the squared Frobenius norm of everything there was to release (the community's change, what
    was carried into this round, and the updates), summed over all layers.

    Attributes:
        updates: how many were merged.
        weights: their weights, which sum to 1, in the order in which they were added; 0 for one that was left out.
        norms: the norm of each one's change, in that order: a rule says of what.
        cosines: how each one's change lies to the mean change, in that order; estimates where a rule says so.
        released_energy: share that is in the new adapter.
        carried_energy: share that is kept for the next round.
        discarded_energy: share that is in neither.
        scales: what each update was multiplied by to be clipped, in that order; empty where nothing is clipped.
    """

    updates: int
    weights: tuple[float, ...]
    norms: tuple[float, ...]
    cosines: tuple[float, ...]
    released_energy: float = 1.0
    carried_energy: float = 0.0
    discarded_energy: float = 0.0
    scales: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    """The outcome of a merge.

    Attributes:
        adapter: the next community adapter, of the same rank, scaling, base and modules.
        carry: what the rule wants back at the start of the merge that builds on this adapter; only the rule reads it.
            It belongs to the adapter: where the adapter is rejected, so is its carry.
        report: what was done.
    """

    adapter: Adapter
    carry: bytes
    report: MergeReport


@dataclass(frozen=True, slots=True)
class Contribution:
    """One update as a merge takes it.

    Attributes:
        delta: what the device changed, as factors or still packed.
        weight: positive; only its share of the sum of all weights counts.
        start: the older release that it started from, where it is not the community's adapter.
    """

    delta: Delta | PackedUpdate
    weight: float
    start: Adapter | None = None


class Accumulator(Protocol):
    """One merge under way."""

    def add(self, delta: Delta, weight: float, *, start: Adapter | None = None) -> None:
        """Fold in one update.

        Args:
            delta: the change from ``start_for_rank(start or community, delta.rank)``; not kept, not altered.
            weight: positive; only its share of the sum of all weights counts.
            start: the older release that the update started from, where it is not the community's adapter.

        Raises:
            MergeError: the delta does not fit the adapter that it started from, that one is not of the community's
                form, factors were trained that the rule does not merge, or the weight is not positive.
        """
        ...

    def finish(self) -> Merged:
        """Give the next adapter; the accumulator is of no more use then.

        Raises:
            MergeError: nothing was added, or the sum is not finite.
        """
        ...


@runtime_checkable
class MergeRule(Protocol):
    """A way to merge."""

    @property
    def name(self) -> str:
        """The entry point's name, as a charter names it."""
        ...

    @property
    def linear(self) -> bool:
        """Whether the next adapter follows from the weighted sum of all deltas, and of the weights, alone.

        A hub that is to see nothing but sums can merge by such rules only.
        """
        ...

    def factors(self, round_number: int) -> Factors:
        """Say which factors devices train in a round.

        Args:
            round_number: from 1.
        """
        ...

    def start(self, community: Adapter, carry: bytes = b"", *, outer: OuterOptimiser = PLAIN) -> Accumulator:
        """Begin a merge.

        Args:
            community: the adapter that the updates started from.
            carry: what the merge that made this adapter left, or nothing.
            outer: what becomes of the mean change (:mod:`agent.hub.merge.outer`).

        Raises:
            MergeError: the carry is not one of this rule's, or does not belong to such an adapter.
        """
        ...


def merge(
    rule: MergeRule,
    community: Adapter,
    updates: Mapping[str, Callable[[], Contribution]],
    carry: bytes = b"",
    *,
    outer: OuterOptimiser = PLAIN,
) -> Merged:
    """Merge updates in order of device id, reading one at a time.

    BLAS is held to one thread: then the last bits of a sum do not depend on the number of cores, and it does not spin.

    Args:
        rule: how.
        community: the adapter that is merged into.
        updates: by device id (or whatever else is unique and orders them), what reads each.
        carry: what the last merge left.
        outer: what becomes of the mean change.

    Raises:
        MergeError: there are no updates, or one does not fit.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        accumulator = rule.start(community, carry, outer=outer)
        for device in sorted(updates):
            _add(accumulator, updates[device]())
        return accumulator.finish()


def _add(accumulator: Accumulator, update: Contribution) -> None:
    """Fold in one update in the form that the rule takes."""
    if isinstance(update.delta, Delta):
        accumulator.add(update.delta, update.weight, start=update.start)
    elif isinstance(accumulator, TakesPacked):
        accumulator.add_packed(update.delta, update.weight, start=update.start)
    else:
        accumulator.add(update.delta.delta(), update.weight, start=update.start)


def load_rule(name: str) -> MergeRule:
    """Give the merge rule of this name: a built-in one, or one of an installed package.

    Raises:
        MergeError: there is none, or it does not load.
    """
    found = {entry.name: entry for entry in _BUILT_IN}
    if name not in found:  # only then are packages asked: to read what is installed takes a while
        found |= {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise MergeError(
            f"there is no merge rule {name!r} (installed: {known})",
            advice="Install the package that brings it, or choose another rule in the charter.",
        )
    try:
        rule = found[name].load()()
    except Exception as cause:
        raise MergeError(
            f"the merge rule {name} ({found[name].value}) does not load: {cause}",
            advice="Update or reinstall the package that brings it.",
        ) from cause
    if not isinstance(rule, MergeRule):
        raise MergeError(
            f"{found[name].value} is no merge rule", advice="Tell its author to run agent.testing.check_merge_rule."
        )
    return rule
