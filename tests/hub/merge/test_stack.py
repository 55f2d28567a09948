from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import MergeError
from agent.governance.charter import OuterOptimiser
from agent.hub.merge.carry import carry_from_bytes, products_from_tensors
from agent.hub.merge.outer import PLAIN
from agent.hub.merge.rule import Contribution, Merged, merge
from agent.hub.merge.stack import StackRule
from agent.llm.adapter import Adapter, LoraFactors, ModulePath
from agent.testing import SMALL_SHAPES, check_merge_rule, random_adapter, random_delta
from agent.update.delta import Delta, apply, product_norms, start_for_rank
from agent.update.start import initial_adapter

Dense = dict[ModulePath, np.ndarray]


def products(adapter: Adapter) -> Dense:
    return {name: f.b.astype(np.float64) @ f.a.astype(np.float64) for name, f in adapter.modules.items()}


def changes(community: Adapter, delta: Delta) -> Dense:
    """Give a device's change of each layer, by dense matrices and the definition alone."""
    start = start_for_rank(community, delta.rank)
    before, after = products(start), products(apply(start, delta))
    return {name: after[name] - before[name] for name in before}


def carried(merged: Merged) -> Dense:
    shapes = merged.adapter.shapes
    left_over = products_from_tensors(carry_from_bytes("stack", merged.carry), shapes, "residual/")
    return {
        name: left_over[name].left @ left_over[name].right if name in left_over else np.zeros(shape)
        for name, shape in shapes.items()
    }


def run(
    rule: StackRule,
    community: Adapter,
    updates: list[tuple[Delta, float]],
    carry: bytes = b"",
    *,
    outer: OuterOptimiser = PLAIN,
) -> Merged:
    accumulator = rule.start(community, carry, outer=outer)
    for delta, weight in updates:
        accumulator.add(delta, weight)
    return accumulator.finish()


def test_the_rule_keeps_the_promises_of_every_rule() -> None:
    check_merge_rule(StackRule())
    check_merge_rule(StackRule(carry_rank=0))


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    weights=st.lists(st.floats(0.1, 1e6), min_size=12, max_size=12),
    rate=st.sampled_from([1.0, 0.5, 2.0]),
    seed=st.integers(0, 99),
)
def test_release_and_carry_are_together_the_exact_sum_for_any_mix_of_ranks(
    ranks: list[int], weights: list[float], rate: float, seed: int
) -> None:
    community = random_adapter(rank=5, seed=seed)
    updates = [(random_delta(rank=rank, seed=seed + i), weights[i]) for i, rank in enumerate(ranks)]
    merged = run(StackRule(), community, updates, outer=OuterOptimiser(learning_rate=rate))
    total = sum(weight for _, weight in updates)
    released, left_over = products(merged.adapter), carried(merged)
    for name, before in products(community).items():
        mean = sum(weight / total * changes(community, delta)[name] for delta, weight in updates)
        np.testing.assert_allclose(released[name] + left_over[name], before + rate * mean, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 3, 30])
def test_the_release_is_the_best_of_its_rank(devices: int) -> None:
    community = random_adapter(rank=4, seed=1)
    updates = [(random_delta(rank=1 + seed % 4, seed=seed, size=0.2), 1.0) for seed in range(devices)]
    merged = run(StackRule(), community, updates)
    released = products(merged.adapter)
    for name, before in products(community).items():
        exact = before + sum(changes(community, delta)[name] for delta, _ in updates) / devices
        u, s, vt = np.linalg.svd(exact)
        best = u[:, :4] * s[:4] @ vt[:4]
        np.testing.assert_allclose(released[name], best, atol=1e-5)
        factors = merged.adapter.modules[name]
        np.testing.assert_allclose(np.linalg.norm(factors.b, axis=0), np.sqrt(s[:4]), rtol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(factors.a, axis=1), np.sqrt(s[:4]), rtol=1e-4)


def test_over_many_rounds_nothing_is_lost() -> None:
    community, carry = initial_adapter(SMALL_SHAPES, rank=3, alpha=6, seed=0, base_sha256="ab" * 32), b""
    exact = products(community)
    for round_ in range(6):
        updates = [(random_delta(rank=3, seed=10 * round_ + i, size=0.2), 1.0 + i) for i in range(4)]
        total = sum(weight for _, weight in updates)
        for name in exact:
            exact[name] = exact[name] + sum(w / total * changes(community, d)[name] for d, w in updates)
        merged = run(StackRule(), community, updates, carry)
        assert merged.report.discarded_energy < 1e-9
        community, carry = merged.adapter, merged.carry
    released, left_over = products(community), carried(merged)
    for name, value in exact.items():
        np.testing.assert_allclose(released[name] + left_over[name], value, atol=1e-4)


def test_without_room_to_carry_the_lost_energy_is_published() -> None:
    community = random_adapter(rank=2, seed=1)
    updates = [(random_delta(rank=2, seed=seed, size=0.3), 1.0) for seed in range(5)]
    merged = run(StackRule(carry_rank=0), community, updates)
    assert merged.carry == b""
    lost = everything = 0.0
    for name, before in products(community).items():
        s = np.linalg.svd(before + sum(changes(community, d)[name] for d, _ in updates) / 5, compute_uv=False)
        lost, everything = lost + float((s[2:] ** 2).sum()), everything + float((s**2).sum())
    assert merged.report.discarded_energy == pytest.approx(lost / everything, rel=1e-6)
    kept = run(StackRule(carry_rank=99), community, updates).report
    assert kept.carried_energy == pytest.approx(lost / everything, rel=1e-6)
    assert kept.discarded_energy == pytest.approx(0, abs=1e-12)


def test_any_order_of_arrival_gives_the_same_bytes() -> None:
    community = random_adapter(seed=1)
    updates = {f"d{i}": Contribution(random_delta(rank=1 + i, seed=i), 1.0 + i) for i in range(3)}
    results = {
        (merged.adapter.to_bytes(), merged.carry)
        for order in itertools.permutations(updates)
        for merged in [merge(StackRule(), community, {d: lambda d=d: updates[d] for d in order})]  # type: ignore[misc]
    }
    assert len(results) == 1


def test_components_that_are_not_there_stay_trainable() -> None:
    community = initial_adapter(SMALL_SHAPES, rank=8, alpha=16, seed=0, base_sha256="ab" * 32)
    merged = run(StackRule(), community, [(random_delta(rank=2, seed=1), 1.0)])
    for factors in merged.adapter.modules.values():
        dead = ~factors.b.any(axis=0)
        assert dead.sum() >= 4
        assert factors.a.any(axis=1).all()
        norms = np.linalg.norm(factors.a[dead], axis=1)
        assert (norms > 0.2).all()
        assert (norms < 1.0).all()


def test_a_module_that_a_device_did_not_train_counts_as_unchanged() -> None:
    community, delta = random_adapter(seed=1), random_delta(seed=2)
    only = min(delta.modules)
    merged = run(StackRule(), community, [(replace(delta, modules={only: delta.modules[only]}), 1.0)])
    before, after = products(community), products(merged.adapter)
    for name, value in before.items():
        if name != only:
            np.testing.assert_allclose(after[name], value, atol=1e-6)


def test_the_report_names_weights_and_norms_in_order() -> None:
    community = random_adapter(rank=4, seed=1)
    deltas = [random_delta(rank=rank, seed=rank) for rank in (2, 4)]
    report = run(StackRule(), community, [(deltas[0], 1.0), (deltas[1], 3.0)]).report
    assert report.weights == (0.25, 0.75)
    for delta, norm in zip(deltas, report.norms, strict=True):
        norms = product_norms(start_for_rank(community, delta.rank), delta)
        assert norm == pytest.approx(float(np.linalg.norm(list(norms.values()))))


def test_numbers_whose_products_would_overflow_are_refused() -> None:
    huge = Delta(
        rank=4,
        modules={
            name: LoraFactors(a=np.full((4, i), 3e38, np.float32), b=np.full((o, 4), 3e38, np.float32))
            for name, (o, i) in SMALL_SHAPES.items()
        },
    )
    with pytest.raises(MergeError, match="too large"):
        StackRule().start(random_adapter()).add(huge, 1.0)


@pytest.mark.parametrize("rank", [2, 4])
def test_a_late_update_counts_with_its_exact_change_from_its_own_start(rank: int) -> None:
    older, community = random_adapter(rank=4, seed=8), random_adapter(rank=4, seed=9)
    present, late = random_delta(rank=4, seed=1), random_delta(rank=rank, seed=2)
    accumulator = StackRule().start(community)
    accumulator.add(present, 3.0)
    accumulator.add(late, 1.0, start=older)
    merged = accumulator.finish()
    released, left_over = products(merged.adapter), carried(merged)
    for name, before in products(community).items():
        exact = before + 0.75 * changes(community, present)[name] + 0.25 * changes(older, late)[name]
        np.testing.assert_allclose(released[name] + left_over[name], exact, atol=1e-5)
    norm = merged.report.norms[1]
    expected = older.scaling * np.sqrt(sum(np.sum(change**2) for change in changes(older, late).values()))
    assert norm == pytest.approx(float(expected), rel=1e-4)


def test_cosines_tell_who_pulls_another_way_about_as_exact_ones_do() -> None:
    shapes = {ModulePath(f"model.layers.{layer}.mlp.up_proj"): (60, 40) for layer in range(20)}
    community = random_adapter(shapes=shapes)
    deltas = [random_delta(seed=seed, shapes=shapes) for seed in range(4)]
    report = run(StackRule(), community, [(delta, 1.0 + index) for index, delta in enumerate(deltas)]).report
    flat = [np.concatenate([change.ravel() for change in changes(community, delta).values()]) for delta in deltas]
    mean = sum((1.0 + index) * vector for index, vector in enumerate(flat))
    for vector, cosine in zip(flat, report.cosines, strict=True):
        exact = float(vector @ mean / (np.linalg.norm(vector) * np.linalg.norm(mean)))
        assert cosine == pytest.approx(exact, abs=0.12)


def test_a_rule_that_makes_no_sense_is_not_made() -> None:
    with pytest.raises(ValueError, match="no sense"):
        StackRule(carry_rank=-1)
    with pytest.raises(ValueError, match="no sense"):
        StackRule(momentum_rank=0)
