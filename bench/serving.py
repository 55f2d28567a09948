"""What it costs to answer as another model: swapping adapters, and the first token after it, beside loading anew.

One context of the engine that `bramble serve` and `bramble chat` use goes back and forth between two random adapters on
one base. Before each swap and after it, a prompt of the same length, which shares nothing with the one before, is
answered as far as its first token. The peer is the high-level `llama_cpp.Llama(lora_path=...)`, which other Python
programs use, and which has to load the model again for another adapter. All in turn, in one process, warmed up.

    python bench/serving.py --json FILE [--base GGUF] [--threads N]    (- for standard output)

JSON: `machine`, `base`, `threads`, and `rows`, one a length of prompt: `prompt_tokens`, `repeats`, and medians in
milliseconds with their spread (largest over smallest): `swap_ms`, `first_token_before_ms`, `first_token_after_ms` (and
the `ratio` of after to before), and `reload_ms`, the peer's way to another adapter.
"""

from __future__ import annotations

# ruff: noqa: E402 (the first import has to come before llama.cpp, as in `bramble serve`)
from agent.llm.waiting import wait_politely

wait_politely()

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np

from agent.device.hardware import detect
from agent.llm.adapter import Adapter, LoraFactors
from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.gguf_file import GgufModel, open_gguf, sha256_file, target_modules
from agent.llm.runtime import Runtime
from agent.llm.seedling import SEEDLING_PATH

REPEATS = 25
RANK = 8
LENGTHS = (16, 96, 384)


def milliseconds(work: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def random_adapter(base: GgufModel, seed: int) -> Adapter:
    """Make an adapter on every linear layer."""
    generator = np.random.default_rng(seed)
    modules = {
        name: LoraFactors(
            a=generator.normal(0, 0.02, (RANK, target.in_features)).astype(np.float32),
            b=generator.normal(0, 0.02, (target.out_features, RANK)).astype(np.float32),
        )
        for name, target in sorted(target_modules(base).items())
    }
    return Adapter(rank=RANK, alpha=2.0 * RANK, modules=modules, base_sha256=sha256_file(base.path))


def first_token(runtime: Runtime, prompt: list[int]) -> None:
    """Answer a prompt as far as its first token."""
    with runtime.answer(prompt, max_tokens=1) as answer:
        while answer.finish is None:
            answer.step()


def measure(runtime: Runtime, files: list[Path], length: int) -> dict[str, object]:
    """Go back and forth between the adapters."""
    handles = [runtime.load_adapter(path) for path in files]
    generator = np.random.default_rng(length)
    times: dict[str, list[float]] = {"swap": [], "first_token_before": [], "first_token_after": [], "reload": []}
    for turn in range(REPEATS + 1):
        before, after = ([int(t) for t in generator.integers(300, 1000, length)] for _ in range(2))
        adapter = handles[turn % 2]
        found = {
            "first_token_before": milliseconds(lambda before=before: first_token(runtime, before)),  # type: ignore[misc]
            "swap": milliseconds(lambda adapter=adapter: runtime.use([(adapter, 1.0)])),  # type: ignore[misc]
            "first_token_after": milliseconds(lambda after=after: first_token(runtime, after)),  # type: ignore[misc]
            "reload": milliseconds(lambda path=files[turn % 2]: reload(runtime, path)),  # type: ignore[misc]
        }
        for name, value in found.items():
            if turn:
                times[name].append(value)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "prompt_tokens": length,
        "repeats": REPEATS,
        **{f"{name}_ms": round(value, 3) for name, value in medians.items()},
        **{f"{name}_spread": round(max(values) / min(values), 2) for name, values in times.items()},
        "ratio": round(medians["first_token_after"] / medians["first_token_before"], 3),
    }


def reload(runtime: Runtime, adapter: Path) -> None:
    """Load the base again with another adapter."""
    model = llama_cpp.Llama(
        str(runtime.base_path),
        lora_path=str(adapter),
        n_ctx=runtime.n_ctx,
        n_threads=runtime.n_threads,
        n_gpu_layers=0,
        verbose=False,
    )
    model.close()


def main() -> None:
    """Run every length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    parser.add_argument("--base", type=Path, default=SEEDLING_PATH, help="the seedling if not given")
    parser.add_argument("--threads", type=int, default=None, help="every core if not given")
    options = parser.parse_args()
    hardware = detect()
    base = open_gguf(options.base)
    with (
        tempfile.TemporaryDirectory() as directory,
        Runtime(base_path=options.base, n_ctx=512, n_threads=options.threads, scoring=False) as runtime,
    ):
        files = [Path(directory) / f"{seed}.gguf" for seed in range(2)]
        for seed, path in enumerate(files):
            write_gguf_adapter(random_adapter(base, seed), base, path)
        report = {
            "machine": {"cpu": hardware.cpu_model, "cores": hardware.usable_cores, "system": platform.platform()},
            "base": options.base.name,
            "threads": runtime.n_threads,
            "rows": [measure(runtime, files, length) for length in LENGTHS],
        }
    text = json.dumps(report, indent=2) + "\n"
    sys.stdout.write(text) if options.json == "-" else Path(options.json).write_text(text)


if __name__ == "__main__":
    main()
