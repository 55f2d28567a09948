"""The output layer and its loss, without ever holding the logits of all positions.

The gradient of cross-entropy by the logits is known as soon as they are (softmax minus one-hot), so the forward pass
already turns each piece of logits into the gradient of the hidden states and lets it go. What is kept for the backward
pass is as large as the hidden states. Only positions with a target come here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from agent.llm.gguf_file import GgufTensor
from agent.training.footprint import rounded
from agent.training.packed import PackedWeight, Scratch

Piece: TypeAlias = tuple[int, int, Tensor]
"""First row, row after the last, and the unpacked rows of a weight."""


class PackedHead:
    """The frozen output layer, whose weight stays packed; it may be the embedding's own tensor.

    Args:
        weight: the tensor in the file, shape ``(vocab, hidden)``.
        scratch: where pieces of it are unpacked.
        rows: positions whose logits are held at a time.
    """

    def __init__(self, *, weight: GgufTensor, scratch: Scratch, rows: int) -> None:
        self.vocab, self.width = weight.shape
        self._weights = [PackedWeight(weight)]
        self._scratch = scratch
        self.rows = rounded(rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """Give all logits, float32 ``(n, vocab)`` for ``(n, hidden)``; for tests, without gradient."""
        out = torch.empty(len(hidden), self.vocab, dtype=self._scratch.compute)
        self._logits(hidden.detach().to(out.dtype), self._unpack(), out=out)
        return out.float()

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Give the summed cross-entropy in nats, a float32 scalar.

        Args:
            hidden: shape ``(n, hidden)``.
            targets: int64, shape ``(n,)``.
        """
        result: Tensor = _ChunkedLoss.apply(hidden, targets, self)  # type: ignore[no-untyped-call]
        return result

    def summed(self, hidden: Tensor, targets: Tensor, grad: Tensor | None) -> float:
        """Give the summed loss, and write its gradient by ``hidden`` into ``grad`` where there is one."""
        unpack = self._unpack()
        total = 0.0
        room = torch.empty(min(self.rows, rounded(len(targets))), self.vocab, dtype=self._scratch.compute)
        for first in range(0, len(targets), self.rows):
            self._scratch.about_to_use()
            here = slice(first, first + self.rows)
            wanted = targets[here]
            count = len(wanted)
            given = functional.pad(hidden[here].to(self._scratch.compute), (0, 0, 0, rounded(count) - count))
            whole = room[: len(given)]
            self._logits(given, unpack, out=whole)
            total += float(self._scratch.elementwise.loss(whole[:count], wanted).sum())
            if grad is not None:
                whole[count:] = 0
                self._backward(whole, unpack, grad[here])
        return total

    def _unpack(self) -> Callable[[], Iterable[Piece]]:
        """Give a function that walks over the weight; it is unpacked once where all of it fits the scratch buffer."""
        if self.vocab * self.width > self._scratch.elements:
            return lambda: self._scratch.pieces(self._weights)
        whole = list(self._scratch.pieces(self._weights))
        return lambda: whole

    def _logits(self, hidden: Tensor, unpack: Callable[[], Iterable[Piece]], *, out: Tensor) -> None:
        """Write the logits of some positions, ``(n, vocab)``."""
        for first, last, weight in unpack():
            torch.mm(hidden, weight.T, out=out[:, first:last])

    def _backward(self, grad: Tensor, unpack: Callable[[], Iterable[Piece]], into: Tensor) -> None:
        """Write ``grad W`` for the gradient of some logits."""
        for first, last, weight in unpack():
            part = (grad[:, first:last] @ weight)[: len(into)]
            if first == 0:
                into.copy_(part)
            else:
                into.add_(part)


class _ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy over pieces of the positions; the gradient is ready when the loss is."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: PackedHead) -> Tensor:
        ctx.grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        return torch.tensor(head.summed(hidden, targets, ctx.grad), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (outer,) = grads
        return (None if ctx.grad is None else ctx.grad * outer.to(ctx.grad.dtype)), None, None
