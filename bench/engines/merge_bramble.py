"""This project's side of `bench/merge.py`: from sealed updates to the next adapter, in a process of its own."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agent.crypto.sealing import SealKey, open_stream, pieces
from agent.federation.messages import Offer
from agent.federation.sealing import update_info, wrap_update
from agent.governance.charter import RobustRules
from agent.hub.merge.defence import merge_robustly
from agent.hub.merge.rule import Contribution, load_rule
from agent.hub.merging import read_update
from agent.llm.adapter import Adapter, LoraFactors, ModulePath
from agent.update.delta import Delta
from agent.update.start import initial_adapter
from agent.update.wire import UpdateHeader, encode_update

LAYERS, RANK, ALPHA = 30, 8, 16.0
SHAPES = {
    ModulePath(f"model.layers.{layer}.{name}"): shape
    for layer in range(LAYERS)
    for name, shape in (
        ("self_attn.q_proj", (576, 576)),
        ("self_attn.k_proj", (192, 576)),
        ("self_attn.v_proj", (192, 576)),
        ("self_attn.o_proj", (576, 576)),
        ("mlp.gate_proj", (1536, 576)),
        ("mlp.up_proj", (1536, 576)),
        ("mlp.down_proj", (576, 1536)),
    )
}
"""All linear layers of SmolLM2-135M."""
DENSITY = 0.1
COMMUNITY, ROUND, START = bytes(16), 1, "cd" * 32
HUB = "h" * 52


def community() -> Adapter:
    """Give the adapter that all updates start from."""
    shapes = dict(sorted(SHAPES.items()))
    return initial_adapter(shapes, rank=RANK, alpha=ALPHA, seed=0, base_sha256="ab" * 32)


def prepare(folder: Path, rule: str, compression: str, distinct: int) -> int:
    """Write sealed updates as devices would send them; give how many bytes the first one has.

    Their numbers are normally distributed, each tensor with a magnitude of its own, as training leaves them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    factors = load_rule(rule).factors(ROUND)
    key = SealKey.generate()
    (folder / "key").write_bytes(key.seed)
    size = 0
    for number in range(distinct):
        rng = np.random.default_rng(number)

        def numbers(rows: int, columns: int, *, trained: bool, rng: np.random.Generator = rng) -> np.ndarray:
            scale = np.float32(rng.uniform(0.002, 0.02) * trained)
            return scale * rng.standard_normal((rows, columns), dtype=np.float32)

        modules = {
            name: LoraFactors(
                a=numbers(RANK, in_, trained=factors != "b"), b=numbers(out, RANK, trained=factors != "a")
            )
            for name, (out, in_) in sorted(SHAPES.items())
        }
        header = UpdateHeader(
            round=ROUND,
            base_sha256="ab" * 32,
            start_release=START,
            rank=RANK,
            alpha=ALPHA,
            tokens=1000 + number,
            steps=40,
            seed=number,
            factors=factors,
        )
        delta = Delta(rank=RANK, modules=modules, factors=factors)
        body = encode_update(header, delta, compression, density=DENSITY if compression == "topk" else 1.0)
        parcel = wrap_update(
            body,
            seal_key=key.public,
            community=COMMUNITY,
            hub=HUB,
            device=f"device-{number}",
            round_number=ROUND,
            start_sha256=START,
        )
        (folder / f"{number}.offer").write_bytes(parcel.offer.encode())
        (folder / f"{number}.sealed").write_bytes(b"".join(parcel.chunks))
        size = size or parcel.offer.size
    return size


def read(folder: Path, key: SealKey, number: int, shapes: Mapping[ModulePath, tuple[int, int]]) -> Contribution:
    """Open one sealed update as the hub does."""
    offer = Offer.decode((folder / f"{number}.offer").read_bytes())
    sealed = (folder / f"{number}.sealed").read_bytes()
    info = update_info(
        COMMUNITY,
        HUB,
        f"device-{number}",
        offer.transfer,
        round_number=offer.round,
        start_sha256=offer.adapter,
    )
    stream_key = key.unseal(offer.sealed_key, info)
    body = open_stream(pieces(sealed, offer.chunk_bytes), stream_key, len(sealed))
    return Contribution(delta=read_update(body, shapes=shapes, max_rank=RANK), weight=1000.0 + number)


def main() -> None:
    """Merge as often as asked, and print what it took."""
    folder, rule, robust = Path(sys.argv[1]), sys.argv[2], RobustRules.model_validate_json(sys.argv[3])
    updates, repeats = int(sys.argv[4]), int(sys.argv[5])
    key, start = SealKey.from_seed((folder / "key").read_bytes()), community()
    distinct = len(list(folder.glob("*.offer")))
    shapes = start.shapes
    seconds, cpu = [], []
    of_distinct = [read(folder, key, number, shapes).delta.delta().norm for number in range(distinct)]
    norms = {f"{number:06}": of_distinct[number % distinct] for number in range(updates)}  # the inbox measures them
    for _ in range(repeats):
        readers = {
            f"{number:06}": lambda number=number: read(folder, key, number % distinct, shapes)  # type: ignore[misc]
            for number in range(updates)
        }
        began, began_cpu = time.perf_counter(), time.process_time()
        merged = merge_robustly(load_rule(rule), start, readers, robust=robust, norms=norms, scratch=folder)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
        assert merged.report.updates == updates
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak}))


if __name__ == "__main__":
    main()
