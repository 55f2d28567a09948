"""The step of linear layers, forward and backward, against autograd over plain expressions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu

from agent.llm.adapter import ModulePath
from agent.training.arena import Keeper
from agent.training.compute import resolve_elementwise
from agent.training.packed import PackedWeight, Scratch
from agent.training.projection import Gate, Layer, Plain, Projection, RmsNorm
from tests.training.gradients import backward, own, packed

Kind = Literal["plain", "norm", "silu", "gelu"]
RANK, SCALING, EPS, ROWS = 3, 1.5, 1e-5, 9


@dataclass
class Case:
    """A projection, and everything that the plain expression of it needs."""

    projection: Projection
    kind: Kind
    weights: list[Tensor]
    biases: list[Tensor | None]
    norm: Tensor
    given: tuple[Tensor, ...]
    copies: dict[str, Tensor] = field(default_factory=dict)

    def expected(self) -> Tensor:
        """Compute the same with autograd, over copies of every parameter and input."""
        inputs = [own(tensor) for tensor in self.given]
        self.copies = {f"input {place}": tensor for place, tensor in enumerate(inputs)}
        h = self.prologue(inputs)
        outs = []
        projection = self.projection
        if projection.a is not None:
            self.copies["a"] = own(projection.a)
        changed = 0
        for layer, weight, bias in zip(projection.layers, self.weights, self.biases, strict=True):
            out = linear(h, weight, bias)
            if layer.b is not None:
                a = self.copies["a"][changed * RANK : (changed + 1) * RANK]
                b = self.copies[f"b of {layer.path}"] = own(layer.b)
                out = out + SCALING * (h @ a.T) @ b.T
                changed += 1
            outs.append(out)
        return torch.cat(outs, dim=1)

    def prologue(self, inputs: list[Tensor]) -> Tensor:
        """Make the layer's input by the definition of norm and gate."""
        if self.kind == "norm":
            (x,) = inputs
            return x / (x.square().mean(dim=1, keepdim=True) + EPS).sqrt() * self.norm
        if self.kind == "plain":
            return inputs[0]
        act = silu(inputs[0]) if self.kind == "silu" else gelu(inputs[0], approximate="tanh")
        return act * inputs[1]

    def gradients(self) -> dict[str, Tensor | None]:
        """Give the gradients that the step under test left, by the names of the copies."""
        found = {f"input {place}": tensor.grad for place, tensor in enumerate(self.given)}
        if self.projection.a is not None:
            found["a"] = self.projection.a.grad
        return found | {f"b of {layer.path}": layer.b.grad for layer in self.projection.layers if layer.b is not None}


def make(
    *,
    heights: tuple[int, ...] = (24, 8, 8),
    adapted: tuple[bool, ...] = (True, True, True),
    biased: tuple[bool, ...] = (False, False, False),
    kind: Kind = "plain",
    halves: bool = False,
    elements: int = 10_000,
    width: int = 16,
    compute: torch.dtype = torch.float32,
) -> Case:
    torch.manual_seed(1)
    norm = torch.rand(width) + 0.5
    prologue = {
        "plain": Plain(),
        "norm": RmsNorm(norm, EPS, resolve_elementwise()),
        "silu": Gate("silu", resolve_elementwise()),
        "gelu": Gate("gelu", resolve_elementwise()),
    }[kind]
    weights = [torch.randn(height, width) for height in heights]
    biases = [torch.randn(height) if has else None for height, has in zip(heights, biased, strict=True)]
    layers = [
        Layer(
            ModulePath(str(place)),
            PackedWeight(packed(weight)),
            bias,
            nn.Parameter(torch.randn(len(weight), RANK)) if has else None,
        )
        for place, (weight, bias, has) in enumerate(zip(weights, biases, adapted, strict=True))
    ]
    projection = Projection(layers, Scratch(elements=elements, compute=compute), prologue, halves)
    if any(adapted):
        projection.a = nn.Parameter(torch.randn(sum(adapted) * RANK, width))
        projection.rank, projection.scaling = RANK, SCALING
    inputs = 2 if kind in {"silu", "gelu"} else 1
    given = tuple(torch.randn(ROWS, width, requires_grad=True) for _ in range(inputs))
    return Case(projection, kind, weights, biases, norm, given)


def check(case: Case, *, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    found = torch.cat(case.projection(*case.given), dim=1).float()
    expected = case.expected()
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol * float(expected.detach().abs().max()))
    slope = torch.randn_like(expected)  # each output counts differently
    backward((found * slope).sum())
    backward((expected * slope).sum())
    gradients = case.gradients()
    assert set(gradients) >= set(case.copies)
    for name, copy in case.copies.items():
        if copy.grad is None:
            assert gradients[name] is None
            continue
        scale = float(copy.grad.abs().max())
        torch.testing.assert_close(
            gradients[name], copy.grad, rtol=rtol, atol=atol * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("kind", ["plain", "norm", "silu", "gelu"])
@pytest.mark.parametrize("elements", [10_000, 24 * 16, 5 * 16], ids=["whole", "layers", "rows"])
def test_layers_with_adapters_have_the_values_and_gradients_of_autograd(kind: Kind, elements: int) -> None:
    check(make(kind=kind, elements=elements))


@pytest.mark.parametrize("adapted", [(True, False, True), (False, True, False), (False, False, False)])
@pytest.mark.parametrize("biased", [(True, True, True), (False, True, False)])
def test_some_layers_have_an_adapter_and_some_have_a_bias(adapted: tuple[bool, ...], biased: tuple[bool, ...]) -> None:
    check(make(adapted=adapted, biased=biased, kind="norm"))


@pytest.mark.parametrize("heights", [(20, 20), (40,)], ids=["two layers", "one fused layer"])
@pytest.mark.parametrize("rows", [100, 40, 20, 13, 7, 1])
def test_halves_are_the_same_however_small_the_pieces_of_the_weight(heights: tuple[int, ...], rows: int) -> None:
    case = make(heights=heights, adapted=(True,) * len(heights), biased=(True,) * len(heights), halves=True)
    case.projection.scratch = Scratch(elements=rows * 16, compute=torch.float32)
    assert [half.shape for half in case.projection(*case.given)] == [(ROWS, 20), (ROWS, 20)]
    check(case)


def test_a_half_that_nothing_depends_on_has_no_part_in_the_gradients() -> None:
    case = make(heights=(20, 20), adapted=(True, True), biased=(False, False), halves=True)
    backward(case.projection(*case.given)[0].square().sum())
    backward(case.expected()[:, :20].square().sum())
    gradients = case.gradients()
    for name, copy in case.copies.items():
        torch.testing.assert_close(gradients[name], copy.grad, rtol=1e-4, atol=1e-2)


def test_rows_stored_in_another_order_come_out_in_that_of_the_layer() -> None:
    case = make(biased=(True, False, False))
    order = np.random.default_rng(3).permutation(24)
    first = case.projection.layers[0]
    first.weight = PackedWeight(packed(case.weights[0]), order)
    case.weights[0] = case.weights[0][order]
    check(case)


def test_below_an_input_without_gradient_nothing_is_multiplied_backward() -> None:
    case = make(kind="norm")
    case.given = (case.given[0].detach(),)
    uses: list[int] = []
    case.projection.scratch = Scratch(elements=10_000, compute=torch.float32, before_use=lambda: uses.append(1))
    (out,) = case.projection(*case.given)
    unpacked = len(uses)
    backward(out.sum())
    assert len(uses) == unpacked, "a frozen weight is not needed for the gradients of its own adapter"
    backward(case.expected().sum())
    gradients = case.gradients()
    for name in ("a", "b of 0", "b of 2"):
        torch.testing.assert_close(gradients[name], case.copies[name].grad, rtol=1e-4, atol=1e-3)


def test_without_adapter_and_gradient_nothing_is_kept() -> None:
    case = make(adapted=(False, False, False))
    (out,) = case.projection(case.given[0].detach())
    assert not out.requires_grad


@pytest.mark.parametrize("kind", ["plain", "norm", "silu", "gelu"])
def test_bfloat16_is_close_and_gives_parameters_gradients_of_float32(kind: Kind) -> None:
    case = make(kind=kind, compute=torch.bfloat16, biased=(True, False, True))
    check(case, rtol=0.05, atol=0.02)
    assert case.projection.a is not None
    assert case.projection.a.grad is not None
    assert case.projection.a.grad.dtype == torch.float32
    assert case.given[0].grad is not None
    assert case.given[0].grad.dtype == torch.float32


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e15])
def test_the_norm_of_very_small_and_very_large_numbers(size: float) -> None:
    norm = RmsNorm(torch.rand(16) + 0.5, EPS, resolve_elementwise())
    x = size * torch.randn(4, 16)
    found, kept = norm.forward((x,), torch.float32, Keeper(None))
    wide = x.double()
    expected = wide / (wide.square().mean(dim=1, keepdim=True) + EPS).sqrt() * norm.weight
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(norm.again(kept), found)
