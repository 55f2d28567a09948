"""Which arithmetic is faster on this machine, found out in some milliseconds."""

from __future__ import annotations

import time

import torch

from agent.training.elementwise import Elementwise
from agent.training.job import Compute
from agent.training.native_elementwise import native_elementwise
from agent.training.torch_elementwise import TORCH

_TURNS = 16
_WORTH_NARROWING = 1.25  # how many times faster bfloat16 must be before its coarser products are taken


def resolve_compute(compute: Compute) -> torch.dtype:
    """Give the type that frozen layers multiply in; ``auto`` measures both."""
    if compute != "auto":
        return torch.bfloat16 if compute == "bfloat16" else torch.float32
    wide, narrow = time_products()
    return torch.bfloat16 if wide > _WORTH_NARROWING * narrow else torch.float32


def resolve_elementwise(name: str | None = None) -> Elementwise:
    """Give what does the passes over memory beside the products: the C kernels where they are, else torch.

    Args:
        name: of what a training began with, which goes on with the same wherever this installation has it.
    """
    native = None if name == TORCH.name else native_elementwise(torch.get_num_threads())
    return native or TORCH


def time_products() -> tuple[float, float]:
    """Time the product of a typical layer in float32 and in bfloat16, with the conversions that it would need.

    Returns:
        Seconds of each: the best of many that take turns, so that whatever else this machine does hits both alike.
    """
    x, weight = torch.ones(512, 768), torch.ones(768, 768)
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(_TURNS):
        for dtype, known in best.items():
            began = time.perf_counter()
            (x.to(dtype) @ weight.to(dtype).T).float()
            best[dtype] = min(known, time.perf_counter() - began)
    return best[torch.float32], best[torch.bfloat16]
