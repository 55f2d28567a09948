"""`make faults`: many fault runs, one seed each, and a summary.

    python -m tests.faults [--runs N] [--first SEED] [--seed SEED] [--jobs N] [--json FILE] [--keep DIR]

A run that fails says its seed; `--seed` (`make faults SEED=...`) does that one again. The summary goes to standard
output, and as JSON to `--json`: `runs`, `failed` (seeds, each with what was wrong), `faults` (how often each kind came
about), `rounds` (how often a round ended how), `updates`, `refusals` (by reason), `restarts`, `seconds`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines.broker import find_mosquitto
from tests.faults.community import tiny_base
from tests.faults.plan import KINDS, make_plan
from tests.faults.run import Outcome, run


def main() -> int:
    """Do the runs that were asked for; 1 where one of them failed."""
    options = _options()
    seeds = [options.seed] if options.seed is not None else list(range(options.first, options.first + options.runs))
    began = time.monotonic()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="bramble-faults-") as room:
        base = tiny_base(Path(room))
        for outcome in _until_stopped(_all(seeds, base, options)):
            outcomes.append(outcome)
            words = "; ".join(map(_short, outcome.wrong)) if outcome.wrong else ", ".join(outcome.rounds)
            done = f"{len(outcomes)}/{len(seeds)}"
            print(f"{done:>9}  seed {outcome.seed:<5} {outcome.seconds:6.1f} s  {words}", file=sys.stderr, flush=True)
    summary = summarise(outcomes, seconds=time.monotonic() - began)
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2) + "\n")
    print(_words(summary))
    if options.seed is not None:
        print(json.dumps(make_plan(options.seed).as_dict(), indent=2))
    return 1 if summary["failed"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fault runs of a whole community.")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--json", type=Path, help="where the summary goes as JSON")
    parser.add_argument("--keep", type=Path, help="where disks and logs of failed runs are kept")
    options = parser.parse_args()
    if find_mosquitto() is None:
        parser.error("mosquitto is not installed: install it, the runs need a real broker")
    return options


def _all(seeds: Sequence[int], base: Path, options: argparse.Namespace) -> Iterator[Outcome]:
    """Run the seeds, some at the same time, in order."""

    def one(seed: int) -> Outcome:
        try:
            return asyncio.run(run(make_plan(seed), base=base, keep=options.keep))
        except Exception as error:  # noqa: BLE001 - the run itself is broken: say so, and go on with the others
            return Outcome(seed=seed, wrong=[f"the run broke: {error!r} in {threading.current_thread().name}"])

    with ThreadPoolExecutor(options.jobs) as pool:
        yield from pool.map(one, seeds)


def _until_stopped(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Give outcomes until somebody stops it: what is under way then comes to its end, and cleans up behind itself."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield from outcomes
    except KeyboardInterrupt:
        print("stopped; what is under way ends first", file=sys.stderr, flush=True)


def summarise(outcomes: Sequence[Outcome], *, seconds: float) -> dict[str, Any]:
    """Count what came about in all runs."""
    faults: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    rounds: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    for outcome in outcomes:
        faults.update(outcome.happened)
        rounds.update(outcome.rounds)
        refusals.update(outcome.refusals)
    return {
        "runs": len(outcomes),
        "failed": [asdict(outcome) for outcome in outcomes if outcome.wrong],
        "faults": dict(faults),
        "rounds": dict(rounds),
        "updates": sum(outcome.updates for outcome in outcomes),
        "refusals": dict(refusals),
        "restarts": sum(outcome.restarts for outcome in outcomes),
        "seconds": round(seconds, 1),
    }


def _words(summary: dict[str, Any]) -> str:
    """Give the summary for people."""

    def counts(name: str) -> str:
        return ", ".join(f"{key} {count}" for key, count in summary[name].items()) or "none"

    lines = [
        f"{summary['runs']} runs in {summary['seconds']:g} s, {len(summary['failed'])} failed",
        f"faults     {counts('faults')}",
        f"rounds     {counts('rounds')}",
        f"updates    {summary['updates']} counted; refused: {counts('refusals')}",
        f"restarts   {summary['restarts']}",
        *(f"FAILED     seed {row['seed']}: {'; '.join(map(_short, row['wrong']))}" for row in summary["failed"]),
    ]
    return "\n".join(lines)


def _short(words: str) -> str:
    """Give a breach in a line: of a traceback, its end."""
    lines = words.strip().splitlines()
    return words if len(lines) < 2 else f"{lines[0][:60]} … {lines[-1]}"


if __name__ == "__main__":
    sys.exit(main())
