"""Updates that are folded in as they are packed, without a delta of their own in memory.

A body is a row of numbers in some compression. A linear rule needs nothing but weighted sums of such rows, so whoever
can unpack one into a row that is there already, times a weight, spares it the arrays of every module and a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from agent.hub.merge.row import Places
from agent.llm.adapter import Adapter, FloatArray, ModulePath
from agent.update.codes import Codes
from agent.update.delta import Delta, Factors


class RowLayout(Protocol):
    """What the numbers of a row are, in the order of :class:`~agent.hub.merge.row.Places`."""

    @property
    def rank(self) -> int:
        """Of the update."""
        ...

    @property
    def factors(self) -> Factors:
        """Which factors it has; a frozen one has no numbers."""
        ...

    @property
    def modules(self) -> Mapping[ModulePath, tuple[int, int]]:
        """``(out_features, in_features)`` by module path, in sorted order."""
        ...


@runtime_checkable
class PackedUpdate(Protocol):
    """An update whose header was checked, and whose numbers are still packed."""

    @property
    def layout(self) -> RowLayout:
        """What its numbers are."""
        ...

    def write(self, row: FloatArray, weight: float) -> None:
        """Write ``weight`` times its numbers over a row: float32, contiguous, as long as the layout says.

        Raises:
            UpdateRefusedError: it cannot be unpacked.
        """
        ...

    def codes(self, weight: float) -> Codes | None:
        """Give ``weight`` times its numbers as codes; None where it is packed in another way.

        Raises:
            UpdateRefusedError: it cannot be unpacked.
        """
        ...

    def delta(self) -> Delta:
        """Give its numbers as factors.

        Raises:
            UpdateRefusedError: it cannot be unpacked.
        """
        ...


@runtime_checkable
class TakesPacked(Protocol):
    """A merge under way that takes updates as they are packed; one that does not gets their deltas."""

    def add_packed(self, update: PackedUpdate, weight: float, *, start: Adapter | None = None) -> None:
        """Fold in one update; as :meth:`~agent.hub.merge.rule.Accumulator.add`.

        Raises:
            MergeError: as there.
            UpdateRefusedError: it cannot be unpacked.
        """
        ...


def fills(layout: RowLayout, places: Places) -> bool:
    """Tell whether an update's row is one of these places, number by number."""
    same = layout.rank == places.rank and layout.factors == places.factors
    return same and (layout.modules is places.shapes or dict(layout.modules) == places.shapes)
