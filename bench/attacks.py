"""What two hostile devices of ten can do to what a community learns, by attack and by how updates are merged.

    python bench/attacks.py --json FILE [--plot PNG] [--seeds N] [--rules a,b] [--attacks c,d] [--rounds N]
    (- for standard output; progress on standard error; 36 runs by default, of about 35 seconds of one core each)

The community is that of `bench/quality.py`: ten devices with the speeches of the characters of a play or two each, what
a new charter says of rounds, updates packed, unpacked and merged by the product's code. Two of them attack in every
round (:mod:`engines.attackers` says how). Each row is one run: `attack` (`none` is the clean run), `rule`, `seed`,
`loss` on what all ten devices hold back after the last round (null where it is no number any more), `clean_loss` of the
clean run of the same rule and seed, `rise` = loss / clean_loss - 1, `default` (it is what a new charter says), and what
became of the hostile updates, summed over the rounds: `refused` (by the checks of the hub's inbox), `clipped`, and
`left_out` (they counted for nothing); `hostile_share` is what they counted for in a merge, on average.

Rules are those of a charter's `robust`, before `fedavg`; `-mixed` says that updates are averaged with their nearest
neighbours first. `plain` is the mean of all updates without any check at all, not even of numbers or norms.

JSON: `machine`, `recipe`, `rows`, and `missing`, the runs that are still to be done. As in the bench of
quality, runs are kept in FILE.runs, and an interrupted bench goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from agent.device.hardware import detect
from agent.errors import BrambleError, UpdateRefusedError
from agent.governance.charter import RobustRules
from agent.hub.inbox import NORM_SLACK
from agent.hub.merge.defence import merge_robustly
from agent.hub.merge.rule import Contribution, Merged, load_rule
from agent.llm.adapter import Adapter
from agent.update.compression import compression_of
from agent.update.delta import Delta, apply, clip, difference
from agent.update.layout import Layout
from agent.update.wire import OpenedUpdate, encode, open_update
from engines import attackers
from engines.attackers import ATTACKS, TRAINED, Rows
from engines.attacks_plot import draw
from engines.readers import ALPHA, CHARTER, DEVICES, RANK, RECIPE, TEXT, WINDOW, header_of, order_seed, world
from engines.runs import Row, do_all

ROUNDS = 5
HOSTILE = (2, 7)
BOUND = float(CHARTER["max_update_norm"])
DEFAULT = RobustRules.model_validate(CHARTER["robust"])
RULES: dict[str, RobustRules | None] = {
    "plain": None,
    "clipping": RobustRules(name="clipping"),
    "trimmed-mean": RobustRules(name="trimmed-mean"),
    "median": RobustRules(name="median"),
    "geometric-median": RobustRules(name="geometric-median"),
    "multi-krum-mixed": RobustRules(name="multi-krum", mixing=True),
}

Fates: TypeAlias = defaultdict[str, float]
"""What became of hostile updates, summed over the merges."""


@dataclass(frozen=True, slots=True)
class Run:
    """One row of the result, before it is known."""

    attack: str
    rule: str
    seed: int
    rounds: int

    @property
    def key(self) -> str:
        """What tells this run from all others."""
        robust = RULES[self.rule]
        return json.dumps(
            [*asdict(self).values(), robust and robust.model_dump(), asdict(RECIPE), CHARTER["compression"]]
        )


@dataclass(frozen=True, slots=True)
class Learnt:
    """What one device learned in a round, and its optimiser's moments."""

    row: np.ndarray
    moments: bytes


def layout(release: Adapter) -> Layout:
    """Give how the numbers of an update lie in a row."""
    return Layout(rank=release.rank, factors="both", modules=release.shapes)


def learn(release: Adapter, device: int, *, seed: int, number: int, moments: bytes | None) -> Learnt:
    """Train as a device does, and give its update, clipped as the charter says."""
    recipe = replace(RECIPE, schedule=CHARTER["training"]["schedule"])
    learnt = world().learner.train(
        release,
        world().devices[device].train,
        recipe,
        seed=order_seed(seed, number, device),
        factors="both",
        moments=moments,
    )
    delta = clip(difference(release, learnt.adapter, "both"), BOUND)
    return Learnt(row=layout(release).flatten(delta).astype(np.float64), moments=learnt.moments)


@cache
def first_round(seed: int, device: int) -> Learnt:
    """Give what a device learns from the adapter that all runs begin with."""
    return learn(world().first(seed), device, seed=seed, number=1, moments=None)


def do(run: Run) -> Row:
    """Do one run."""
    release, carry = world().first(run.seed), b""
    moments: dict[int, bytes] = {}
    found: Fates = defaultdict(float)
    for number in range(1, run.rounds + 1):
        trained = [device for device in range(DEVICES) if device not in HOSTILE or run.attack in TRAINED]
        try:
            learnt = {
                device: first_round(run.seed, device)
                if number == 1
                else learn(release, device, seed=run.seed, number=number, moments=moments[device])
                for device in trained
            }
        except BrambleError:  # the release is beyond training, and stays what it is
            break
        moments = {device: each.moments for device, each in learnt.items()}
        rows = {device: each.row for device, each in learnt.items()}
        sent = attacked(run, release, rows, number)
        robust = RULES[run.rule]
        if robust is None:
            release = plain_mean(release, sent)
        else:
            updates = arrive(run, release, sent, number, found)
            merged = merge_robustly(load_rule("fedavg"), release, updates, carry, robust=robust)
            release, carry = merged.adapter, merged.carry
            count_hostile(found, merged, list(updates))
        if not is_finite(release):
            break
    loss = world().loss(release) if is_finite(release) else math.nan
    return {
        **asdict(run),
        "loss": loss if math.isfinite(loss) else None,
        **{what: int(found[what]) for what in ("refused", "clipped", "left_out")},
        "hostile_share": found["share"] / run.rounds,
    }


def attacked(run: Run, release: Adapter, rows: Mapping[int, np.ndarray], number: int) -> dict[int, np.ndarray]:
    """Give what every device sends: honest ones what they learned."""
    bound = BOUND if RULES[run.rule] is not None else None
    honest = np.stack([row for device, row in sorted(rows.items()) if device not in HOSTILE])
    sent = dict(rows)
    rng = np.random.default_rng([run.seed, number])
    for device in HOSTILE:
        if run.attack == "sign-flipped":
            sent[device] = attackers.flipped(rows[device])
        elif run.attack == "scaled":
            sent[device] = attackers.scaled(rows[device], bound)
        elif run.attack == "random":
            sent[device] = attackers.random(honest[0], bound, rng)
        elif run.attack == "not-a-number" and bound is None:
            sent[device] = np.full_like(rows[device], np.nan)
    if run.attack == "a-little-is-enough":
        found = attackers.little(honest, bound, partial(displacement, run, release, honest))
        sent |= dict.fromkeys(HOSTILE, found)
    return sent


def displacement(run: Run, release: Adapter, honest: Rows, row: np.ndarray) -> float:
    """Say how far the merge ends from the honest mean where the hostile devices send this row."""
    every = [*honest, *[row] * len(HOSTILE)]
    robust = RULES[run.rule]
    if robust is None:
        moved = np.mean(every, axis=0)
    else:
        updates = {
            f"{index:02}": partial(Contribution, layout(release).restore(each.astype(np.float32)), 1.0)
            for index, each in enumerate(every)
        }
        merged = merge_robustly(load_rule("fedavg"), release, updates, robust=robust)
        moved = layout(release).flatten(difference(release, merged.adapter, "both")).astype(np.float64)
    return float(np.linalg.norm(moved - honest.mean(axis=0)))


def arrive(
    run: Run, release: Adapter, sent: Mapping[int, np.ndarray], number: int, found: Fates
) -> dict[str, partial[Contribution]]:
    """Encode every update, and let in what the hub's inbox lets in."""
    updates = {}
    for device, row in sorted(sent.items()):
        delta = layout(release).restore(row.astype(np.float32))
        header = header_of(release, number=number, seed=order_seed(run.seed, number, device), factors="both")
        data = encode(header, delta, CHARTER["compression"]).data
        if run.attack == "not-a-number" and device in HOSTILE:
            data = attackers.poisoned(data, compression_of(CHARTER["compression"]).sizes(row.size))
        try:
            updates[f"{device:02}"] = partial(Contribution, opened(data, release), 1.0)
        except UpdateRefusedError:
            found["refused"] += 1
    return updates


def opened(data: bytes, release: Adapter) -> OpenedUpdate:
    """Read and check an update as the inbox does."""
    update = open_update(data, expected=release.shapes, max_rank=release.rank, max_bytes=len(data))
    if update.delta().norm > BOUND * NORM_SLACK:
        raise UpdateRefusedError("its norm is beyond the charter's bound", advice="", reason="norm")
    return update


def count_hostile(found: Fates, merged: Merged, devices: Sequence[str]) -> None:
    """Count what became of the hostile updates of a merge."""
    report = merged.report
    for device, weight, scale in zip(devices, report.weights, report.scales, strict=True):
        if int(device) in HOSTILE:
            found["clipped"] += scale < 1
            found["left_out"] += weight == 0
            found["share"] += weight


def plain_mean(release: Adapter, sent: Mapping[int, np.ndarray]) -> Adapter:
    """Average whatever was sent."""
    mean = np.mean([row for _, row in sorted(sent.items())], axis=0)
    delta: Delta = layout(release).restore(mean.astype(np.float32))
    return apply(release, delta)


def is_finite(adapter: Adapter) -> bool:
    """Tell whether an adapter holds nothing but numbers."""
    return all(bool(np.isfinite(f.a).all() and np.isfinite(f.b).all()) for f in adapter.modules.values())


def wanted(arguments: argparse.Namespace) -> list[Run]:
    """Give all runs that were asked for: the default and plain averaging first."""
    first = ("clipping", "plain") if DEFAULT.name == "clipping" else ("plain",)
    rules = sorted(arguments.rules, key=lambda rule: (rule not in first, arguments.rules.index(rule)))
    return [
        Run(attack, rule, seed, arguments.rounds)
        for seed in range(arguments.seeds)
        for rule in rules
        for attack in arguments.attacks
    ]


def report_of(runs: Sequence[Run], done: Mapping[str, Row]) -> Row:
    """Give the result of those runs that are done, each beside the clean run of its rule and seed."""
    hardware = detect()
    rows = [done[run.key] for run in runs if run.key in done]
    clean = {(row["rule"], row["seed"]): row["loss"] for row in rows if row["attack"] == "none"}
    for row in rows:
        row["clean_loss"] = beside = clean.get((row["rule"], row["seed"]))
        row["rise"] = row["loss"] / beside - 1 if row["loss"] is not None and beside else None
        row["default"] = RULES[row["rule"]] == DEFAULT
    return {
        "machine": {"cpu": hardware.cpu_model, "cores": hardware.usable_cores, "system": platform.platform()},
        "recipe": {
            **asdict(RECIPE),
            "devices": DEVICES,
            "hostile": len(HOSTILE),
            "window": WINDOW,
            "rank": RANK,
            "alpha": ALPHA,
            "compression": CHARTER["compression"],
            "max_update_norm": BOUND,
        },
        "missing": len(runs) - len(rows),
        "rows": rows,
    }


def words(run: Run, row: Row) -> str:
    """Say what a run found."""
    loss = "no number" if row["loss"] is None else f"{row['loss']:.4f}"
    return f"{run.attack} on {run.rule} seed {run.seed}: {loss}"


def some_of(known: Sequence[str], text: str) -> list[str]:
    """Read a list with commas of what is known."""
    names = [part for part in text.split(",") if part]
    strange = [name for name in names if name not in known]
    if strange:
        raise argparse.ArgumentTypeError(f"there is no {strange[0]}, only {', '.join(known)}")
    return names


def options_of(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read a command line; this process's own where none is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    parser.add_argument("--plot", type=Path, help="PNG")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rules", type=partial(some_of, list(RULES)), default=list(RULES))
    parser.add_argument("--attacks", type=partial(some_of, ATTACKS), default=list(ATTACKS))
    parser.add_argument("--processes", type=int, default=detect().usable_cores)
    return parser.parse_args(given)


def main() -> None:
    """Do all runs, as many at once as there are cores."""
    options = options_of()
    if not TEXT.is_file():
        raise SystemExit(f"{TEXT} is not there: this bench needs the plays")
    found = do_all(
        wanted(options),
        do,
        report_of=report_of,
        words=words,
        target=options.json,
        processes=options.processes,
    )
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
