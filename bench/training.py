"""How fast LoRA training is and how much memory it takes: this engine beside PEFT + transformers on unpacked weights.

    python bench/training.py --json FILE    (- for standard output; progress on standard error; about 20 minutes)

The models have random weights in the shape of SmolLM2-135M (Q8_0 and Q4_0) and of Llama-3.2-1B (Q4_K_M, for memory
only); they are written once into ``--work``. Every run is a process of its own: it trains all seven linear layers at
rank 8 from the same adapter on the same windows with the same AdamW, once to warm up and then timed. Engines take
turns, in reverse in every other round. The losses of the first step must agree within 1 %, or the bench ends: same
model, same tokens. Peers are as a careful user writes them (`engines/peft_engine.py`).

JSON: ``machine``, with ``load_before`` each round (figures of a busy machine say little); ``gemm``, the best FLOP/s by
type in this very run (`engines/gemm.py`); ``ratios``, each number that is asked of the engine with ``what``,
``required``, ``reached`` and ``met`` (None where it was not measured); ``failures``; and ``rows``, each with

- ``case``, ``model``, ``quant``, ``engine``, ``batch``, ``seq``, ``checkpointing``, ``adapted_layers``, ``compute``
  (arithmetic of the frozen layers; ``mixed`` where the engine did not choose the same in every run), ``adapter_type``
  (what PEFT chose by default), ``runs``, ``timed`` (how many times the median is of);
- ``tok_s``: batch x seq over the median seconds of a step, ``tok_s_min`` and ``tok_s_max``; start-up is in no figure.
  Where only part of the layers is adapted (``whole`` is true) it is all tokens of three epochs over all seconds from
  before the first step, filling the cache included;
- ``peak_mb``: median of the largest resident sizes, in MiB, mapped files included, with ``peak_mb_min`` and ``_max``;
- ``first_loss``, ``final_loss``: nats a token of the first and the last step (all engines of a case do the same steps);
- ``gemm_fraction``: what the arithmetic demands a second (formula in `engines/flops.py`) over the best product.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agent.device.hardware import Hardware, detect
from agent.errors import BrambleError
from agent.llm.gguf_file import open_gguf, sha256_file, target_shapes
from agent.update.start import initial_adapter
from engines import bramble_engine
from engines.cases import BRAMBLE_TRUNK_CACHE, CASES, Case, Engine, seconds_a_step
from engines.flops import flops_per_token
from engines.goals import GOALS, judge_all
from engines.run import ALPHA, RANK, SEED, TARGETS, Outcome, Run
from engines.shapes import model_file, zipf_windows

FIRST_LOSS_TOLERANCE = 0.01
_BENCH = Path(__file__).resolve().parent


@dataclass
class Bench:
    """One run of the bench.

    Attributes:
        work: folder for models and inputs.
        threads: to compute on.
        runs: what each engine of each case is asked to do.
        outcomes: of each, one a round.
        gemm: what the fastest product reached in each round, by type.
        loads: of the machine when each round began, as ``uptime`` counts; well below one where nothing else ran.
        failures: runs that did not end well.
    """

    work: Path
    threads: int
    runs: dict[tuple[Case, Engine], Run] = field(default_factory=dict)
    outcomes: dict[tuple[Case, Engine], list[Outcome]] = field(default_factory=dict)
    gemm: dict[str, list[float]] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    def measure_products(self) -> None:
        """Time the yardstick, and note how busy the machine was before it."""
        self.loads.append(round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0)
        found = json.loads(self._child("engines.gemm", str(self.threads)))
        for dtype, best in found.items():
            self.gemm.setdefault(dtype, []).append(best["flop_s"])
            say(f"best {dtype} product: {best['flop_s'] / 1e9:.0f} GFLOP/s ({best['where']})")

    def prepare(self, case: Case, engines: Sequence[Engine]) -> None:
        """Write what the runs of a case need; the model where it is not there yet."""
        shape = case.dimensions
        model = model_file(shape, case.quant, self.work)
        base = open_gguf(model)
        windows, adapter = self.work / f"{case.name}.npz", self.work / f"{case.name}.safetensors"
        count = case.batch * case.steps // case.epochs
        np.savez(windows, tokens=zipf_windows(count, case.seq, vocab=shape.vocab, seed=SEED))
        lowest = shape.layers - (case.last_layers or shape.layers)
        shapes = {name: size for name, size in target_shapes(base, TARGETS).items() if layer_of(name) >= lowest}
        digest = sha256_file(model)
        adapter.write_bytes(initial_adapter(shapes, rank=RANK, alpha=ALPHA, seed=SEED, base_sha256=digest).to_bytes())
        for engine in engines:
            self.runs[case, engine] = Run(
                shape=shape.name,
                model=model,
                sha256=digest,
                windows=windows,
                adapter=adapter,
                batch=case.batch,
                steps=case.steps,
                threads=self.threads,
                compute=engine.compute,
                checkpointing=engine.checkpointing,
                last_layers=case.last_layers,
                trunk_cache=engine is BRAMBLE_TRUNK_CACHE,
            )

    def train(self, case: Case, engine: Engine) -> None:
        """Run one engine once, and keep its outcome or why there is none."""
        run = self.runs[case, engine]
        try:
            if engine.name.startswith("peft"):
                job = self.work / "run.json"
                job.write_text(run.model_dump_json())
                outcome = Outcome.model_validate_json(self._child("engines.peft_engine", str(job)))
            else:
                outcome = bramble_engine.train(run)
        except (BrambleError, RuntimeError) as cause:
            say(f"{case.name} {engine.label} failed: {str(cause).strip()[-300:]}")
            self.failures.append({"case": case.name, "engine": engine.label, "why": str(cause)})
            return
        self.outcomes.setdefault((case, engine), []).append(outcome)
        speed = case.batch * case.seq / statistics.median(seconds_a_step(case, outcome))
        say(f"{case.name} {engine.label}: {speed:.0f} tok/s, {outcome.peak_mb:.0f} MB, loss {outcome.losses[-1]:.4f}")
        self._check_first_losses(case)

    def report(self, hardware: Hardware) -> dict[str, object]:
        """Put everything together."""
        best = {dtype: statistics.median(values) for dtype, values in self.gemm.items()}
        rows = [self._row(case, engine, outcomes, best) for (case, engine), outcomes in self.outcomes.items()]
        ratios = judge_all(rows, GOALS)
        for line in ratios:
            if line["met"] is not None:
                say(f"{'met    ' if line['met'] else 'NOT met'} {line['what']}: {line['reached']} ({line['required']})")
        return {
            "machine": {
                "cpu": hardware.cpu_model,
                "cores": hardware.usable_cores,
                "features": sorted(hardware.features),
                "memory_mb": hardware.memory_mb,
                "system": platform.platform(),
                "threads": self.threads,
                "load_before": self.loads,
                **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
            },
            "gemm": {dtype: round(value) for dtype, value in best.items()},
            "ratios": ratios,
            "failures": self.failures,
            "rows": rows,
        }

    def _row(
        self, case: Case, engine: Engine, outcomes: Sequence[Outcome], best: dict[str, float]
    ) -> dict[str, object]:
        times = [seconds for outcome in outcomes for seconds in seconds_a_step(case, outcome)]
        peaks = [outcome.peak_mb for outcome in outcomes]
        tokens = case.batch * case.seq
        speed = tokens / statistics.median(times)
        computes = [outcome.compute for outcome in outcomes]
        compute = statistics.mode(computes)
        demanded = flops_per_token(
            case.dimensions,
            seq=case.seq,
            rank=RANK,
            adapted_layers=case.last_layers,
            trunk_passes=1 / case.epochs if engine is BRAMBLE_TRUNK_CACHE else 1.0,
        )
        return {
            "case": case.name,
            "model": case.shape,
            "quant": case.quant,
            "engine": engine.name,
            "batch": case.batch,
            "seq": case.seq,
            "checkpointing": engine.checkpointing,
            "adapted_layers": case.last_layers or case.dimensions.layers,
            "compute": compute if len(set(computes)) == 1 else "mixed",
            "adapter_type": outcomes[0].adapter_type,
            "runs": len(outcomes),
            "timed": len(times),
            "whole": case.epochs > 1,
            "tok_s": round(speed, 1),
            "tok_s_min": round(tokens / max(times), 1),
            "tok_s_max": round(tokens / min(times), 1),
            "peak_mb": round(statistics.median(peaks)),
            "peak_mb_min": round(min(peaks)),
            "peak_mb_max": round(max(peaks)),
            "first_loss": round(outcomes[0].losses[0], 5),
            "final_loss": round(statistics.median(outcome.losses[-1] for outcome in outcomes), 5),
            "gemm_fraction": round(speed * demanded / best[compute], 3),
        }

    def _check_first_losses(self, case: Case) -> None:
        """End the bench where engines do not begin with the same loss: they would not be doing the same work."""
        first = {engine.label: outcomes[-1].losses[0] for (of, engine), outcomes in self.outcomes.items() if of is case}
        expected = next(iter(first.values()))
        for label, loss in first.items():
            if not math.isclose(loss, expected, rel_tol=FIRST_LOSS_TOLERANCE):
                sys.exit(f"{case.name}: {label} begins at a loss of {loss:.4f}, {next(iter(first))} at {expected:.4f}")

    @staticmethod
    def _child(module: str, argument: str) -> str:
        """Run a module of the bench, and give the last line it prints."""
        done = subprocess.run(
            [sys.executable, "-m", module, argument],
            cwd=_BENCH,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{module} ended with status {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout.strip().splitlines()[-1]


def layer_of(module: str) -> int:
    """Give the block that a module such as ``model.layers.3.mlp.up_proj`` is in."""
    return int(module.split(".")[2])


def chosen_pairs(only: str | None, *, quick: bool) -> list[tuple[Case, Engine]]:
    """Give the engines to run with their cases."""
    pairs = [(case, engine) for case in CASES for engine in case.engines]
    if only is not None:
        return [(case, engine) for case, engine in pairs if fnmatch.fnmatch(f"{case.name}/{engine.label}", only)]
    return [(case, engine) for case, engine in pairs if case.shape != "tiny" and (case.quick or not quick)]


def say(what: str) -> None:
    """Tell whoever waits how far the bench is."""
    print(time.strftime("%H:%M:%S ") + what, file=sys.stderr, flush=True)


def main() -> None:
    """Run all cases."""
    hardware = detect()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    parser.add_argument("--quick", action="store_true", help="one round of the two main cases")
    parser.add_argument("--only", metavar="PATTERN", help="CASE/ENGINE, with * and ?, such as 'q8_0-2x256/*'")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each engine (3)")
    parser.add_argument("--threads", type=int, default=min(hardware.physical_cores, hardware.usable_cores))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bramble-bench", help="for models")
    options = parser.parse_args()
    pairs = chosen_pairs(options.only, quick=options.quick)
    if not pairs:
        parser.error(f"no CASE/ENGINE is like {options.only}")
    options.work.mkdir(parents=True, exist_ok=True)
    rounds = 1 if options.quick else options.rounds
    bench = Bench(work=options.work.resolve(), threads=options.threads)
    cases = {case: [engine for of, engine in pairs if of is case] for case, _ in pairs}
    for case, engines in cases.items():
        say(f"preparing {case.name}")
        bench.prepare(case, engines)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        bench.measure_products()
        for case, engines in cases.items():
            if number < (case.rounds or rounds):
                for engine in engines if number % 2 == 0 else engines[::-1]:
                    bench.train(case, engine)
    report = bench.report(hardware)
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.write(text) if options.json == "-" else Path(options.json).write_text(text)


if __name__ == "__main__":
    main()
