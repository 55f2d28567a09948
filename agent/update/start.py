"""Where training starts from: the adapter before the first round, and rows for components that have died out."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from agent.errors import AdapterError
from agent.llm.adapter import MAX_RANK, Adapter, LoraFactors, ModulePath


def initial_adapter(
    shapes: Mapping[ModulePath, tuple[int, int]], *, rank: int, alpha: float, seed: int, base_sha256: str
) -> Adapter:
    """Give the adapter that changes nothing yet: ``B`` zero, ``A`` drawn as PEFT draws it.

    Args:
        shapes: ``(out_features, in_features)`` by module.
        rank: components of every module.
        alpha: numerator of the scaling.
        seed: what ``A`` is drawn from; the same seed gives the same bytes.
        base_sha256: hex SHA-256 of the base.

    Raises:
        AdapterError: the rank, the scaling or the list of modules cannot be used.
    """
    if not 1 <= rank <= MAX_RANK or not (np.isfinite(alpha) and alpha > 0) or not shapes:
        raise AdapterError(
            f"no adapter has rank {rank}, alpha {alpha} and {len(shapes)} modules",
            advice=f"Choose a rank from 1 to {MAX_RANK}, a positive alpha, and at least one module.",
        )
    modules = {
        name: LoraFactors(
            a=fresh_rows(rank, shapes[name][1], seed=seed, key=name).astype(np.float32),
            b=np.zeros((shapes[name][0], rank), np.float32),
        )
        for name in sorted(shapes)
    }
    return Adapter(rank=rank, alpha=float(alpha), modules=modules, base_sha256=base_sha256)


def fresh_rows(count: int, in_features: int, *, seed: int, key: str) -> NDArray[np.float64]:
    """Draw rows for ``A``: Kaiming uniform with ``a = sqrt(5)``, which is uniform within ``1 / sqrt(in_features)``.

    He et al. 2015, *Delving deep into rectifiers*, section 2.2, as PEFT and ``torch.nn.Linear`` apply it.

    Args:
        count: rows.
        in_features: columns.
        seed: the same seed and key give the same rows.
        key: keeps modules (and rounds) apart.
    """
    entropy = int.from_bytes(sha256(f"bramble/rows/1\0{seed}\0{key}".encode()).digest()[:16], "big")
    bound = 1.0 / np.sqrt(in_features)
    return np.random.Generator(np.random.PCG64(entropy)).uniform(-bound, bound, size=(count, in_features))
