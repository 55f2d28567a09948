"""What the community gains by each merge rule and compression: ten owners of Shakespeare's speeches, non-IID.

    python bench/quality.py --json FILE [--plot PNG] [--seeds N] [--rules a,b] [--compressions c,d] [--rounds N]
    (- for standard output; progress on standard error; 63 runs by default, of about 70 seconds of one core each)

Each of ten devices holds what the characters of a play or two say. In every round each trains from the release on its
own text by the product's own training engine; its update is clipped, compressed and encoded as it would travel, decoded
as the hub decodes it, and merged by the product's rules. Schedule and moments are what a new charter says (`stack`
begins each round without moments, as `bramble hub init` has it). Losses are means over what all devices held back, so
that a device that learns nothing but its own text gains little. All runs of a seed begin with the same adapter:

- ``base``: the seedling as it is; the zero of ``gain_fraction``;
- ``centralised``: all text in one place, as many steps as the devices did one after another, each on a batch as large
  as theirs together; the best of several learning rates, so that the yardstick is a strong one. The one of
  ``gain_fraction``;
- ``alone``: each device by itself with all its steps in one go, the mean over the devices;
- every rule with every compression. ``outer`` says what the hub made of the mean change.

JSON: ``machine``, ``recipe`` (what devices do), and ``rows``, each with ``rule``, ``compression``, ``outer``, ``seed``,
``loss`` (nats a token after the last round), ``loss_by_round`` (of some rounds), ``gain_fraction`` = (base - loss) /
(base - centralised, of the same seed), ``bytes_per_update`` (mean, sealed, as offered), ``share_of_fp32`` (of all
numbers that such an update has, as plain float32) and ``default`` (it is what a new charter says). ``summary`` has
mean, lowest and highest ``gain_fraction`` of each rule and compression over the seeds; ``missing`` counts the runs that
are still to be done. The file is written anew after each run, the runs that matter most first, and what is done is kept
in FILE.runs: begun again with the same arguments, the bench goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from agent.crypto.sealing import SealKey
from agent.device.hardware import detect
from agent.federation.sealing import wrap_update
from agent.governance.charter import OuterOptimiser, RobustRules
from agent.hub.merge.defence import merge_robustly
from agent.hub.merge.rule import Contribution, load_rule
from agent.llm.adapter import Adapter
from agent.update.delta import Delta, Factors, difference
from agent.update.feedback import send
from agent.update.layout import layout_of
from agent.update.wire import decode_update
from engines.learner import Recipe
from engines.quality_plot import draw
from engines.readers import ALPHA, CHARTER, DEVICES, HASH, RANK, RECIPE, TEXT, WINDOW, header_of, order_seed, world
from engines.runs import Row, do_all
from engines.speakers import pooled

ROUNDS = 10
ROBUST = RobustRules.model_validate(CHARTER["robust"])
JUDGED_EVERY = 5
CENTRALISED_RATES = (8e-3, 1.2e-2, 1.6e-2)
RULES = ("fedavg", "stack", "alternate", "ffa")
COMPRESSIONS = ("none", "int8", "int4", "topk")
_COMMUNITY = bytes(16)
_SEAL_KEY = SealKey.generate().public


@dataclass(frozen=True, slots=True)
class Run:
    """One line of the result, before it is known.

    Attributes:
        rule: a merge rule, or ``base``, ``centralised`` or ``alone``.
        compression: of updates; empty where none travel.
        outer: the outer optimiser.
        seed: of the adapter before the first round, the order of windows, and the rounding.
        rounds: how many.
        learning_rate: of the devices.
    """

    rule: str
    compression: str
    outer: OuterOptimiser
    seed: int
    rounds: int
    learning_rate: float

    @property
    def key(self) -> str:
        """What tells this run from all others."""
        others = [RECIPE.steps, RECIPE.batch_size, RECIPE.warmup_steps, RECIPE.schedule, DEVICES, WINDOW, RANK]
        density = [CHARTER["density"]] if self.compression == "topk" else []
        robust = [ROBUST.model_dump()] if self.compression else []
        known = [CHARTER["training"]["moments"], *robust, *density]
        return json.dumps([*asdict_run(self).values(), *others, *known])


def do(run: Run) -> Row:
    """Do one run, in a process of its own."""
    kinds = {"base": base_alone, "centralised": centralised, "alone": each_alone}
    found = kinds.get(run.rule, community)(run)
    return {**asdict_run(run), **found}


def asdict_run(run: Run) -> Row:
    """Give what a run is, as JSON has it."""
    return {**asdict(run), "outer": run.outer.model_dump() if run.compression else None}


def base_alone(run: Run) -> Row:
    """Judge the base."""
    return {"loss": world().loss(world().first(run.seed)), "bytes_per_update": 0.0}


def centralised(run: Run) -> Row:
    """Train on all text in one place, with the devices' batches together."""
    text = pooled([device.train for device in world().devices])
    recipe = in_one_go(run, batch_size=RECIPE.batch_size * DEVICES)
    learnt = world().learner.train(world().first(run.seed), text, recipe, seed=run.seed, factors="both")
    return {"loss": world().loss(learnt.adapter), "bytes_per_update": 0.0}


def in_one_go(run: Run, *, batch_size: int) -> Recipe:
    """Give all steps of all rounds without rounds, with the schedule that suits one training best."""
    steps = RECIPE.steps * run.rounds
    return Recipe(
        steps=steps,
        batch_size=batch_size,
        learning_rate=run.learning_rate,
        warmup_steps=max(1, steps // 20),
        schedule="cosine",
    )


def each_alone(run: Run) -> Row:
    """Let each device train by itself, all its steps in one go."""
    recipe = in_one_go(run, batch_size=RECIPE.batch_size)
    losses = []
    for index, device in enumerate(world().devices):
        seed = order_seed(run.seed, 0, index)
        learnt = world().learner.train(world().first(run.seed), device.train, recipe, seed=seed, factors="both")
        losses.append(world().loss(learnt.adapter))
    return {"loss": statistics.fmean(losses), "loss_by_device": losses, "bytes_per_update": 0.0}


def community(run: Run) -> Row:
    """Let the devices grow one adapter over the rounds."""
    rule = load_rule(run.rule)
    release, carry = world().first(run.seed), b""
    residuals: dict[tuple[int, Factors], Adapter | None] = {}
    moments: dict[tuple[int, Factors], bytes] = {}
    sizes: list[tuple[int, int]] = []
    losses: dict[int, float] = {}
    recipe = replace(RECIPE, learning_rate=run.learning_rate)
    for number in range(1, run.rounds + 1):
        factors = rule.factors(number)
        updates = {}
        for index, device in enumerate(world().devices):
            seed, whose = order_seed(run.seed, number, index), (index, factors)
            learnt = world().learner.train(
                release, device.train, recipe, seed=seed, factors=factors, moments=moments.get(whose)
            )
            if rule.linear and CHARTER["training"]["moments"] == "kept":
                moments[whose] = learnt.moments
            delta = difference(release, learnt.adapter, factors)
            data, residuals[whose] = pack(run, release, delta, residuals.get(whose), number=number, seed=seed)
            sizes.append((sealed_bytes(data), 4 * layout_of(delta).count))
            updates[f"device-{index}"] = partial(arrive, data, release)
        merged = merge_robustly(rule, release, updates, carry, robust=ROBUST, outer=run.outer)
        release, carry = merged.adapter, merged.carry
        if number % JUDGED_EVERY == 0 or number == run.rounds:
            losses[number] = world().loss(release)
    size, plain = (statistics.fmean(each) for each in zip(*sizes, strict=True))
    return {
        "loss": losses[run.rounds],
        "loss_by_round": losses,
        "bytes_per_update": size,
        "share_of_fp32": size / plain,
    }


def pack(
    run: Run, release: Adapter, delta: Delta, left: Adapter | None, *, number: int, seed: int
) -> tuple[bytes, Adapter | None]:
    """Give an update as a device encodes it, and what it keeps for the next one."""
    header = header_of(release, number=number, seed=seed, factors=delta.factors)
    density = CHARTER["density"]
    sending = send(
        header, release, delta, left, compression=run.compression, density=density, max_norm=CHARTER["max_update_norm"]
    )
    return sending.update.data, sending.residual


def arrive(data: bytes, release: Adapter) -> Contribution:
    """Read an update as the hub does."""
    _header, delta = decode_update(data, expected=release.shapes, max_rank=release.rank, max_bytes=len(data))
    return Contribution(delta=delta, weight=1.0)


def sealed_bytes(data: bytes) -> int:
    """Give how many bytes travel: the sealed chunks, and the offer with its sealed key."""
    parcel = wrap_update(
        data,
        seal_key=_SEAL_KEY,
        community=_COMMUNITY,
        hub="h" * 52,
        device="a" * 52,
        round_number=1,
        start_sha256=HASH,
    )
    return parcel.offer.size + len(parcel.offer.encode())


def wanted(arguments: argparse.Namespace) -> list[Run]:
    """Give all runs that were asked for: the default and its yardsticks first, what compares with it last."""
    rate = arguments.learning_rate
    runs = []
    for seed in range(arguments.seeds):
        settle = partial(Run, compression="", seed=seed, rounds=arguments.rounds, outer=OuterOptimiser())
        runs.append(settle(rule="base", learning_rate=rate))
        runs += [settle(rule="centralised", learning_rate=each) for each in CENTRALISED_RATES]
        runs.append(settle(rule="alone", learning_rate=rate))
        runs += [
            Run(rule, compression, arguments.outer, seed, arguments.rounds, rate)
            for rule in arguments.rules
            for compression in arguments.compressions
        ]
    return sorted(runs, key=urgency)


def urgency(run: Run) -> tuple[int, int]:
    """Order runs, the seeds of those that matter most before the first seed of those that matter less."""
    if run.rule in {"base", "centralised"}:
        return 0, run.seed
    usual = CHARTER["compression"]
    if run.compression == usual and run.rule == CHARTER["merge_rule"]:
        return 0, run.seed
    if run.rule in {"fedavg", "stack"} and run.compression in {usual, "none"}:
        return 1 + run.seed, 0
    return 1 + run.seed, 1


def judged(rows: Sequence[Row]) -> list[Row]:
    """Give the rows with the share of the gain that each recovers, and of several centralised runs the best one.

    A seed has no shares before all its centralised runs are done: the best of them might be still to come.
    """
    yardsticks: dict[int, list[Row]] = defaultdict(list)
    base: dict[int, float] = {}
    for row in rows:
        if row["rule"] == "centralised":
            yardsticks[row["seed"]].append(row)
        if row["rule"] == "base":
            base[row["seed"]] = row["loss"]
    best = {
        seed: min(runs, key=lambda row: row["loss"])
        for seed, runs in yardsticks.items()
        if len(runs) == len(CENTRALISED_RATES)
    }
    kept = [row for row in rows if row["rule"] != "centralised" or row is best.get(row["seed"])]
    for row in kept:
        seed = row["seed"]
        if seed in best and seed in base:
            row["gain_fraction"] = (base[seed] - row["loss"]) / (base[seed] - best[seed]["loss"])
        row["default"] = all(row[key] == CHARTER[key] for key in ("compression", "outer")) and (
            row["rule"] == CHARTER["merge_rule"]
        )
    return kept


def summary(rows: Iterable[Row]) -> list[Row]:
    """Give mean and spread over the seeds of each rule, outer optimiser and compression."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if "gain_fraction" in row:
            groups[json.dumps([row["rule"], row["compression"], row["outer"]])].append(row)
    found = []
    for group in groups.values():
        gains = [row["gain_fraction"] for row in group]
        found.append(
            {
                **{key: group[0][key] for key in ("rule", "compression", "outer", "default")},
                "seeds": len(group),
                "gain_fraction": statistics.fmean(gains),
                "gain_fraction_min": min(gains),
                "gain_fraction_max": max(gains),
                "loss": statistics.fmean(row["loss"] for row in group),
                "bytes_per_update": statistics.fmean(row["bytes_per_update"] for row in group),
                "share_of_fp32": statistics.fmean(row.get("share_of_fp32", 0.0) for row in group),
            }
        )
    return found


def report(rows: Sequence[Row], missing: int) -> Row:
    """Give the result of the runs that are done."""
    hardware = detect()
    kept = judged(rows)
    return {
        "machine": {"cpu": hardware.cpu_model, "cores": hardware.usable_cores, "system": platform.platform()},
        "recipe": {**asdict(RECIPE), "devices": DEVICES, "window": WINDOW, "rank": RANK, "alpha": ALPHA},
        "missing": missing,
        "rows": kept,
        "summary": summary(kept),
    }


def names(text: str) -> list[str]:
    """Cut a list with commas."""
    return [part for part in text.split(",") if part]


def optimiser(text: str) -> OuterOptimiser:
    """Read an outer optimiser such as ``nesterov,0.7,0.9``; ``default`` is the charter's."""
    if text == "default":
        return OuterOptimiser.model_validate(CHARTER["outer"])
    name, rate, momentum = (*text.split(","), "1.0", "0.9")[:3]
    return OuterOptimiser.model_validate({"name": name, "learning_rate": float(rate), "momentum": float(momentum)})


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read a command line; this process's own where none is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="-", help="file, or - for standard output")
    parser.add_argument("--plot", type=Path, help="PNG")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rules", type=names, default=list(RULES))
    parser.add_argument("--compressions", type=names, default=list(COMPRESSIONS))
    parser.add_argument("--learning-rate", type=float, default=RECIPE.learning_rate, help="of the devices")
    parser.add_argument("--outer", type=optimiser, default=optimiser("default"), metavar="NAME,RATE,MOMENTUM")
    parser.add_argument("--processes", type=int, default=detect().usable_cores)
    return parser.parse_args(words)


def main() -> None:
    """Do all runs, as many at once as there are cores."""
    options = options_of()
    if not TEXT.is_file():
        sys.exit(f"{TEXT} is not there: this bench needs the plays")
    found = do_all(
        wanted(options),
        do,
        report_of=report_of,
        words=lambda run, row: f"{run.rule} {run.compression} seed {run.seed}: {row['loss']:.4f}",
        target=options.json,
        processes=options.processes,
    )
    if options.plot:
        draw(found, options.plot)


def report_of(runs: Sequence[Run], done: Mapping[str, Row]) -> Row:
    """Give the result of those runs that are done."""
    rows = [done[run.key] for run in runs if run.key in done]
    return report(rows, missing=len(runs) - len(rows))


if __name__ == "__main__":
    main()
