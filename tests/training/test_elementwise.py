"""Passes over memory by the C kernels, against torch's own operations in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from agent.native.library import library
from agent.training.attention import turns_of
from agent.training.compute import resolve_elementwise
from agent.training.elementwise import Activation, Elementwise, Seen
from tests.training.test_attention import rotary, turned

KINDS = ["torch", pytest.param("native-1", marks=pytest.mark.skipif(library() is None, reason="no kernels here"))]
TYPES = [torch.float32, torch.bfloat16]
SPECIAL = torch.tensor(
    [0.0, -0.0, 1e-30, -1e-30, 88.0, -88.0, 200.0, -200.0, 1e15, -1e15, math.inf, -math.inf, math.nan]
)

pytestmark = pytest.mark.parametrize("dtype", TYPES, ids=str)


@pytest.fixture(params=KINDS)
def by(request: pytest.FixtureRequest) -> Elementwise:
    return resolve_elementwise(request.param)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype, least: float = 1e-3) -> None:
    """Compare with float64, to the last bits of float32 or to two roundings of bfloat16 of at ``least`` so much."""
    tolerance = 3e-6 if dtype == torch.float32 else 2.0**-7
    finite = expected[expected.isfinite()].abs()
    scale = max(least, float(finite.max())) if finite.numel() else 1.0
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def largest(of: Tensor) -> float:
    """Give the size of what cancels in a gradient that is a difference."""
    return float(of.abs().max()) if of.numel() else 1.0


def gated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    act = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
    return act * up


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@settings(max_examples=25)
@given(rows=st.integers(0, 40), width=st.integers(1, 300), seed=st.integers(0, 9))
def test_a_gate_and_its_gradients(activation: Activation, dtype: torch.dtype, rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gate, up, grad = ((4 * torch.randn(rows, width, generator=generator)).to(dtype) for _ in range(3))
    one, two = gate.double().requires_grad_(), up.double().requires_grad_()
    expected = gated(one, two, activation)
    wanted = torch.autograd.grad(expected, (one, two), grad.double())
    for kind in _kinds():
        by = resolve_elementwise(kind)
        close(by.gate(gate, up, activation), expected.detach(), dtype)
        again, to_gate, to_up = by.gate_backward(gate, up, grad.clone(), activation)
        for found, right in ((again, expected.detach()), (to_gate, wanted[0]), (to_up, wanted[1])):
            close(found, right, dtype)


@settings(max_examples=25)
@given(rows=st.integers(0, 40), width=st.integers(1, 300), size=st.sampled_from([1e-4, 1.0, 1e6]))
def test_a_norm_and_its_gradient(dtype: torch.dtype, rows: int, width: int, size: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = size * torch.randn(rows, width, generator=generator)
    weight = torch.rand(width, generator=generator) + 0.5
    grad = torch.randn(rows, width, generator=generator).to(dtype)
    wide = x.double().requires_grad_()
    expected = wide / (wide.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * weight
    (wanted,) = torch.autograd.grad(expected, wide, grad.double())
    for kind in _kinds():
        by = resolve_elementwise(kind)
        unit, scale = torch.empty(rows, width, dtype=dtype), torch.empty(rows, 1)
        out = by.norm(x, weight, 1e-5, unit, scale)
        close(out, expected.detach(), dtype)
        assert torch.equal(by.norm_again(unit, weight), out)
        again, to_x = by.norm_backward(unit, scale, weight, grad)
        assert torch.equal(again, out)
        assert to_x.dtype == torch.float32
        close(to_x, wanted, dtype, least=largest(scale) * largest(grad))


@settings(max_examples=40)
@given(
    tiles=st.integers(0, 5),
    rows=st.integers(1, 40),
    before=st.integers(0, 150),
    window=st.one_of(st.none(), st.integers(1, 200)),
)
def test_shares_and_their_gradient(dtype: torch.dtype, tiles: int, rows: int, before: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(rows)
    scores, grad = ((5 * torch.randn(tiles, rows, before + rows, generator=generator)).to(dtype) for _ in range(2))
    place, key = torch.arange(rows)[:, None] + before, torch.arange(before + rows)
    hidden = (key > place) | (key <= place - (window or 10**9))
    wide = scores.double().requires_grad_()
    expected = wide.masked_fill(hidden, -math.inf).softmax(dim=-1)
    (wanted,) = torch.autograd.grad(expected, wide, grad.double())
    for kind in _kinds():
        by, seen = resolve_elementwise(kind), Seen(rows, before, window)
        shares = by.shares(scores.clone(), seen)
        close(shares, expected.detach(), dtype)
        assert not shares[hidden.expand_as(shares)].any()
        close(by.shares_backward(shares, grad.clone(), seen), wanted, dtype, least=largest(grad))


@settings(max_examples=25)
@given(rows=st.integers(1, 20), vocab=st.integers(1, 9000), size=st.sampled_from([0.1, 3.0, 100.0]))
def test_a_loss_and_its_gradient(dtype: torch.dtype, rows: int, vocab: int, size: float) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = (size * torch.randn(rows, vocab, generator=generator)).to(dtype)
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    wide = logits.double().requires_grad_()
    expected = functional.cross_entropy(wide, targets, reduction="none")
    (wanted,) = torch.autograd.grad(expected.sum(), wide)
    for kind in _kinds():
        by, room = resolve_elementwise(kind), logits.clone()
        torch.testing.assert_close(
            by.loss(room, targets), expected.detach(), rtol=0.01, atol=1e-5 if dtype == torch.float32 else 0.01
        )
        close(room, wanted, dtype)


@pytest.mark.parametrize("dimensions", [0, 8, 20, 24])
@pytest.mark.parametrize("back", [False, True])
def test_turns_from_any_order_in_memory_to_any_other(
    by: Elementwise, dtype: torch.dtype, dimensions: int, *, back: bool
) -> None:
    how = rotary(dimensions)
    given = torch.randn(3, 7, 5, 24).to(dtype)
    turns = turns_of(how, torch.arange(7))
    out = torch.full((3, 6, 7, 24), math.nan, dtype=dtype)[:, 1:]
    by.turn(given.transpose(1, 2), out, turns, 0.5, back=back)
    flat = given.double().transpose(0, 1).reshape(7, 15, 24)
    where = -torch.arange(7) if back else torch.arange(7)
    expected = 0.5 * turned(flat, where, how).reshape(7, 3, 5, 24).permute(1, 2, 0, 3)
    close(out, expected.double(), dtype)
    wide = given.float().transpose(1, 2)
    by.turn(wide, out, turns, 0.5, back=back)
    close(out, expected.double(), dtype)


def test_what_is_not_a_number_stays_none(by: Elementwise, dtype: torch.dtype) -> None:
    gate, torch_by = SPECIAL.to(dtype), resolve_elementwise("torch")
    ones = torch.ones_like(gate)
    for activation in ("silu", "gelu"):
        found, expected = (e.gate(gate, ones, activation) for e in (by, torch_by))
        torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-30, equal_nan=True)
        nan = [e.gate_backward(gate, ones, ones.clone(), activation)[1].isfinite() for e in (by, torch_by)]
        assert torch.equal(*nan)
    scores = torch.randn(3, 1, 9).to(dtype)
    scores[0, 0, 3], scores[1, 0, 4], scores[2, 0, 5] = math.nan, math.inf, -math.inf
    shares = by.shares(scores, Seen(1, 8, None))
    assert shares[0].isnan().all()
    assert shares[1].isnan().any()
    assert shares[2].isfinite().all()
    assert shares[2, 0, 5] == 0
    assert by.loss(torch.full((1, 3), math.nan).to(dtype), torch.tensor([1])).isnan().all()


def test_results_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    if library() is None:
        pytest.skip("no kernels here")
    gate, up, grad = (torch.randn(100, 1001).to(dtype) for _ in range(3))
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            by = resolve_elementwise()
            scores, targets = torch.cat([gate, up]).clone(), torch.arange(200)
            nats = by.loss(scores, targets)
            found.append((*by.gate_backward(gate, up, grad.clone(), "gelu"), scores, nats))
    finally:
        torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def _kinds() -> list[str]:
    return ["torch"] if library() is None else ["torch", "native-1"]
