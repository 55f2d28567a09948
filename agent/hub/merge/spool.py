"""The updates of one merge as rows of a temporary file: for rules that need several of them, or all, side by side.

A rule that looks at distances or sorts numbers cannot take updates one by one. Rows in memory would grow with the
number of devices; in a file they cost 4 bytes a number on the disk, and are read back a slice of columns at a time. The
file has no name, so that nothing is left behind by a hub that is killed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import numpy as np

from agent.hub.merge.row import Places, Side
from agent.llm.adapter import FloatArray, ModulePath
from agent.paths import explained_disk

AT_ONCE = 1 << 22
"""Numbers that are in memory at once, of all rows together: 16 MiB."""


class Spool(AbstractContextManager["Spool"]):
    """Rows of one length on the disk, in the order in which they were added.

    Args:
        places: where the factors lie in a row.
        directory: in which the file is; the system's own for temporary files if not given.
    """

    def __init__(self, places: Places, directory: Path | None = None) -> None:
        self.places = places
        self._directory = directory or Path(tempfile.gettempdir())
        with explained_disk(self._directory):
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 (closed by __exit__)
        self.count = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the disk its room back."""
        self._file.close()

    def add(self, row: FloatArray) -> None:
        """Add a row, float32 and contiguous.

        Raises:
            DiskFullError: there is no room for it.
        """
        rest = row.data.cast("B")
        with explained_disk(self._directory):
            while rest:  # a disk that is almost full takes a part
                rest = rest[self._file.write(rest) :]
        self.count += 1

    def slices(self) -> Iterator[tuple[slice, FloatArray]]:
        """Give some columns of all rows after others: which, and a copy of shape ``(count, columns)``."""
        step = max(1, AT_ONCE // max(1, self.count))
        for first in range(0, self.places.length, step):
            columns = slice(first, min(first + step, self.places.length))
            yield columns, self._read(columns.start, columns.stop)

    def factors(self, name: ModulePath, side: Side, rows: Sequence[int]) -> FloatArray:
        """Give one factor of a module of some rows: a copy of shape ``(rows, ...)``."""
        begin, shape = self.places.place(name, side)
        found = [self._numbers(row, begin, begin + shape[0] * shape[1]).reshape(shape) for row in rows]
        return np.stack(found)

    def _read(self, begin: int, end: int) -> FloatArray:
        return np.stack([self._numbers(row, begin, end) for row in range(self.count)])

    def _numbers(self, row: int, begin: int, end: int) -> FloatArray:
        self._file.seek(4 * (row * self.places.length + begin))
        return np.frombuffer(self._file.read(4 * (end - begin)), np.float32)
