"""What every rule does with an update before it is folded in: held against the community's adapter, and made a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.errors import AdapterError, MergeError
from agent.hub.merge.likeness import cosines
from agent.hub.merge.packed import PackedUpdate, fills
from agent.hub.merge.row import Places
from agent.hub.merge.rule import MergeReport
from agent.llm.adapter import Adapter, FloatArray
from agent.update.codes import Codes, can_add
from agent.update.delta import Delta, Factors, check_fit, start_for_rank

TOO_LARGE = 1e8
"""Products of products of numbers below this stay within float32; training gives nothing near it."""


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


@dataclass(frozen=True, slots=True)
class WeightedRow:
    """An update as a row, times its weight.

    Attributes:
        places: where its factors lie.
        numbers: float32, good until the next update is read.
        weight: as a multiple of the first update's: so it stays within float32, whatever weights are measured in.
        rank: components above this one are zero.
        norm: the Euclidean norm of the update, without its weight.
    """

    places: Places
    numbers: FloatArray
    weight: float
    rank: int
    norm: float


@dataclass(frozen=True, slots=True)
class WeightedCodes:
    """An update as it is packed, times its weight.

    Attributes:
        places: where its factors lie.
        codes: its numbers.
        given: its weight as it was given.
        weight: as a multiple of the first update's.
    """

    places: Places
    codes: Codes
    given: float
    weight: float


class Intake:
    """The updates of one merge, as far as all rules treat them alike.

    Args:
        community: the adapter that is merged into.
        takes: which factors an update may have trained.
    """

    def __init__(self, community: Adapter, takes: Sequence[Factors]) -> None:
        self._community = community
        self.places: dict[Factors, Places] = {
            factors: Places(community.shapes, community.rank, factors) for factors in takes
        }
        self._rows: dict[Factors, FloatArray] = {}
        self._first = 0.0
        self._weights: list[float] = []
        self._norms: list[float] = []
        self._sketches: list[FloatArray] = []

    def read(self, update: Delta | PackedUpdate, weight: float, start: Adapter | None) -> WeightedRow:
        """Give an update as a row at the community's rank.

        Args:
            update: its factors, or its numbers as they are packed.
            weight: what it weighs.
            start: the release that it started from, where that is an older one.

        Raises:
            MergeError: it does not fit, its factors are none that the rule merges, its weight is not positive, a number
                is not finite, or its start is of another form than the community's adapter.
            UpdateRefusedError: it cannot be unpacked.
        """
        places, relative = self._admit(update, weight, start)
        factors = places.factors
        if factors not in self._rows:
            self._rows[factors] = np.zeros(places.length, np.float32)
        row = self._rows[factors]
        if not isinstance(update, Delta) and fills(update.layout, places):
            update.write(row, relative)
            rank = places.rank
        else:
            delta = update if isinstance(update, Delta) else update.delta()
            self._check_fit(delta)
            places.write(delta, row)
            row *= np.float32(relative)
            rank = delta.rank
        with np.errstate(over="ignore", invalid="ignore"):  # it is looked at next
            norm = self.norm(float(row @ row), relative)
        return WeightedRow(places=places, numbers=row, weight=relative, rank=rank, norm=norm)

    def codes(self, update: PackedUpdate, weight: float, start: Adapter | None) -> WeightedCodes | None:
        """Give an update as it is packed; None where it must become a row (:meth:`read`), or nothing here adds codes.

        Args:
            update: its numbers as they are packed.
            weight: as in :meth:`read`.
            start: likewise.

        Raises:
            MergeError: as :meth:`read`.
            UpdateRefusedError: likewise.
        """
        places, relative = self._admit(update, weight, start)
        codes = update.codes(relative) if can_add() and fills(update.layout, places) else None
        return None if codes is None else WeightedCodes(places=places, codes=codes, given=weight, weight=relative)

    @staticmethod
    def norm(squares: float, relative: float) -> float:
        """Give the norm of an update of whose weighted numbers the sum of squares is known.

        Raises:
            MergeError: a number is not finite, or too large.
        """
        norm = math.sqrt(squares) / relative if squares >= 0 else math.nan
        require_sane(norm**2, "an update")
        return norm

    def count(self, weight: float, norm: float, sketch: FloatArray) -> None:
        """Count an update that was folded in, by the norm and the sketch of its change."""
        self._weights.append(weight)
        self._norms.append(norm)
        self._sketches.append(sketch)

    @property
    def total(self) -> float:
        """The sum of all weights, as a multiple of the first one."""
        return math.fsum(self._weights) / self._weights[0]

    def report(self) -> MergeReport:
        """Give what is known of the updates; the energies are those of a rule that releases everything.

        Raises:
            MergeError: nothing was counted.
        """
        if not self._weights:
            raise MergeError("there is no update to merge", advice="Wait for devices, or close the round without one.")
        total = math.fsum(self._weights)
        shares = tuple(weight / total for weight in self._weights)
        return MergeReport(
            updates=len(shares), weights=shares, norms=tuple(self._norms), cosines=cosines(self._sketches, shares)
        )

    def _admit(self, update: Delta | PackedUpdate, weight: float, start: Adapter | None) -> tuple[Places, float]:
        """Check all but an update's numbers; give its places, and its weight over the first one's."""
        self._check_start(weight, start)
        factors = update.factors if isinstance(update, Delta) else update.layout.factors
        if factors not in self.places:
            raise MergeError(
                f"an update that trained {factors} came where {' or '.join(self.places)} is trained",
                advice="Refuse updates whose factors are not the round's.",
            )
        self._first = self._first or weight
        return self.places[factors], weight / self._first

    def _check_fit(self, delta: Delta) -> None:
        """Check that a delta's rank is at most the community's, and its modules are some of the community's."""
        try:
            check_fit(start_for_rank(self._community, delta.rank), delta)
        except AdapterError as cause:
            raise MergeError(f"an update does not fit: {cause}", advice=cause.advice) from cause

    def _check_start(self, weight: float, start: Adapter | None) -> None:
        """Check what an update weighs, and that it started from a release that the community's could come from."""
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
