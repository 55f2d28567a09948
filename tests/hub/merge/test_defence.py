"""Merges with hostile updates among them: who counts, how far the outcome moves, and what every merge promises."""

from __future__ import annotations

import gc
import pickle
import tempfile
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import MergeError
from agent.governance.charter import OuterOptimiser, RobustRules
from agent.hub.merge.defence import merge_robustly
from agent.hub.merge.outer import PLAIN
from agent.hub.merge.rule import Accumulator, Contribution, Merged, MergeRule, load_rule, merge
from agent.llm.adapter import Adapter, LoraFactors, ModulePath
from agent.testing import check_merge_rule, random_adapter, random_delta
from agent.update.delta import Delta, Factors, apply, start_for_rank
from agent.update.wire import UpdateHeader, encode_update, open_update
from tests.hub.merge.byzfl_oracle import byzfl_module

WEIGHING = ("clipping", "geometric-median", "multi-krum")
ORDERING = ("trimmed-mean", "median")
EVERY = [RobustRules(name=name, mixing=mixing) for name in (*WEIGHING, *ORDERING) for mixing in (False, True)]  # type: ignore[arg-type]


def label(robust: RobustRules) -> str:
    return robust.name + ("-mixed" if robust.mixing else "")


def flat(delta: Delta) -> np.ndarray:
    return np.concatenate([np.r_[f.a.ravel(), f.b.ravel()] for f in delta.modules.values()]).astype(np.float64)


def times(delta: Delta, factor: float) -> Delta:
    modules = {n: LoraFactors(a=f.a * np.float32(factor), b=f.b * np.float32(factor)) for n, f in delta.modules.items()}
    return replace(delta, modules=modules)


def readers(deltas: list[Delta], weights: list[float] | None = None) -> dict[str, Any]:
    shares = weights or [1.0] * len(deltas)
    return {
        f"{index:03}": lambda delta=delta, share=share: Contribution(delta, share)  # type: ignore[misc]
        for index, (delta, share) in enumerate(zip(deltas, shares, strict=True))
    }


def step(community: Adapter, merged: Merged) -> np.ndarray:
    """What a merge by a linear rule changed, as one row."""
    after = merged.adapter.modules
    modules = {name: LoraFactors(a=after[name].a - f.a, b=after[name].b - f.b) for name, f in community.modules.items()}
    return flat(Delta(rank=community.rank, modules=modules))


def agreeing(count: int, *, seed: int = 0) -> list[Delta]:
    """Updates of devices that learned about the same."""
    common = random_delta(seed=seed)
    found = []
    for index in range(count):
        own = random_delta(seed=seed + index + 1)
        modules = {
            name: LoraFactors(a=f.a + own.modules[name].a / 2, b=f.b + own.modules[name].b / 2)
            for name, f in common.modules.items()
        }
        found.append(Delta(rank=4, modules=modules))
    return found


# --- every promise of a merge rule -----------------------------------------------------------------------------------


@dataclass
class Behind:
    """A merge rule behind a robust one, as the kit for merge rules wants it: updates wait in files until the end."""

    rule: MergeRule
    robust: RobustRules
    room: Path
    linear: bool = False

    @property
    def name(self) -> str:
        return f"{self.rule.name}-{self.robust.name}"

    def factors(self, round_number: int) -> Factors:
        return self.rule.factors(round_number)

    def start(self, community: Adapter, carry: bytes = b"", *, outer: OuterOptimiser = PLAIN) -> Accumulator:
        return Waiting(self, community, carry, outer)


class Waiting:
    def __init__(self, behind: Behind, community: Adapter, carry: bytes, outer: OuterOptimiser) -> None:
        self.behind, self.community, self.carry, self.outer = behind, community, carry, outer
        self.room = Path(tempfile.mkdtemp(dir=behind.room))
        self.files: dict[str, Path] = {}
        behind.rule.start(community, carry, outer=outer)

    def add(self, delta: Delta, weight: float, *, start: Adapter | None = None) -> None:
        self.behind.rule.start(self.community).add(delta, weight, start=start)  # refuses what the rule refuses
        path = self.room / f"{len(self.files):05}"
        path.write_bytes(pickle.dumps(Contribution(delta, weight, start)))
        self.files[path.name] = path

    def finish(self) -> Merged:
        def reader(path: Path) -> Any:
            return lambda: pickle.loads(path.read_bytes())

        updates = {name: reader(path) for name, path in self.files.items()}
        behind = self.behind
        return merge_robustly(
            behind.rule, self.community, updates, self.carry, robust=behind.robust, outer=self.outer, scratch=self.room
        )


@pytest.mark.parametrize(
    ("rule", "robust"),
    [
        ("fedavg", RobustRules()),
        ("fedavg", RobustRules(name="median")),
        ("alternate", RobustRules(name="trimmed-mean", mixing=True)),
        ("stack", RobustRules(name="geometric-median", mixing=True)),
    ],
    ids=lambda each: label(each) if isinstance(each, RobustRules) else each,
)
def test_a_rule_behind_a_robust_one_keeps_the_promises_of_every_merge_rule(
    rule: str, robust: RobustRules, tmp_path: Path
) -> None:
    check_merge_rule(Behind(load_rule(rule), robust, tmp_path))


@pytest.mark.parametrize("robust", EVERY, ids=label)
def test_the_same_packed_updates_give_the_same_bytes_in_any_order(robust: RobustRules) -> None:
    community = random_adapter()
    packed = dict(zip("abcdefg", (encoded(community, seed) for seed in range(7)), strict=True))
    one = merge_robustly(load_rule("fedavg"), community, packed, robust=robust)
    other = merge_robustly(load_rule("fedavg"), community, dict(reversed(packed.items())), robust=robust)
    assert one.adapter.to_bytes() == other.adapter.to_bytes()
    assert one.report == other.report


def encoded(community: Adapter, seed: int) -> Any:
    header = UpdateHeader(
        round=1,
        base_sha256=community.base_sha256,
        start_release="cd" * 32,
        rank=community.rank,
        alpha=community.alpha,
        tokens=100,
        steps=4,
        seed=seed,
    )
    data = encode_update(header, random_delta(seed=seed, size=0.05 * (1 + seed % 3)), "int4")
    opened = open_update(data, expected=community.shapes, max_rank=community.rank, max_bytes=len(data))
    return lambda: Contribution(opened, 1.0 + seed)


@pytest.mark.parametrize("robust", [RobustRules(), RobustRules(name="median", mixing=True)], ids=label)
def test_memory_does_not_grow_with_the_number_of_devices(robust: RobustRules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.hub.merge.spool.AT_ONCE", 1 << 14)  # so that small rows take several slices
    shapes = {ModulePath(f"model.layers.{layer}.mlp.up_proj"): (1000, 1000) for layer in range(4)}
    community = random_adapter(shapes=shapes)
    drawn = [random_delta(seed=seed, shapes=shapes) for seed in range(4)]
    peaks = []
    for count in (20, 40):
        updates = readers([drawn[index % 4] for index in range(count)])
        gc.collect()
        tracemalloc.start()
        try:
            merge_robustly(load_rule("fedavg"), community, updates, robust=robust)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    one = 4 * drawn[0].parameter_count
    assert peaks[1] - peaks[0] < 20 * one / 8


# --- norms and weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["delta", "packed"])
def test_an_update_scaled_fifty_times_pulls_no_more_than_an_honest_one(*, packed: bool) -> None:
    community, honest = random_adapter(), agreeing(5)
    loud = times(random_delta(seed=9), 50 / random_delta(seed=9).norm * honest[0].norm)
    without = merge(load_rule("fedavg"), community, readers([*honest, times(loud, 0)]))
    updates = readers([*honest, loud])
    if packed:
        updates = {
            name: lambda read=read: Contribution(as_packed(community, read().delta), 1.0)
            for name, read in updates.items()
        }  # type: ignore[misc]
    merged = merge_robustly(load_rule("fedavg"), community, updates, robust=RobustRules())
    bound = sorted(delta.norm for delta in [*honest, loud])[3]
    moved = np.linalg.norm(step(community, merged) - step(community, without))
    assert moved <= 1.05 * (bound + sum(max(0.0, delta.norm - bound) for delta in honest)) / 6
    assert merged.report.scales[-1] == pytest.approx(bound / loud.norm, rel=0.05)
    assert merged.report.norms[-1] == pytest.approx(bound, rel=0.05)


def as_packed(community: Adapter, delta: Delta) -> Any:
    header = UpdateHeader(
        round=1,
        base_sha256=community.base_sha256,
        start_release="cd" * 32,
        rank=4,
        alpha=community.alpha,
        tokens=1,
        steps=1,
        seed=0,
    )
    data = encode_update(header, delta, "int8")
    return open_update(data, expected=community.shapes, max_rank=4, max_bytes=len(data))


def test_norms_that_are_known_are_not_measured_again() -> None:
    community, deltas = random_adapter(), agreeing(4)
    asked = []

    def reader(index: int) -> Any:
        return lambda: asked.append(index) or Contribution(deltas[index], 1.0)  # type: ignore[func-returns-value]

    updates = {str(index): reader(index) for index in range(4)}
    norms = {str(index): deltas[index].norm for index in range(4)}
    known = merge_robustly(load_rule("fedavg"), community, updates, robust=RobustRules(), norms=norms)
    assert asked == [0, 1, 2, 3]
    measured = merge_robustly(load_rule("fedavg"), community, readers(deltas), robust=RobustRules())
    assert known.adapter.to_bytes() == measured.adapter.to_bytes()


def test_the_norm_bound_is_a_multiple_of_the_median_norm() -> None:
    deltas = [times(random_delta(seed=1), factor) for factor in (1, 1, 1, 3)]
    merged = merge_robustly(load_rule("fedavg"), random_adapter(), readers(deltas), robust=RobustRules(norm_bound=2.0))
    assert merged.report.scales == (1.0, 1.0, 1.0, pytest.approx(2 / 3))


@pytest.mark.parametrize("robust", [robust for robust in EVERY if robust.name in ORDERING], ids=label)
def test_order_statistics_count_every_update_the_same_whatever_it_weighs(robust: RobustRules) -> None:
    community, deltas = random_adapter(), agreeing(5)
    even = merge_robustly(load_rule("fedavg"), community, readers(deltas), robust=robust)
    greedy = merge_robustly(load_rule("fedavg"), community, readers(deltas, [1, 1, 1, 1, 1e9]), robust=robust)
    assert even.adapter.to_bytes() == greedy.adapter.to_bytes()


@pytest.mark.parametrize("name", WEIGHING)
def test_weights_count_where_whole_updates_are_weighed(name: Any) -> None:
    community, deltas = random_adapter(), agreeing(5)
    heavy = merge_robustly(
        load_rule("fedavg"), community, readers(deltas, [1, 1, 1, 1, 4.0]), robust=RobustRules(name=name, hostile=0.0)
    )
    assert heavy.report.weights[-1] >= 0.5 - 1e-9


# --- hostile updates -------------------------------------------------------------------------------------------------

ATTACKS = {
    "flipped": lambda delta: times(delta, -1),
    "scaled": lambda delta: times(delta, 50),
    "huge": lambda delta: times(random_delta(seed=99), 1e6 / delta.norm),
    "nothing": lambda delta: times(delta, 0),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("robust", EVERY, ids=label)
def test_two_hostile_updates_of_ten_move_the_outcome_no_further_than_two_honest_ones_could(
    robust: RobustRules, attack: str
) -> None:
    """Beside the mean of the eight others: by no more than four shares of the largest honest norm."""
    community, honest = random_adapter(), agreeing(10)
    updates = [ATTACKS[attack](delta) if index in {2, 7} else delta for index, delta in enumerate(honest)]
    merged = merge_robustly(load_rule("fedavg"), community, readers(updates), robust=robust)
    others = [flat(delta) for index, delta in enumerate(honest) if index not in {2, 7}]
    moved = np.linalg.norm(step(community, merged) - np.mean(others, axis=0))
    assert moved <= 4 / 10 * max(np.linalg.norm(row) for row in others)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", ["fedavg", "stack"])
@pytest.mark.parametrize("mixing", [False, True])
def test_multi_krum_leaves_hostile_updates_out_of_rows_and_of_products(rule: str, attack: str, *, mixing: bool) -> None:
    updates = [ATTACKS[attack](delta) if index in {2, 7} else delta for index, delta in enumerate(agreeing(10))]
    robust = RobustRules(name="multi-krum", mixing=mixing)
    report = merge_robustly(load_rule(rule), random_adapter(), readers(updates), robust=robust).report
    if attack == "scaled":  # clipped, it is as any other
        assert [round(scale, 2) < 0.1 for scale in report.scales] == [index in {2, 7} for index in range(10)]
    else:
        assert [index for index, weight in enumerate(report.weights) if weight == 0] == [2, 7]
    assert sum(report.weights) == pytest.approx(1.0)
    assert report.updates == len(report.norms) == len(report.cosines) == 10


def test_updates_that_are_trimmed_away_are_reported_as_counting_less() -> None:
    updates = [times(delta, -1) if index in {2, 7} else delta for index, delta in enumerate(agreeing(10))]
    robust = RobustRules(name="trimmed-mean")
    report = merge_robustly(load_rule("fedavg"), random_adapter(), readers(updates), robust=robust).report
    assert max(report.weights[2], report.weights[7]) < min(
        weight for index, weight in enumerate(report.weights) if index not in {2, 7}
    )
    assert report.cosines[2] < 0 < report.cosines[0]


@pytest.mark.parametrize("robust", EVERY, ids=label)
def test_an_update_that_is_not_finite_ends_the_merge_instead_of_reaching_it(robust: RobustRules) -> None:
    with pytest.raises(MergeError, match="not finite"):
        merge_robustly(
            load_rule("fedavg"),
            random_adapter(),
            readers([*agreeing(4), random_delta(size=float("nan"))]),
            robust=robust,
        )


# --- the whole beside byzfl, and beside dense matrices ---------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(count=st.integers(5, 9), seed=st.integers(0, 999), mixing=st.booleans())
def test_merges_of_rows_are_byzfls_aggregates_of_them(count: int, seed: int, *, mixing: bool) -> None:
    """The geometric median is held against byzfl's after as many steps as it takes ours to settle."""
    community = random_adapter()
    deltas = [random_delta(seed=seed + index, size=0.05 * (1 + index % 2)) for index in range(count)]
    rows = np.stack([flat(delta) for delta in deltas])
    hostile, bound = int(0.2 * count), float(np.sort(np.linalg.norm(rows, axis=1))[count // 2])
    before = byzfl_module("preaggregators")
    rows = before.Clipping(c=bound)(rows)
    rows = before.NNM(f=hostile)(rows) if mixing else rows
    theirs = byzfl_module("aggregators")
    oracles = {
        "clipping": theirs.Average(),
        "trimmed-mean": theirs.TrMean(f=hostile),
        "median": theirs.Median(),
        "multi-krum": theirs.MultiKrum(f=hostile),
        "geometric-median": theirs.GeometricMedian(nu=1e-3 * float(np.linalg.norm(rows, axis=1).max()), T=100),
    }
    for name, oracle in oracles.items():
        merged = merge_robustly(
            load_rule("fedavg"),
            community,
            readers(deltas),
            robust=RobustRules(name=name, mixing=mixing),  # type: ignore[arg-type]
        )
        np.testing.assert_allclose(step(community, merged), oracle(rows), atol=2e-5, err_msg=name)


def test_distances_between_changes_of_weights_are_those_of_dense_matrices() -> None:
    """With an update of lower rank among them, and one from an older release."""
    community, older = random_adapter(), random_adapter(seed=5)
    deltas = [random_delta(rank=rank, seed=rank) for rank in (4, 2, 3, 4)]
    starts = [None, None, None, older]
    updates = {
        str(index): lambda delta=delta, start=start: Contribution(delta, 1.0, start)  # type: ignore[misc]
        for index, (delta, start) in enumerate(zip(deltas, starts, strict=True))
    }
    robust = RobustRules(name="geometric-median", norm_bound=100)
    report = merge_robustly(load_rule("stack"), community, updates, robust=robust).report
    rows = []
    for delta, start in zip(deltas, starts, strict=True):
        before = start_for_rank(start or community, delta.rank)
        after = apply(before, delta)
        parts = [after.modules[n].b @ after.modules[n].a - f.b @ f.a for n, f in before.modules.items()]
        rows.append(community.scaling * np.concatenate([part.ravel() for part in parts]).astype(np.float64))
    found = byzfl_module("aggregators").GeometricMedian(nu=1e-6, T=200)(np.stack(rows))
    assert report.norms == pytest.approx([np.linalg.norm(row) for row in rows], rel=1e-4)
    cosines = [row @ found / np.linalg.norm(row) / np.linalg.norm(found) for row in rows]
    assert report.cosines == pytest.approx(cosines, abs=1e-3)


# --- what does not go together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERING)
def test_order_statistics_of_factors_are_refused_where_the_rule_merges_products(name: Any) -> None:
    with pytest.raises(MergeError, match="stack does not average numbers") as caught:
        merge_robustly(load_rule("stack"), random_adapter(), readers(agreeing(3)), robust=RobustRules(name=name))
    assert "multi-krum" in caught.value.advice


def test_in_alternate_those_who_trained_the_other_factor_count_as_having_left_this_one_alone() -> None:
    community = random_adapter()
    deltas = [*(random_delta(seed=seed, factors="b") for seed in range(3)), random_delta(seed=7, factors="a")]
    merged = merge_robustly(
        load_rule("alternate"),
        community,
        readers(deltas),
        robust=RobustRules(name="trimmed-mean", hostile=0.25, norm_bound=100),
    )
    for name, before in community.modules.items():
        np.testing.assert_array_equal(merged.adapter.modules[name].a, before.a)  # one of four: trimmed away
        rows = np.sort(np.stack([np.zeros_like(before.b), *(delta.modules[name].b for delta in deltas[:3])]), axis=0)
        np.testing.assert_allclose(merged.adapter.modules[name].b, before.b + rows[1:3].mean(axis=0), atol=1e-6)
