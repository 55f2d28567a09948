"""Whole communities through what goes wrong: some seeds here, all of them with `make faults`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.plan import KINDS, Fault, make_plan
from tests.faults.run import BOUND_SECONDS, live_through, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * BOUND_SECONDS)]

SEEDS = (8, 12, 15, 19, 21, 28, 37, 41)
"""Chosen so that every kind of fault but the killed worker is among them; the next test sees to that."""

CALM = replace(make_plan(0), devices=("device-0", "device-1"), quorum=2, rounds=1, work_seconds=0.05, quarrel=0.0)


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_goes_wrong_every_update_counts_once_and_the_rounds_end(seed: int, one_layer: Path) -> None:
    outcome = await run(make_plan(seed), base=one_layer)
    assert outcome.wrong == []
    assert len(outcome.rounds) == make_plan(seed).rounds
    assert set(outcome.rounds) <= {"promoted", "rejected"}


def test_those_seeds_have_every_kind_of_fault_but_the_killed_worker_and_no_real_one() -> None:
    plans = [make_plan(seed) for seed in SEEDS]
    assert {fault.kind for plan in plans for fault in plan.faults} == set(KINDS) - {"kill-worker"}
    assert not any(plan.real_workers for plan in plans)


async def test_a_real_worker_killed_while_it_trains_costs_nothing(one_layer: Path) -> None:
    faults = (Fault(kind="kill-worker", who="device-0", at=1, seconds=1.0),)
    outcome = await run(replace(CALM, rank=8, real_workers=True, faults=faults), base=one_layer)
    assert outcome.wrong == []
    assert outcome.happened == {"kill-worker": 1}
    assert outcome.updates == 2


async def test_without_faults_nothing_is_refused_and_nobody_starts_twice(one_layer: Path, tmp_path: Path) -> None:
    outcome = (await live_through(replace(CALM, faults=()), tmp_path, base=one_layer)).outcome
    assert (outcome.wrong, outcome.rounds, outcome.updates) == ([], ["promoted"], 2)
    assert (outcome.refusals, outcome.restarts, outcome.happened) == ({}, 0, {})


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="kill-at-write", who="device-0", at=12),
        Fault(kind="kill-at-write", who="hub", at=40),
        Fault(kind="full-disk", who="hub", at=30, seconds=0.3),
        Fault(kind="clock", who="hub", at=3, seconds=-1e10),
    ],
    ids=lambda fault: f"{fault.kind} of {fault.who}",
)
async def test_a_fault_within_a_process_comes_about_where_the_plan_has_it(fault: Fault, one_layer: Path) -> None:
    outcome = await run(replace(CALM, faults=(fault,)), base=one_layer)
    assert (outcome.wrong, outcome.rounds) == ([], ["promoted"])
    assert outcome.happened == {fault.kind: 1}
    assert outcome.restarts == (0 if fault.kind == "clock" else 1)
