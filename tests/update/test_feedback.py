from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.llm.adapter import Adapter, FloatArray, LoraFactors, ModulePath, from_bytes
from agent.testing import SMALL_SHAPES, random_adapter, random_delta
from agent.update.delta import Delta, Factors, apply
from agent.update.feedback import Sending, added, expressed, fits, send, unsent
from agent.update.layout import layout_of
from agent.update.wire import UpdateHeader, decode_update

HEADER = UpdateHeader(
    round=7, base_sha256="ab" * 32, start_release="cd" * 32, rank=4, alpha=8.0, tokens=1000, steps=40, seed=3
)
START = random_adapter(seed=5)
Dense = dict[ModulePath, np.ndarray]


def sending(
    delta: Delta,
    residual: Adapter | None = None,
    *,
    start: Adapter = START,
    compression: str = "topk",
    density: float = 0.1,
    max_norm: float = 100.0,
) -> Sending:
    header = replace(HEADER, factors=delta.factors, rank=delta.rank)
    return send(header, start, delta, residual, compression=compression, density=density, max_norm=max_norm)


def trained(factors: Factors, *, seed: int = 0) -> Delta:
    layout = replace(layout_of(random_delta()), factors=factors)
    return layout.restore(np.random.default_rng(seed).normal(0, 0.05, layout.count).astype(np.float32))


def flat(delta: Delta) -> FloatArray:
    return layout_of(delta).flatten(delta)


def received(made: Sending) -> Delta:
    data = made.update.data
    return decode_update(data, expected=SMALL_SHAPES, max_rank=4, max_bytes=len(data))[1]


def weights(adapter: Adapter) -> Dense:
    return {
        name: adapter.scaling * f.b.astype(np.float64) @ f.a.astype(np.float64) for name, f in adapter.modules.items()
    }


def change(start: Adapter, delta: Delta) -> Dense:
    """Give what a delta changes in the layers' weights."""
    before, after = weights(start), weights(apply(start, delta))
    return {name: after[name] - before[name] for name in before}


def size(dense: Dense) -> float:
    return float(np.sqrt(sum((matrix**2).sum() for matrix in dense.values())))


def minus(first: Dense, second: Dense) -> Dense:
    return {name: first[name] - second[name] for name in first}


def turned(adapter: Adapter, seed: int) -> Adapter:
    """Give the same weights in another basis, as a merge that decomposes anew does."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(adapter.rank, adapter.rank)))[0].astype(np.float32)
    modules = {name: LoraFactors(a=turn.T @ f.a, b=f.b @ turn) for name, f in adapter.modules.items()}
    return replace(adapter, modules=modules)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    density=st.floats(0.01, 1),
    factors=st.sampled_from(["both", "a", "b"]),
    first=st.booleans(),
)
def test_what_is_sent_and_what_is_left_over_are_what_was_wanted(
    seed: int, density: float, factors: Factors, *, first: bool
) -> None:
    delta = trained(factors, seed=seed)
    before = None if first else sending(trained(factors, seed=seed + 1)).residual
    wanted = delta if before is None else added(delta, expressed(before, START, factors))
    made = sending(delta, before, density=density)
    np.testing.assert_array_equal(flat(received(made)), flat(made.update.sent))
    assert made.residual is not None
    sent_and_kept = weights(made.residual)
    for name, matrix in change(START, made.update.sent).items():
        sent_and_kept[name] += matrix
    assert size(minus(change(START, wanted), sent_and_kept)) < 1e-5 * size(sent_and_kept)


def test_over_the_rounds_all_of_it_arrives() -> None:
    """Every device of one: what it sends is merged as it is, and the next round starts from there."""
    gains = {}
    goal = weights(apply(START, random_delta(seed=3, size=0.2)))
    for memory in (True, False):
        start, residual = START, None
        for number in range(12):
            start = turned(start, number)
            made = sending(_towards(goal, start), residual, start=start, density=0.08)
            start = apply(start, made.update.sent)
            residual = made.residual if memory else None
        gains[memory] = size(minus(goal, weights(start)))
    assert gains[True] < 0.75 * gains[False]


def _towards(goal: Dense, start: Adapter) -> Delta:
    """Give a small gradient step from the start towards these weights."""
    modules = {}
    for name, f in start.modules.items():
        missing = (goal[name] - start.scaling * f.b @ f.a).astype(np.float32)
        modules[name] = LoraFactors(a=0.03 * f.b.T @ missing, b=0.03 * missing @ f.a.T)
    return Delta(rank=start.rank, modules=modules)


@pytest.mark.parametrize("factors", ["both", "a", "b"])
def test_a_residual_means_the_same_in_a_basis_that_was_turned(factors: Factors) -> None:
    residual = sending(trained(factors)).residual
    assert residual is not None
    meant = weights(residual)
    for start in (START, turned(START, 1), turned(START, 2)):
        found = expressed(residual, start, factors)
        b_only = factors != "both"
        linear = {
            name: start.scaling * (f.b @ found.modules[name].a + found.modules[name].b @ f.a).astype(np.float64)
            for name, f in start.modules.items()
        }
        assert size(minus(meant, linear)) < (0.1 if b_only else 0.25) * size(meant)


def test_used_as_it_is_in_a_turned_basis_it_would_be_worse_than_nothing() -> None:
    delta = trained("b")
    made = sending(delta)
    assert made.residual is not None
    start = turned(START, 1)
    stale = Delta(rank=4, modules={n: LoraFactors(a=f.a * 0, b=f.b) for n, f in _left(delta, made).items()})
    meant = weights(made.residual)
    assert size(minus(meant, change(start, stale))) > size(meant)
    assert size(minus(meant, change(start, expressed(made.residual, start, "b")))) < 0.1 * size(meant)


def _left(delta: Delta, made: Sending) -> dict[ModulePath, LoraFactors]:
    sent = made.update.sent.modules
    return {name: LoraFactors(a=f.a - sent[name].a, b=f.b - sent[name].b) for name, f in delta.modules.items()}


def test_a_direction_that_the_basis_hardly_has_is_not_blown_up() -> None:
    residual = sending(random_delta(seed=1)).residual
    assert residual is not None
    feeble = {name: LoraFactors(a=f.a, b=f.b * np.float32([1, 1, 1, 1e-6])) for name, f in START.modules.items()}
    found = expressed(residual, replace(START, modules=feeble), "both")
    assert found.is_finite
    assert found.norm < 10 * random_delta(seed=1).norm


def test_a_residual_stays_bounded_however_long_it_goes_on() -> None:
    residual: Adapter | None = None
    sizes = []
    for seed in range(40):
        residual = sending(random_delta(seed=seed), residual, density=0.1).residual
        assert residual is not None
        sizes.append(size(weights(residual)))
    assert max(sizes[20:]) < 1.5 * max(sizes[:20])
    assert max(sizes) < 18 * size(change(START, random_delta(seed=0)))


@pytest.mark.parametrize("compression", ["int4", "int8", "none", "topk"])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_sent_is_within_the_norm_bound_residual_included(compression: str, seed: int) -> None:
    before = sending(random_delta(seed=seed + 9)).residual
    made = sending(random_delta(seed=seed), before, compression=compression, max_norm=0.3)
    assert 0.06 < received(made).norm <= 0.3


def test_what_clipping_took_off_is_not_kept() -> None:
    made = sending(random_delta(seed=1, size=5.0), density=1.0, max_norm=1.0)
    assert made.residual is not None
    assert size(weights(made.residual)) < 0.2 * size(change(START, made.update.sent))


@pytest.mark.parametrize("compression", ["int4", "int8", "none"])
def test_only_a_compression_that_leaves_numbers_out_has_a_residual(compression: str) -> None:
    delta = random_delta(seed=1)
    alone = sending(delta, compression=compression)
    assert alone.residual is None
    before = sending(random_delta(seed=2)).residual
    assert sending(delta, before, compression=compression).update.data == alone.update.data


def test_a_residual_is_an_adapter_and_goes_on_at_another_rank() -> None:
    made = sending(random_delta())
    assert made.residual is not None
    kept = from_bytes(made.residual.to_bytes())
    smaller = random_adapter(rank=3, seed=5, alpha=6.0)
    assert fits(kept, smaller)
    again = sending(random_delta(rank=3), kept, start=smaller)
    assert received(again).rank == 3


def test_a_residual_of_another_base_or_other_modules_is_not_used() -> None:
    residual = sending(random_delta()).residual
    assert residual is not None
    fewer = dict(list(residual.modules.items())[1:])
    for other in (replace(residual, base_sha256="00" * 32), replace(residual, modules=fewer)):
        assert not fits(other, START)
        with pytest.raises(ValueError, match="another base"):
            expressed(other, START, "both")


@pytest.mark.parametrize("other", ["rank", "factors", "modules"])
def test_deltas_of_different_layouts_are_not_added(other: str) -> None:
    delta = random_delta()
    second = {
        "rank": random_delta(rank=3),
        "factors": replace(delta, factors="a"),
        "modules": replace(delta, modules=dict(list(delta.modules.items())[1:])),
    }[other]
    with pytest.raises(ValueError, match="only deltas of one rank"):
        added(delta, second)


@pytest.mark.parametrize("factors", ["a", "b"])
def test_a_frozen_factor_gets_nothing_of_a_residual(factors: Factors) -> None:
    before = sending(random_delta(seed=4)).residual
    made = sending(trained(factors), before, density=0.5)
    assert made.update.sent.factors == factors
    for f in made.update.sent.modules.values():
        assert not (f.b if factors == "a" else f.a).any()


def test_nothing_is_unsent_where_all_was_sent() -> None:
    delta = random_delta()
    assert size(weights(unsent(START, delta, delta))) == 0
