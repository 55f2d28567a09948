"""What every rule asks of an update before it is folded in, and what it counts of each."""

from __future__ import annotations

import math

from agent.errors import AdapterError, MergeError
from agent.hub.merge.likeness import cosines
from agent.hub.merge.rule import MergeReport
from agent.llm.adapter import Adapter, FloatArray
from agent.update.delta import Delta, check_fit, start_for_rank

TOO_LARGE = 1e18
"""A product of two numbers below this stays far within float32; training gives nothing near it."""


def require_sane(squared: float, what: str) -> None:
    """Check by the sum of its squares that every number of something is finite, and fit to be multiplied with others.

    Raises:
        MergeError: one is not.
    """
    if not squared < TOO_LARGE**2:
        raise MergeError(
            f"{what} holds numbers that are not finite, or too large (beyond {TOO_LARGE:g})",
            advice="Lower the bound on norms in the charter, so that such updates are refused before the merge.",
        )


class Intake:
    """The updates of one merge, as far as all rules treat them alike.

    Args:
        community: the adapter that is merged into.
    """

    def __init__(self, community: Adapter) -> None:
        self._community = community
        self._starts: dict[int, Adapter] = {}
        self._weights: list[float] = []
        self._norms: list[float] = []
        self._sketches: list[FloatArray] = []

    def check(self, delta: Delta, weight: float, start: Adapter | None) -> Adapter:
        """Give the adapter that an update started from, at the update's rank.

        Args:
            delta: the update.
            weight: what it weighs.
            start: the release that it started from, where that is an older one.

        Raises:
            MergeError: it does not fit, or its weight is not positive.
        """
        self.check_start(weight, start)
        try:
            own = self._start(delta.rank) if start is None else start_for_rank(start, delta.rank)
            check_fit(own, delta)
        except AdapterError as cause:
            raise MergeError(f"an update does not fit: {cause}", advice=cause.advice) from cause
        return own

    def check_start(self, weight: float, start: Adapter | None) -> None:
        """Check what an update weighs, and that it started from a release that the community's could come from.

        Raises:
            MergeError: the weight is not positive, or the release is of another base, rank, scaling or set of modules.
        """
        if not (math.isfinite(weight) and weight > 0):
            raise MergeError(
                f"an update cannot weigh {weight}", advice="Leave updates out of the merge instead of weighing them 0."
            )
        if start is None:
            return
        community = self._community
        of_one_form = (
            start.rank == community.rank
            and math.isclose(start.alpha, community.alpha, rel_tol=1e-9)
            and start.base_sha256 == community.base_sha256
            and start.shapes == community.shapes
        )
        if not of_one_form:
            raise MergeError(
                "an update started from a release of another form than the community's adapter",
                advice="Refuse updates whose start is not a release of this community.",
            )

    def count(self, weight: float, norm: float, sketch: FloatArray) -> None:
        """Count an update that was checked, by the norm and the sketch of its change."""
        self._weights.append(weight)
        self._norms.append(norm)
        self._sketches.append(sketch)

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return math.fsum(self._weights)

    def report(self) -> MergeReport:
        """Give what is known of the updates; the energies are those of a rule that releases everything.

        Raises:
            MergeError: nothing was counted.
        """
        if not self._weights:
            raise MergeError("there is no update to merge", advice="Wait for devices, or close the round without one.")
        total = self.total
        shares = tuple(weight / total for weight in self._weights)
        return MergeReport(
            updates=len(shares), weights=shares, norms=tuple(self._norms), cosines=cosines(self._sketches, shares)
        )

    def _start(self, rank: int) -> Adapter:
        """Give the community's adapter at a rank; made once, because making it copies."""
        if rank not in self._starts:
            self._starts[rank] = start_for_rank(self._community, rank)
        return self._starts[rank]
