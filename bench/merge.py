"""Merging updates of 2.4 M parameters: Bramble from sealed bytes to the next adapter, Flower on plain arrays.

The updates have the shape of LoRA at rank 8 on all linear layers of SmolLM2-135M (210 modules). Bramble's side opens
each from its file (HPKE key, ChaCha20-Poly1305 stream, header, zstd, codes), checks it, and merges by `agent.hub.merge`
into an adapter, as the hub does; the hub's transfers and database are left out. Updates are clipped to their median
norm, as a new charter says; norms are known before, since the hub's inbox measures them. Engines with a third name are
those of a charter's `robust`; they read every update twice, and here decrypt it twice. Flower's side (`flwr` 1.41.0, in
an environment that is made for it) averages float32 arrays that are in memory already (`flwr`), or that it reads from
the messages that a server receives (`flwr-messages`, what `FedAvg.aggregate_fit` does); neither decrypts anything.

Every measurement is a child process of its own, for its peak memory, on one thread; engines take turns. The first
merge of a process warms up and is left out where there are others.

    python bench/merge.py --json FILE [--quick] [--only PATTERN ...] [--rounds N]    (- for standard output)

JSON: `machine`, and `rows`, one an engine and number of updates: `engine` (`flwr`, `flwr-messages`,
`bramble-RULE-COMPRESSION`, `bramble-RULE-COMPRESSION-ROBUST`), `updates`, medians of `updates_per_s` (wall clock) and
`updates_per_cpu_s` (per second of one core, which depends less on what else the machine does) with their least and
largest values, `peak_mb`, `wire_bytes` of one sealed update, `of_flwr` (`updates_per_cpu_s` over that of `flwr` for as
many updates); `memory_growth` by engine, peak memory at the most updates over that at the fewest; and `failures`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path

from agent.device.hardware import Hardware, detect
from engines.merge_bramble import RANK, SHAPES, prepare

_BENCH = Path(__file__).resolve().parent
FLWR = "1.41.0"
FLWR_NEEDS = (
    "grpcio",
    "protobuf>=5.28,<7",
    "cryptography",
    "pycryptodome<4",
    "iterators<0.0.3",
    "typer<0.21",
    "httpx",
    "rich<15",
)
"""What flwr imports for its strategies; all that it declares would be a web server and a database more."""
ENGINES = (
    "flwr",
    "flwr-messages",
    "bramble-fedavg-int8",
    "bramble-fedavg-int4",
    "bramble-fedavg-topk",
    "bramble-alternate-int4",
    "bramble-stack-int4",
    "bramble-fedavg-int4-geometric-median",
    "bramble-fedavg-int4-multi-krum",
    "bramble-fedavg-int4-trimmed-mean",
    "bramble-fedavg-int4-median",
)
COUNTS = (50, 500)
DISTINCT = 16
"""Sealed updates on disk; more are the same ones again."""


@dataclass
class Measured:
    """What the runs of one engine with one number of updates gave."""

    per_s: list[float] = field(default_factory=list)
    per_cpu_s: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)


class Bench:
    """All engines, in turn."""

    def __init__(self, *, work: Path) -> None:
        self.work = work
        self.python = work / "flwr" / "bin" / "python"
        self.sizes: dict[str, int] = {}
        self.found: dict[tuple[str, int], Measured] = {}
        self.failures: list[dict[str, object]] = []

    def install_flwr(self) -> None:
        """Make Flower's environment, where it is not there yet."""
        if not self.python.exists():
            say(f"installing flwr {FLWR}")
            venv.create(self.work / "flwr", with_pip=True)
            numpy = f"numpy=={__import__('numpy').__version__}"
            pip = [str(self.python), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, "--no-deps", f"flwr=={FLWR}"], check=True)
            subprocess.run([*pip, numpy, *FLWR_NEEDS], check=True)

    def prepare(self, engine: str) -> None:
        """Write the sealed updates of an engine, where they are not there yet."""
        if engine.startswith("flwr"):
            return
        _, rule, compression, *_ = engine.split("-", 3)
        say(f"sealing updates for {engine}")
        self.sizes[engine] = prepare(self.work / engine, rule, compression, DISTINCT)

    def measure(self, engine: str, updates: int, repeats: int) -> None:
        """Run one engine in a process of its own."""
        if engine.startswith("flwr"):
            shapes = json.dumps([shape for out, in_ in SHAPES.values() for shape in ((RANK, in_), (out, RANK))])
            mode = "messages" if engine.endswith("messages") else "arrays"
            command = [str(self.python), "engines/merge_flwr.py", mode, str(updates), str(repeats), shapes]
        else:
            _, rule, _, *robust = engine.split("-", 3)
            rules = json.dumps({"name": robust[0]} if robust else {})
            module = ["-m", "engines.merge_bramble", str(self.work / engine), rule, rules, str(updates), str(repeats)]
            command = [sys.executable, *module]
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join([str(_BENCH.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, **threads} | ({} if engine.startswith("flwr") else {"PYTHONPATH": path})
        done = subprocess.run(command, cwd=_BENCH, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            why = done.stderr.strip()[-500:] or f"ended with status {done.returncode}"
            say(f"{engine} with {updates} updates failed: {why}")
            self.failures.append({"engine": engine, "updates": updates, "why": why})
            return
        outcome = json.loads(done.stdout.strip().splitlines()[-1])
        warm = slice(1, None) if repeats > 1 else slice(None)
        kept = self.found.setdefault((engine, updates), Measured())
        kept.per_s += [updates / seconds for seconds in outcome["seconds"][warm]]
        kept.per_cpu_s += [updates / seconds for seconds in outcome["cpu_seconds"][warm]]
        kept.peaks.append(outcome["peak_mb"])
        say(
            f"{engine}, {updates} updates: {statistics.median(kept.per_s):.0f}/s,"
            f" {statistics.median(kept.per_cpu_s):.0f} a core second, {kept.peaks[-1]:.0f} MB"
        )

    def report(self, hardware: Hardware) -> dict[str, object]:
        """Put everything together."""
        rows = [self._row(engine, updates, kept) for (engine, updates), kept in sorted(self.found.items())]
        growth = {}
        for engine in sorted({engine for engine, _ in self.found}):
            peaks = {count: statistics.median(kept.peaks) for (of, count), kept in self.found.items() if of == engine}
            if len(peaks) > 1:
                growth[engine] = round(peaks[max(peaks)] / peaks[min(peaks)], 3)
        return {
            "machine": {
                "cpu": hardware.cpu_model,
                "cores": hardware.usable_cores,
                "memory_mb": hardware.memory_mb,
                "system": platform.platform(),
                "flwr": FLWR,
            },
            "parameters": RANK * sum(out + in_ for out, in_ in SHAPES.values()),
            "memory_growth": growth,
            "failures": self.failures,
            "rows": rows,
        }

    def _row(self, engine: str, updates: int, kept: Measured) -> dict[str, object]:
        peer = self.found.get(("flwr", updates))
        speed = statistics.median(kept.per_cpu_s)
        return {
            "engine": engine,
            "updates": updates,
            "runs": len(kept.per_s),
            "updates_per_s": round(statistics.median(kept.per_s), 1),
            "updates_per_s_min": round(min(kept.per_s), 1),
            "updates_per_s_max": round(max(kept.per_s), 1),
            "updates_per_cpu_s": round(speed, 1),
            "updates_per_cpu_s_min": round(min(kept.per_cpu_s), 1),
            "updates_per_cpu_s_max": round(max(kept.per_cpu_s), 1),
            "of_flwr": round(speed / statistics.median(peer.per_cpu_s), 2) if peer else None,
            "peak_mb": round(statistics.median(kept.peaks)),
            "wire_bytes": self.sizes.get(engine),
        }


def say(what: str) -> None:
    """Tell whoever waits how far the bench is."""
    print(time.strftime("%H:%M:%S ") + what, file=sys.stderr, flush=True)


def main() -> None:
    """Measure every engine."""
    hardware = detect()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    parser.add_argument("--quick", action="store_true", help="50 updates, once")
    parser.add_argument("--only", metavar="PATTERN", nargs="+", default=["*"], help="engines, with * and ?")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each engine (3)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bramble-bench-merge")
    options = parser.parse_args()
    engines = [engine for engine in ENGINES if any(fnmatch.fnmatch(engine, one) for one in options.only)]
    if not engines:
        parser.error(f"no engine is like {' or '.join(options.only)}; there are {', '.join(ENGINES)}")
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work=options.work.resolve())
    if any(engine.startswith("flwr") for engine in engines):
        bench.install_flwr()
    for engine in engines:
        bench.prepare(engine)
    for number in range(1 if options.quick else options.rounds):
        for updates in COUNTS[:1] if options.quick else COUNTS:
            for engine in engines if number % 2 == 0 else engines[::-1]:
                bench.measure(engine, updates, repeats=3 if updates < COUNTS[-1] else 2)
    text = json.dumps(bench.report(hardware), indent=2, ensure_ascii=False) + "\n"
    sys.stdout.write(text) if options.json == "-" else Path(options.json).write_text(text)


if __name__ == "__main__":
    main()
