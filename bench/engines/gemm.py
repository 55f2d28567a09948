"""The fastest matrix product of this machine, as the yardstick for what training makes of it.

    python -m engines.gemm THREADS    (from bench/; JSON: best FLOP/s by type, and where it was reached)

Products as layers and heads need them (tokens x in by out x in, either side transposed) and square ones, by every way
that torch offers: ``mm`` and ``linear`` (MKL or oneDNN, as it chooses), and oneDNN with a weight packed in advance. The
best median of all counts. Without AVX-512 or better, oneDNN neither packs bfloat16 nor multiplies it at
a useful speed: then one small product says how slow it is.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

REPEATS = 5
PRODUCTS = (
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (2048, 1536, 576),
    (2048, 576, 1536),
    (512, 8192, 2048),
)
"""``(m, n, k)``: ``(m, k)`` by ``(k, n)``."""


def median_seconds(work: Callable[[], object]) -> float:
    """Time some calls after one that warms up."""
    work()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _has(dtype: torch.dtype) -> bool:
    """Say whether this processor multiplies a type at a useful speed."""
    if dtype == torch.float32:
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001


def main() -> None:
    """Measure all products in both types."""
    threads = int(sys.argv[1])
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    found: dict[str, dict[str, object]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        best, where = 0.0, ""
        for m, n, k in PRODUCTS if _has(dtype) else PRODUCTS[:1]:
            left, right = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
            across, out = right.T.contiguous(), torch.empty(m, n, dtype=dtype)
            ways: dict[str, Callable[[], object]] = {
                "mm": lambda a=left, b=across, o=out: torch.mm(a, b, out=o),
                "linear": lambda a=left, b=right: torch.nn.functional.linear(a, b),
            }
            if torch.backends.mkldnn.is_available() and _has(dtype):
                packed = torch.ops.mkldnn._reorder_linear_weight(right, m)  # noqa: SLF001 - torch's own
                ways["packed"] = lambda a=left, b=packed: torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
                    a, b, None, "none", [], ""
                )
            for way, work in ways.items():
                speed = 2 * m * n * k / median_seconds(work)
                if speed > best:
                    best, where = speed, f"{way} {m}x{n}x{k}"
        found[name] = {"flop_s": best, "where": where}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
