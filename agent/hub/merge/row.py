"""All numbers of one kind of update in one row, and the running sum of such rows.

The order is that of an update's body: module by module in sorted order, ``dA`` and then ``dB``, each row by row,
without a factor that was frozen. Work on one long row costs no Python per module, of which a model has hundreds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from agent.llm.adapter import Adapter, FloatArray, ModulePath
from agent.update.codes import Added, Codes, add
from agent.update.delta import Delta, Factors

Side: TypeAlias = Literal["a", "b"]
Number = TypeVar("Number", bound=np.floating)

FOLD = 64
"""Rows that are summed in float32 before the sum goes to float64."""

BLOCK = 32 * 1024
"""Numbers that are worked on at once at the end: a block of them in float64 stays in the cache."""


class Places:
    """Where each factor lies in a row.

    Args:
        shapes: ``(out, in)`` by module, in sorted order.
        rank: of the factors.
        factors: which of them a row has.
    """

    def __init__(self, shapes: Mapping[ModulePath, tuple[int, int]], rank: int, factors: Factors) -> None:
        self.factors: Factors = factors
        self.rank = rank
        self.shapes = dict(shapes)
        self._factors: dict[tuple[ModulePath, Side], tuple[int, tuple[int, int]]] = {}
        self.length = 0
        for name, (out, in_) in shapes.items():
            sides: dict[Side, tuple[int, int]] = {"a": (rank, in_), "b": (out, rank)}
            for side, shape in sides.items():
                if factors in ("both", side):
                    self._factors[name, side] = self.length, shape
                    self.length += shape[0] * shape[1]

    def place(self, name: ModulePath, side: Side) -> tuple[int, tuple[int, int]]:
        """Give where a factor begins, and its shape."""
        return self._factors[name, side]

    def view(self, row: NDArray[Number], name: ModulePath, side: Side) -> NDArray[Number]:
        """Give one factor as a view of a row."""
        begin, shape = self._factors[name, side]
        return row[begin : begin + shape[0] * shape[1]].reshape(shape)

    def views(self, row: NDArray[Number]) -> Iterator[tuple[ModulePath, Side, NDArray[Number]]]:
        """Give each factor as a view of a row: the module, ``a`` or ``b``, and the factor."""
        for name, side in self._factors:
            yield name, side, self.view(row, name, side)

    def stacked(self, row: FloatArray, names: Sequence[ModulePath], side: Side) -> FloatArray:
        """Give one factor of several modules of one shape, stacked; a view where they lie at even distances."""
        begins = [self._factors[name, side][0] for name in names]
        rows, columns = self._factors[names[0], side][1]
        steps = {after - before for before, after in pairwise(begins)}
        if len(steps) > 1:
            return np.stack([row[begin : begin + rows * columns].reshape(rows, columns) for begin in begins])
        size = row.itemsize
        step = steps.pop() if steps else 0
        return as_strided(
            row[begins[0] :], (len(begins), rows, columns), (step * size, columns * size, size), writeable=False
        )

    def row(self, adapter: Adapter) -> FloatArray:
        """Give the factors of an adapter of these shapes and this rank as a new row."""
        row = np.empty(self.length, np.float32)
        for name, side, view in self.views(row):
            view[...] = getattr(adapter.modules[name], side)
        return row

    def write(self, delta: Delta, row: FloatArray) -> None:
        """Write a delta into a row; what it lacks (modules, components above its rank) is zero."""
        row.fill(0)
        for name, side, view in self.views(row):
            if name in delta.modules:
                part = getattr(delta.modules[name], side)
                view[: part.shape[0], : part.shape[1]] = part


class RunningSum:
    """A sum of float32 rows, of which a few at a time are added in float32, and these sums in float64.

    So a sum of however many rows is off, in each number, by no more than ``FOLD`` roundings of float32 of the sum of
    magnitudes (Higham 2002, *Accuracy and Stability of Numerical Algorithms*, section 4.2), in a fifth of the time
    that float64 alone would take.

    Args:
        length: of a row.
    """

    def __init__(self, length: int) -> None:
        self._few = np.zeros(length, np.float32)
        self._all: NDArray[np.float64] | None = None
        self._pending = 0

    def add(self, row: FloatArray) -> None:
        """Add a row."""
        self._few += row
        self._pending += 1
        if self._pending == FOLD:
            self._fold()

    def add_codes(self, batch: Sequence[Codes], signs: NDArray[np.int16]) -> list[Added]:
        """Add rows that are still packed; the sum has the bits that :meth:`add` gives them.

        Args:
            batch: rows of this length, of one number of bits.
            signs: as in :func:`agent.update.codes.add`.
        """
        added: list[Added] = []
        while len(added) < len(batch):
            some = batch[len(added) : len(added) + FOLD - self._pending]
            added += add(some, self._few, signs)
            self._pending += len(some)
            if self._pending == FOLD:
                self._fold()
        return added

    def total(self) -> NDArray[np.float64]:
        """Give the sum of all rows; float64, not a copy."""
        return self._fold()

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Give the sum of all rows, a block after another: where it lies, and a copy of it in float64."""
        whole = self._few if self._all is None else self._fold()
        for begin in range(0, whole.size, BLOCK):
            columns = slice(begin, min(begin + BLOCK, whole.size))
            yield columns, whole[columns].astype(np.float64)

    def _fold(self) -> NDArray[np.float64]:
        if self._all is None:
            self._all = self._few.astype(np.float64)
        elif self._pending:
            self._all += self._few
        self._few.fill(0)
        self._pending = 0
        return self._all
