"""All factors of an adapter in one vector, in the order in which an update's body has them.

Module by module in sorted order, first ``A`` row by row, then ``B``. Work on one long vector costs no Python per
module, of which a model has hundreds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.llm.adapter import FloatArray, LoraFactors, ModulePath

Side: TypeAlias = Literal["a", "b"]
SIDES: tuple[Side, ...] = ("a", "b")


class Layout:
    """Where each factor of an adapter lies in a vector.

    Args:
        shapes: ``(out, in)`` by module, in sorted order.
        rank: of every factor.
    """

    def __init__(self, shapes: Mapping[ModulePath, tuple[int, int]], rank: int) -> None:
        self.rank = rank
        self._places: dict[ModulePath, tuple[int, int, int]] = {}
        begin = 0
        for name, (out, in_) in shapes.items():
            middle, end = begin + rank * in_, begin + rank * (in_ + out)
            self._places[name] = (begin, middle, end)
            begin = end
        self.length = begin

    def modules(self, vector: NDArray[np.float32]) -> dict[ModulePath, LoraFactors]:
        """Give each module's factors as views of a vector."""
        return {
            name: LoraFactors(
                a=vector[begin:middle].reshape(self.rank, -1), b=vector[middle:end].reshape(-1, self.rank)
            )
            for name, (begin, middle, end) in self._places.items()
        }

    def side(self, side: Side) -> NDArray[np.bool_]:
        """Tell which numbers of a vector belong to ``A``, or to ``B``."""
        mask = np.zeros(self.length, bool)
        for begin, middle, end in self._places.values():
            mask[slice(begin, middle) if side == "a" else slice(middle, end)] = True
        return mask

    def vector(self, modules: Mapping[ModulePath, LoraFactors]) -> FloatArray:
        """Give factors as a vector, float32; what they lack (modules, components above their rank) is zero."""
        vector = np.zeros(self.length, np.float32)
        views = self.modules(vector)
        for name, factors in modules.items():
            rank = factors.a.shape[0]
            views[name].a[:rank] = factors.a
            views[name].b[:, :rank] = factors.b
        return vector
