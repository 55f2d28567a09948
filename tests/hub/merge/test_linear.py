from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import MergeError
from agent.governance.charter import OuterOptimiser
from agent.hub.merge.linear import AlternateRule, FedAvgRule, FfaRule
from agent.hub.merge.outer import PLAIN
from agent.hub.merge.rule import Merged
from agent.llm.adapter import Adapter
from agent.testing import check_merge_rule, random_adapter, random_delta
from agent.update.delta import Delta, apply


def run(
    rule: FedAvgRule,
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


@pytest.mark.parametrize("rule", [FedAvgRule(), FfaRule(), AlternateRule()], ids=lambda rule: rule.name)
def test_the_rule_keeps_the_promises_of_every_rule(rule: FedAvgRule) -> None:
    check_merge_rule(rule)


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=9),
    weights=st.lists(st.floats(0.1, 1e6), min_size=9, max_size=9),
    seed=st.integers(0, 99),
)
def test_fedavg_is_the_weighted_mean_of_each_factor_with_missing_components_unchanged(
    ranks: list[int], weights: list[float], seed: int
) -> None:
    community = random_adapter(rank=5, seed=seed)
    updates = [(random_delta(rank=rank, seed=seed + i), weights[i]) for i, rank in enumerate(ranks)]
    merged = run(FedAvgRule(), community, updates)
    total = sum(weight for _, weight in updates)
    for name, before in community.modules.items():
        a, b = before.a.astype(np.float64), before.b.astype(np.float64)
        for delta, weight in updates:
            a[: delta.rank] += weight / total * delta.modules[name].a
            b[:, : delta.rank] += weight / total * delta.modules[name].b
        np.testing.assert_allclose(merged.adapter.modules[name].a, a, atol=1e-6)
        np.testing.assert_allclose(merged.adapter.modules[name].b, b, atol=1e-6)


def test_one_device_alone_becomes_the_release_exactly() -> None:
    community, delta = random_adapter(seed=3), random_delta(seed=4)
    merged = run(FedAvgRule(), community, [(delta, 17.0)])
    for name, factors in apply(community, delta).modules.items():
        np.testing.assert_allclose(merged.adapter.modules[name].a, factors.a, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(merged.adapter.modules[name].b, factors.b, rtol=1e-6, atol=1e-7)


def test_ffa_never_changes_a_and_is_exact_as_a_product() -> None:
    community = random_adapter(seed=1)
    updates = [(random_delta(seed=seed, factors="b"), 1.0 + seed) for seed in range(4)]
    merged = run(FfaRule(), community, updates)
    for name, before in community.modules.items():
        np.testing.assert_array_equal(merged.adapter.modules[name].a, before.a)
        after = merged.adapter.modules[name]
        exact = sum(
            weight / 10 * (f.b.astype(np.float64) @ f.a)
            for delta, weight in updates
            for f in [apply(community, delta).modules[name]]
        )
        np.testing.assert_allclose(after.b @ after.a, exact, atol=1e-5)


def test_alternate_trains_b_first_and_then_in_turn() -> None:
    rule = AlternateRule()
    assert [rule.factors(number) for number in range(1, 6)] == ["b", "a", "b", "a", "b"]


@pytest.mark.parametrize("factors", ["a", "b"])
def test_alternate_changes_the_factor_that_was_trained_alone(factors: str) -> None:
    community = random_adapter(seed=1)
    merged = run(AlternateRule(), community, [(random_delta(seed=2, factors=factors), 1.0)])  # type: ignore[arg-type]
    for name, before in community.modules.items():
        after = merged.adapter.modules[name]
        assert np.array_equal(after.a, before.a) == (factors == "b")
        assert np.array_equal(after.b, before.b) == (factors == "a")


@pytest.mark.parametrize(("rule", "factors"), [(FfaRule(), "a"), (FfaRule(), "both"), (AlternateRule(), "both")])
def test_an_update_that_trained_what_the_rule_keeps_is_refused(rule: FedAvgRule, factors: str) -> None:
    with pytest.raises(MergeError, match=f"trained {factors}"):
        rule.start(random_adapter()).add(random_delta(factors=factors), 1.0)  # type: ignore[arg-type]


def test_a_late_update_of_the_other_factor_counts_in_alternate() -> None:
    community = random_adapter(seed=1)
    accumulator = AlternateRule().start(community)
    accumulator.add(random_delta(seed=2, factors="b"), 3.0)
    late = random_delta(seed=3, factors="a")
    accumulator.add(late, 1.0, start=random_adapter(seed=4))
    after = accumulator.finish().adapter
    for name, before in community.modules.items():
        np.testing.assert_allclose(after.modules[name].a, before.a + late.modules[name].a / 4, atol=1e-6)


def test_the_factor_that_rests_keeps_its_momentum_and_does_not_move() -> None:
    outer = OuterOptimiser(name="nesterov", learning_rate=1.0, momentum=0.5)
    community = random_adapter(seed=1)
    of_b, of_a = random_delta(seed=2, factors="b"), random_delta(seed=3, factors="a")
    first = run(AlternateRule(), community, [(of_b, 1.0)], outer=outer)
    second = run(AlternateRule(), first.adapter, [(of_a, 1.0)], first.carry, outer=outer)
    third = run(AlternateRule(), second.adapter, [(of_b, 1.0)], second.carry, outer=outer)
    for name in community.modules:
        np.testing.assert_array_equal(second.adapter.modules[name].b, first.adapter.modules[name].b)
        g = of_b.modules[name].b.astype(np.float64)
        m = 0.5 * g + g
        moved = third.adapter.modules[name].b - second.adapter.modules[name].b
        np.testing.assert_allclose(moved, g + 0.5 * m, atol=1e-6)


def test_the_report_has_the_norms_of_what_was_sent_and_who_pulls_another_way() -> None:
    community, delta = random_adapter(seed=1), random_delta(seed=2)
    other_way = replace(delta, modules={name: replace(f, a=-f.a, b=-f.b) for name, f in delta.modules.items()})
    report = run(FedAvgRule(), community, [(delta, 3.0), (other_way, 1.0)]).report
    assert report.weights == (0.75, 0.25)
    assert report.norms == pytest.approx((delta.norm, delta.norm), rel=1e-5)
    assert report.cosines == pytest.approx((1.0, -1.0), abs=1e-6)


def test_a_step_that_would_overflow_is_refused() -> None:
    accumulator = FedAvgRule().start(random_adapter(), outer=OuterOptimiser(learning_rate=100))
    accumulator.add(random_delta(size=1e6), 1.0)
    with pytest.raises(MergeError, match="too large"):
        accumulator.finish()
