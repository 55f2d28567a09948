"""The order in which a delta's numbers lie in one row: module by module, dA then dB, each row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agent.llm.adapter import FloatArray, LoraFactors, ModulePath
from agent.update.delta import Delta, Factors


@dataclass(frozen=True, slots=True)
class Layout:
    """What a delta's numbers are, in order. Deltas of one layout can be added up as rows.

    Attributes:
        rank: of the delta.
        factors: which factors it has; a frozen one has no numbers here.
        modules: ``(out_features, in_features)`` by module path, in sorted order.
    """

    rank: int
    factors: Factors
    modules: Mapping[ModulePath, tuple[int, int]]

    @property
    def count(self) -> int:
        """How many numbers there are."""
        a, b = self.factors != "b", self.factors != "a"
        return self.rank * sum(in_ * a + out * b for out, in_ in self.modules.values())

    def flatten(self, delta: Delta) -> FloatArray:
        """Give a delta's numbers in a row of their own, float32.

        Args:
            delta: of this rank and these modules.
        """
        parts = []
        for name in self.modules:
            change = delta.modules[name]
            parts += [change.a.reshape(-1)] if self.factors != "b" else []
            parts += [change.b.reshape(-1)] if self.factors != "a" else []
        return np.concatenate(parts, dtype=np.float32) if parts else np.empty(0, np.float32)

    def restore(self, flat: FloatArray) -> Delta:
        """Give the delta of a row of numbers: views of it, and zeros for a factor that was frozen."""
        modules: dict[ModulePath, LoraFactors] = {}
        place = 0

        def take(rows: int, columns: int, *, frozen: bool) -> FloatArray:
            nonlocal place
            if frozen:
                return np.zeros((rows, columns), np.float32)
            place += rows * columns
            return flat[place - rows * columns : place].reshape(rows, columns)

        for name, (out, in_) in self.modules.items():
            a = take(self.rank, in_, frozen=self.factors == "b")
            b = take(out, self.rank, frozen=self.factors == "a")
            modules[name] = LoraFactors(a=a, b=b)
        return Delta(rank=self.rank, modules=modules, factors=self.factors)


def layout_of(delta: Delta) -> Layout:
    """Give the layout of a delta's numbers."""
    shapes = delta.shapes
    return Layout(rank=delta.rank, factors=delta.factors, modules={name: shapes[name] for name in sorted(shapes)})
