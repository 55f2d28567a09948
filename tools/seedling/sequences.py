"""A file of tokens, cut into windows that are dealt in a new order every pass."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Tokens = npt.NDArray[np.uint16]


@lru_cache(maxsize=2)
def _order(seed: int, passes: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, passes]).permutation(count)


class Sequences:
    """Windows of ``length`` tokens, and for each the token that follows."""

    def __init__(self, path: Path, *, length: int, seed: int) -> None:
        self.tokens: Tokens = np.memmap(path, dtype="<u2", mode="r")
        self.length = length
        self.seed = seed
        self.count = (len(self.tokens) - 1) // length

    def window(self, index: int) -> Tensor:
        """Window ``index`` of the file: int64, length + 1."""
        start = index * self.length
        return torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))

    def deal(self, number: int) -> Tensor:
        """The window that is dealt as ``number``-th, counted from 0 over all passes."""
        passes, within = divmod(number, self.count)
        return self.window(int(_order(self.seed, passes, self.count)[within]))
