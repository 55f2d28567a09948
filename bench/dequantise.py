"""How fast packed weights become float32: ggml's own routine, as the trainer calls it, beside NumPy's.

The peer is `gguf.quants.dequantize`, the NumPy routine that other Python programs unpack GGUF with. Both take the same
packed blocks in the same process, in turn, after a warm-up; one thread each.

    python bench/dequantise.py --json FILE    (- for standard output)

JSON: `machine`, and `rows`, each with `type`, `elements`, `ggml_elements_s`, `numpy_elements_s` (medians over the
repeats), `ggml_spread`, `numpy_spread` (largest over smallest) and `ratio`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from agent.device.hardware import detect
from agent.llm.ggml import dequantize, format_of

ROWS, COLUMNS = 512, 4096
REPEATS = 7
TYPES = ("Q8_0", "Q4_0", "Q5_0", "Q4_K", "Q6_K")


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(name: str) -> dict[str, object]:
    """Time one block type, both ways in turn."""
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(1)
    packed = generator.integers(0, 64, (ROWS, COLUMNS // block * size), dtype=np.uint8)
    out = np.empty((ROWS, COLUMNS), np.float32)
    block_format = format_of(int(kind))
    flat = packed.reshape(-1)

    def ours() -> object:
        return dequantize(block_format, flat, out)

    def theirs() -> object:
        return gguf.quants.dequantize(packed, kind)

    if not np.allclose(np.nan_to_num(theirs()), np.nan_to_num((ours(), out)[1]), rtol=1e-4, atol=1e-5):
        sys.exit(f"{name}: the two routines disagree")
    times = [(seconds(ours), seconds(theirs)) for _ in range(REPEATS + 1)][1:]
    mine, peer = [pair[0] for pair in times], [pair[1] for pair in times]
    return {
        "type": name,
        "elements": ROWS * COLUMNS,
        "ggml_elements_s": round(ROWS * COLUMNS / statistics.median(mine)),
        "numpy_elements_s": round(ROWS * COLUMNS / statistics.median(peer)),
        "ggml_spread": round(max(mine) / min(mine), 2),
        "numpy_spread": round(max(peer) / min(peer), 2),
        "ratio": round(statistics.median(peer) / statistics.median(mine), 1),
    }


def main() -> None:
    """Run all block types."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    target = parser.parse_args().json
    hardware = detect()
    report = {
        "machine": {"cpu": hardware.cpu_model, "cores": hardware.usable_cores, "system": platform.platform()},
        "rows": [measure(name) for name in TYPES],
    }
    text = json.dumps(report, indent=2) + "\n"
    sys.stdout.write(text) if target == "-" else Path(target).write_text(text)


if __name__ == "__main__":
    main()
