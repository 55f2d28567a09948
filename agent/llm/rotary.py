"""The order of rows in rotary layers.

llama.cpp rotates neighbouring pairs of rows of ``q`` and ``k``, transformers rotates row ``i`` with row ``i + half``
(Su et al. 2021, *RoFormer*; both compute the same). The converter to GGUF therefore permutes the rows of each head.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stored_order(rows: int, heads: int) -> NDArray[np.int64]:
    """Say for each row of the GGUF which row of the transformers weight it is: ``gguf = hf[stored_order]``."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def model_order(rows: int, heads: int) -> NDArray[np.int64]:
    """Say for each row of the transformers weight which row of the GGUF it is: ``hf = gguf[model_order]``."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
