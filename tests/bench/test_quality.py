"""What the quality bench makes of its runs; the runs themselves take an hour."""

from __future__ import annotations

from typing import Any

import pytest
import quality

from agent.governance.charter import OuterOptimiser


def row(rule: str, loss: float, *, seed: int = 0, compression: str = "", **more: Any) -> dict[str, Any]:
    outer = OuterOptimiser().model_dump() if compression else None
    return {"rule": rule, "compression": compression, "outer": outer, "seed": seed, "loss": loss} | (
        {"bytes_per_update": 10.0} | more
    )


def seed_of(*centralised: float, base: float = 6.0, seed: int = 0) -> list[dict[str, Any]]:
    return [row("base", base, seed=seed), *(row("centralised", loss, seed=seed) for loss in centralised)]


def test_the_yardstick_is_the_best_centralised_run_of_the_same_seed() -> None:
    rows = [*seed_of(4.5, 4.0, 4.2), row("fedavg", 4.1, compression="int4")]
    rows += [*seed_of(5.0, 5.5, 5.2, seed=1), row("fedavg", 5.0, compression="int4", seed=1)]
    kept = quality.judged(rows)
    assert [each["loss"] for each in kept if each["rule"] == "centralised"] == [4.0, 5.0]
    assert [each["gain_fraction"] for each in kept if each["rule"] == "fedavg"] == pytest.approx([0.95, 1.0])
    (found,) = [each for each in quality.summary(kept) if each["rule"] == "fedavg"]
    assert found["seeds"] == 2
    assert found["gain_fraction"] == pytest.approx(0.975)
    assert (found["gain_fraction_min"], found["gain_fraction_max"]) == pytest.approx((0.95, 1.0))


def test_without_all_centralised_runs_nothing_is_said_of_a_seed() -> None:
    kept = quality.judged([*seed_of(4.5, 4.0), row("fedavg", 4.1, compression="int4")])
    assert not any("gain_fraction" in each for each in kept)


def test_the_default_is_what_a_new_charter_says_and_one_of_the_rows() -> None:
    options = quality.options_of(["--seeds", "2"])
    runs = quality.wanted(options)
    assert len({run.key for run in runs}) == len(runs) == 2 * (1 + len(quality.CENTRALISED_RATES) + 1 + 16)
    losses = {"base": 6.0}
    rows = [row(run.rule, losses.get(run.rule, 4.0), seed=run.seed, compression=run.compression) for run in runs]
    assert [each["seed"] for each in quality.judged(rows) if each["default"]] == [0, 1]


def test_the_default_comes_with_its_yardsticks_before_everything_else() -> None:
    runs = quality.wanted(quality.options_of(["--seeds", "3"]))
    first = runs[: 3 * (1 + len(quality.CENTRALISED_RATES) + 1)]
    usual = (quality.CHARTER["merge_rule"], quality.CHARTER["compression"])
    assert {(run.rule, run.compression) for run in first} == {("base", ""), ("centralised", ""), usual}
    assert [run.seed for run in runs[len(first) :]] == sorted(run.seed for run in runs[len(first) :])
