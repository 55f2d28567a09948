"""Adapters and deltas of random numbers, small enough to check with dense matrices."""

from __future__ import annotations

import numpy as np

from agent.llm.adapter import Adapter, LoraFactors, ModulePath
from agent.update.delta import Delta, Factors

SMALL_SHAPES: dict[ModulePath, tuple[int, int]] = {
    ModulePath("model.layers.0.mlp.down_proj"): (12, 20),
    ModulePath("model.layers.0.self_attn.q_proj"): (16, 12),
    ModulePath("model.layers.1.mlp.up_proj"): (20, 12),
}
"""Layers small enough to check with dense matrices."""


def random_adapter(
    *, rank: int = 4, seed: int = 0, shapes: dict[ModulePath, tuple[int, int]] | None = None, alpha: float = 8.0
) -> Adapter:
    """Give an adapter of random factors whose components are neither ordered nor independent."""
    rng = np.random.default_rng(seed)
    modules = {
        name: LoraFactors(
            a=rng.normal(0, 0.3, (rank, in_)).astype(np.float32), b=rng.normal(0, 0.3, (out, rank)).astype(np.float32)
        )
        for name, (out, in_) in sorted((shapes or SMALL_SHAPES).items())
    }
    return Adapter(rank=rank, alpha=alpha, modules=modules, base_sha256="ab" * 32)


def random_delta(
    *,
    rank: int = 4,
    seed: int = 0,
    shapes: dict[ModulePath, tuple[int, int]] | None = None,
    size: float = 0.05,
    factors: Factors = "both",
) -> Delta:
    """Give a delta of random numbers with this standard deviation; a factor that is not trained does not change."""
    noise = random_adapter(rank=rank, seed=seed + 10_000, shapes=shapes)
    of_a, of_b = (np.float32(size / 0.3) if factors in ("both", side) else np.float32(0) for side in ("a", "b"))
    modules = {name: LoraFactors(a=f.a * of_a, b=f.b * of_b) for name, f in noise.modules.items()}
    return Delta(rank=rank, modules=modules, factors=factors)
