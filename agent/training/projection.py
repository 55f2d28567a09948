"""Linear layers over packed weights, with adapters, in one step forward and one step backward.

Layers that share their input (query, key and value; gate and up) are multiplied as one. What comes before a layer - a
norm, or the gate of a feed-forward block - belongs to the same step, so that its output, which the gradient of A needs,
is computed again from less instead of being kept. Everything here is exact: it gives the gradients that autograd gives
for ``y = h W' + s (h A') B'`` with a frozen ``W`` (Hu et al. 2021, *LoRA*, section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from agent.llm.adapter import ModulePath
from agent.training.arena import Keeper
from agent.training.elementwise import Activation, Elementwise
from agent.training.packed import PackedWeight, Scratch

Tensors: TypeAlias = tuple[Tensor, ...]

Gradients: TypeAlias = tuple[Tensor | None, ...]


class Prologue(Protocol):
    """What makes a layer's input from what flows into the step: one tensor, or two."""

    def forward(self, given: Tensors, compute: torch.dtype, keeper: Keeper) -> tuple[Tensor, Tensors]:
        """Give the layer's input ``(n, in_features)`` in the compute type, and what the others need."""
        ...

    def again(self, kept: Tensors) -> Tensor:
        """Give the layer's input once more."""
        ...

    def backward(self, kept: Tensors, grad: Tensor) -> tuple[Tensor, Tensors]:
        """Give the layer's input once more, and the gradients of what flowed in.

        Args:
            kept: what :meth:`forward` kept.
            grad: the gradient of the layer's input; it may be overwritten.
        """
        ...


class Plain:
    """The layer's input is what flows in."""

    def forward(self, given: Tensors, compute: torch.dtype, keeper: Keeper) -> tuple[Tensor, Tensors]:
        """Keep the input itself."""
        del keeper
        h = given[0].to(compute)
        return h, (h,)

    def again(self, kept: Tensors) -> Tensor:
        """Give what was kept."""
        return kept[0]

    def backward(self, kept: Tensors, grad: Tensor) -> tuple[Tensor, Tensors]:
        """Pass the gradient on."""
        return kept[0], (grad,)


class RmsNorm:
    """Root mean square norm over the last dimension (Zhang and Sennrich 2019, equation 4).

    Args:
        weight: float32, shape ``(width,)``.
        eps: added to the mean square.
        elementwise: what computes it.
    """

    def __init__(self, weight: Tensor, eps: float, elementwise: Elementwise) -> None:
        self.weight = weight
        self.eps = eps
        self._elementwise = elementwise

    def forward(self, given: Tensors, compute: torch.dtype, keeper: Keeper) -> tuple[Tensor, Tensors]:
        """Keep the input without its length, in the compute type, and the reciprocal length in float32."""
        wide = given[0].float()
        scale = keeper.take((*wide.shape[:-1], 1), torch.float32)
        unit = keeper.take(wide.shape, compute)
        return self._elementwise.norm(wide, self.weight, self.eps, unit, scale), (unit, scale)

    def again(self, kept: Tensors) -> Tensor:
        """Multiply by the weight again."""
        return self._elementwise.norm_again(kept[0], self.weight)

    def backward(self, kept: Tensors, grad: Tensor) -> tuple[Tensor, Tensors]:
        """Give the output once more, and the float32 gradient of the input."""
        unit, scale = kept
        again, to_input = self._elementwise.norm_backward(unit, scale, self.weight, grad)
        return again, (to_input,)


class Gate:
    """A gated linear unit, ``act(gate) * up`` of the two that flow in (Shazeer 2020, equation 6)."""

    def __init__(self, activation: Activation, elementwise: Elementwise) -> None:
        self.activation = activation
        self._elementwise = elementwise

    def forward(self, given: Tensors, compute: torch.dtype, keeper: Keeper) -> tuple[Tensor, Tensors]:
        """Keep both as they came."""
        del keeper
        kept = tuple(tensor.to(compute) for tensor in given)
        return self.again(kept), kept

    def again(self, kept: Tensors) -> Tensor:
        """Gate again."""
        gate, up = kept
        return self._elementwise.gate(gate, up, self.activation)

    def backward(self, kept: Tensors, grad: Tensor) -> tuple[Tensor, Tensors]:
        """Give the output once more, and the gradients of gate and up."""
        gate, up = kept
        again, to_gate, to_up = self._elementwise.gate_backward(gate, up, grad, self.activation)
        return again, (to_gate, to_up)


@dataclass(slots=True)
class Layer:
    """One linear layer of a :class:`Projection`.

    Attributes:
        path: its name in an adapter.
        weight: its frozen weight, shape ``(out_features, in_features)``.
        bias: float32 ``(out_features,)``, or None.
        b: the adapter's B, float32 ``(out_features, rank)``; None where no adapter changes the layer.
    """

    path: ModulePath
    weight: PackedWeight
    bias: Tensor | None = None
    b: nn.Parameter | None = None


@dataclass(eq=False, slots=True)
class Projection:
    """Linear layers that share their input.

    Attributes:
        layers: one after the other in the output.
        scratch: where their weights are unpacked.
        prologue: what makes their input.
        halves: give the output as two tensors of equal width.
        a: the adapter's A of every changed layer, one above the other, float32 ``(changed * rank, in_features)``.
        rank: of the adapter.
        scaling: what ``B A`` is multiplied by.
    """

    layers: Sequence[Layer]
    scratch: Scratch
    prologue: Prologue = field(default_factory=Plain)
    halves: bool = False
    a: nn.Parameter | None = None
    rank: int = 0
    scaling: float = 1.0

    @property
    def out_features(self) -> int:
        """Outputs of all layers together."""
        return sum(layer.weight.rows for layer in self.layers)

    @property
    def changed(self) -> list[tuple[int, int, nn.Parameter]]:
        """First output, output after the last, and B of each layer that the adapter changes."""
        found, at = [], 0
        for layer in self.layers:
            if layer.b is not None:
                found.append((at, at + layer.weight.rows, layer.b))
            at += layer.weight.rows
        return found

    def __call__(self, *given: Tensor, product: bool = True) -> Tensors:
        """Give the outputs side by side, ``(n, out_features)`` in the compute type, as one tensor or as two halves.

        Args:
            given: what the prologue makes the layers' input from.
            product: False where only the gradients are wanted: zeros come out, and the weights are not multiplied.
        """
        bs = [b for _, _, b in self.changed]
        setting = (self, self.scratch.keeper(), len(given), product)
        result: Tensors = _Project.apply(setting, *given, self.a, *bs)  # type: ignore[no-untyped-call]
        return result

    def cuts(self) -> list[tuple[int, int]]:
        """Give the first output and the output after the last of each tensor that comes out."""
        whole = self.out_features
        return [(0, whole // 2), (whole // 2, whole)] if self.halves else [(0, whole)]

    def spread_b(self, keeper: Keeper) -> Tensor:
        """Give every B times the scaling on a block diagonal, compute type ``(out_features, changed * rank)``."""
        changed = self.changed
        spread = keeper.take((self.out_features, len(changed) * self.rank), self.scratch.compute).zero_()
        for place, (first, last, b) in enumerate(changed):
            torch.mul(b.detach(), self.scaling, out=spread[first:last, place * self.rank : (place + 1) * self.rank])
        return spread

    def bias(self) -> Tensor | None:
        """Give the biases side by side, zeros where a layer has none; None where none has."""
        if all(layer.bias is None for layer in self.layers):
            return None
        return torch.cat(
            [torch.zeros(layer.weight.rows) if layer.bias is None else layer.bias for layer in self.layers]
        )

    def outputs(self, h: Tensor, adapted: Tensors, keeper: Keeper) -> Tensors:
        """Give what comes out: ``(n, out_features)`` in the compute type, in as many tensors as there are cuts.

        Args:
            h: the layers' input, compute type ``(n, in_features)``.
            adapted: ``h A'``, ``(n, changed * rank)``, and what :meth:`spread_b` gave; nothing without an adapter.
            keeper: gives the room for halves.
        """
        outs = self.times_frozen(h, keeper)
        bias = self.bias()
        for out, (begin, end) in zip(outs, self.cuts(), strict=True):
            if bias is not None:
                out.add_(bias[begin:end])
            if adapted:
                low, spread = adapted
                out.addmm_(low, spread[begin:end].T)
        return outs

    def no_outputs(self, h: Tensor) -> Tensors:
        """Give zeros in the shapes of :meth:`outputs`, which take no memory."""
        return tuple(torch.zeros((), dtype=h.dtype).expand(len(h), end - begin) for begin, end in self.cuts())

    def times_frozen(self, h: Tensor, keeper: Keeper) -> Tensors:
        """Give ``h W'`` for the weights of all layers; halves are kept by the gate that they flow into."""
        cuts = self.cuts()
        room = keeper if self.halves else Keeper(None)
        outs = tuple(room.take((len(h), end - begin), h.dtype) for begin, end in cuts)
        for first, last, weight in self.scratch.pieces([layer.weight for layer in self.layers]):
            for out, (begin, end) in zip(outs, cuts, strict=True):
                low, high = max(first, begin), min(last, end)
                if low < high:
                    torch.mm(h, weight[low - first : high - first].T, out=out[:, low - begin : high - begin])
        return outs

    def frozen_backward(self, grads: Tensors) -> Tensor:
        """Give ``grad W`` for the weights of all layers, ``(n, in_features)``."""
        total: Tensor | None = None
        for first, last, weight in self.scratch.pieces([layer.weight for layer in self.layers]):
            for grad, (begin, end) in zip(grads, self.cuts(), strict=True):
                low, high = max(first, begin), min(last, end)
                if low < high:
                    part, rows = grad[:, low - begin : high - begin], weight[low - first : high - first]
                    total = part @ rows if total is None else total.addmm_(part, rows)
        assert total is not None
        return total


class _Project(torch.autograd.Function):
    """The step of a :class:`Projection`."""

    @staticmethod
    def forward(ctx: Any, setting: tuple[Projection, Keeper, int, bool], *tensors: Tensor | None) -> Tensors:
        projection, keeper, inputs, product = setting
        given, a = cast("Tensors", tensors[:inputs]), tensors[inputs]
        compute = projection.scratch.compute
        h, kept = projection.prologue.forward(given, compute, keeper)
        adapted: Tensors = ()
        if a is not None:
            low = torch.mm(h, a.detach().to(compute).T, out=keeper.take((len(h), len(a)), compute))
            adapted = low, projection.spread_b(keeper)
        outs = projection.outputs(h, adapted, keeper) if product else projection.no_outputs(h)
        if any(ctx.needs_input_grad):
            ctx.keeper = keeper
            ctx.projection, ctx.inputs, ctx.types = projection, inputs, [tensor.dtype for tensor in given]
            ctx.kept = len(kept)
            ctx.save_for_backward(*kept, *adapted)
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.keeper.check()
        projection: Projection = ctx.projection
        compute = projection.scratch.compute
        given = tuple(grad.to(compute) for grad in grads)
        saved = ctx.saved_tensors  # read once: a checkpointed layer gives them only once
        kept, adapted = saved[: ctx.kept], saved[ctx.kept :]
        to_low = _to_low(projection, given, adapted[1]) if adapted else None
        to_inputs: Gradients
        if any(ctx.needs_input_grad[1 : 1 + ctx.inputs]):
            to_h = projection.frozen_backward(given)
            if to_low is not None and projection.a is not None:
                to_h.addmm_(to_low, projection.a.detach().to(compute))
            h, back = projection.prologue.backward(kept, to_h)
            to_inputs = tuple(grad.to(dtype) for grad, dtype in zip(back, ctx.types, strict=True))
        else:
            h, to_inputs = projection.prologue.again(kept), (None,) * ctx.inputs
        wants_a, *wants_bs = ctx.needs_input_grad[1 + ctx.inputs :]
        to_a = (to_low.T @ h).float() if to_low is not None and wants_a else None
        to_bs: Gradients = _to_bs(projection, given, adapted[0]) if any(wants_bs) else (None,) * len(wants_bs)
        return (None, *to_inputs, to_a, *to_bs)


def _to_low(projection: Projection, grads: Tensors, spread: Tensor) -> Tensor:
    """Give the gradient of ``h A'``, ``(n, changed * rank)``."""
    cuts = projection.cuts()
    to_low = grads[0] @ spread[slice(*cuts[0])]
    for grad, cut in zip(grads[1:], cuts[1:], strict=True):
        to_low.addmm_(grad, spread[slice(*cut)])
    return to_low


def _to_bs(projection: Projection, grads: Tensors, low: Tensor) -> Tensors:
    """Give the gradient of each B, float32."""
    rank = projection.rank
    all_bs = torch.cat([low.T @ grad for grad in grads], dim=1)
    return tuple(
        all_bs[place * rank : (place + 1) * rank, first:last].T.float() * projection.scaling
        for place, (first, last, _) in enumerate(projection.changed)
    )
