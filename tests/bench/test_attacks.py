"""What the bench of attacks sends and makes of its runs; the runs themselves take half a minute each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import attacks
import numpy as np
import pytest

from agent.errors import UpdateRefusedError
from agent.governance.charter import Charter
from agent.testing import random_adapter, random_delta
from agent.update.compression import compression_of
from agent.update.layout import layout_of
from agent.update.wire import encode
from engines import attackers, attacks_plot
from engines.readers import header_of
from engines.runs import do_all


def rows(count: int = 8, length: int = 400) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.normal(size=(count, length)) + rng.normal(size=length)


def test_hostile_rows_stay_just_within_the_bound_where_there_is_one() -> None:
    own = rows()[0]
    rng = np.random.default_rng(0)
    for sent in (attackers.scaled(own, 30.0), attackers.random(own, 30.0, rng)):
        assert 29 < np.linalg.norm(sent) < 30
    assert np.linalg.norm(attackers.scaled(own, None)) == pytest.approx(50 * np.linalg.norm(own))
    assert np.linalg.norm(attackers.little(rows(), 10.0, lambda _: 1.0)) < 10
    np.testing.assert_array_equal(attackers.flipped(own), -own)


def test_a_little_is_enough_takes_as_many_deviations_as_lead_the_merge_away_most() -> None:
    honest = rows()
    mean, deviation = honest.mean(axis=0), honest.std(axis=0, ddof=1)

    def displacement(row: np.ndarray) -> float:
        found = float(((mean - row) / deviation).mean())
        return found if found < 2 else 0.0  # a rule that throws out what is further away

    found = attackers.little(honest, None, displacement)
    np.testing.assert_allclose(found, mean - 1.5 * deviation)


def test_a_poisoned_update_is_in_order_but_for_its_step_and_the_checks_refuse_it() -> None:
    release, delta = random_adapter(), random_delta()
    header = header_of(release, number=1, seed=0, factors="both")
    data = encode(header, delta, "int4").data
    assert attacks.opened(data, release).header == header
    bad = attackers.poisoned(data, compression_of("int4").sizes(layout_of(delta).count))
    with pytest.raises(UpdateRefusedError) as caught:
        attacks.opened(bad, release)
    assert caught.value.reason == "not-finite"
    far = random_delta(size=2 * attacks.BOUND)
    with pytest.raises(UpdateRefusedError, match="bound"):
        attacks.opened(encode(header, far, "int4").data, release)


def row(run: attacks.Run, loss: float | None) -> dict[str, Any]:
    return {"attack": run.attack, "rule": run.rule, "seed": run.seed, "loss": loss}


def test_the_default_and_plain_averaging_come_first_and_every_attack_is_beside_its_clean_run() -> None:
    runs = attacks.wanted(attacks.options_of([]))
    assert len({run.key for run in runs}) == len(runs) == len(attackers.ATTACKS) * len(attacks.RULES)
    first = {run.rule for run in runs[: 2 * len(attackers.ATTACKS)]}
    usual = Charter.model_fields["robust"].default
    assert {rule for rule in first if attacks.RULES[rule] == usual} | {"plain"} == first
    assert len(first) == 2
    losses = {"none": 4.0, "not-a-number": None}
    found = attacks.report_of(runs, {run.key: row(run, losses.get(run.attack, 4.1)) for run in runs})
    assert found["missing"] == 0
    assert sum(each["default"] for each in found["rows"]) == len(attackers.ATTACKS)
    for each in found["rows"]:
        assert each["clean_loss"] == 4.0
        rise = {"none": 0.0, "not-a-number": None}.get(each["attack"], 0.025)
        assert each["rise"] == (rise if rise is None else pytest.approx(rise))


def test_without_its_clean_run_nothing_is_said_of_how_far_a_loss_rose() -> None:
    runs = attacks.wanted(attacks.options_of(["--rules", "median"]))
    done = {run.key: row(run, 5.0) for run in runs if run.attack == "sign-flipped"}
    found = attacks.report_of(runs, done)
    assert (found["missing"], found["rows"][0]["rise"]) == (len(runs) - 1, None)


def test_an_attack_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no magic, only none, sign-flipped"):
        attacks.some_of(attackers.ATTACKS, "sign-flipped,magic")


def test_an_interrupted_bench_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    runs = attacks.wanted(attacks.options_of(["--rules", "plain", "--attacks", "none,sign-flipped"]))
    target = tmp_path / "attacks.json"
    kept = {run.key: row(run, 4.0) for run in runs}
    Path(f"{target}.runs").write_text(json.dumps(kept))
    found = do_all(
        runs, attacks.do, report_of=attacks.report_of, words=attacks.words, target=str(target), processes=1
    )  # does none, or this would take a minute
    assert found["missing"] == 0
    assert json.loads(target.read_text())["rows"][1]["rise"] == 0.0


def test_the_picture_is_drawn_with_losses_that_are_no_numbers(tmp_path: Path) -> None:
    runs = attacks.wanted(attacks.options_of([]))
    losses = {"none": 4.0, "not-a-number": None, "scaled": 9.0}
    found = attacks.report_of(runs, {run.key: row(run, losses.get(run.attack, 4.1)) for run in runs})
    attacks_plot.draw(found, tmp_path / "attacks.png")
    assert (tmp_path / "attacks.png").read_bytes().startswith(b"\x89PNG")
