"""The output layer and its loss, without ever holding the logits of all positions.

The gradient of cross-entropy by the logits is known as soon as they are (softmax minus one-hot), so the forward pass
already turns each piece of logits into the gradient of the hidden states and lets it go. What is kept for the backward
pass is as large as the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from agent.llm.gguf_file import GgufTensor
from agent.training.packed import Scratch

Piece: TypeAlias = tuple[int, int, Tensor]
"""First row, row after the last, and the unpacked rows of a weight."""

_LOGIT_ELEMENTS = 4 << 20  # logits held at a time: 16 MiB in float32


class PackedHead(nn.Module):
    """The frozen output layer, whose weight stays packed; it may be the embedding's own tensor.

    Args:
        weight: the tensor in the file, shape ``(vocab, hidden)``.
        scratch: where pieces of it are unpacked.
    """

    def __init__(self, *, weight: GgufTensor, scratch: Scratch) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = weight
        self.scratch = scratch

    def forward(self, hidden: Tensor) -> Tensor:
        """Give all logits, float32 ``(..., vocab)``; for generation and tests, without gradient."""
        flat = hidden.detach().reshape(-1, self.in_features)
        logits = torch.empty(len(flat), self.out_features)
        _logits_into(logits, flat, self.pieces()())
        return logits.view(*hidden.shape[:-1], self.out_features)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Give the mean cross-entropy in nats, a scalar.

        Args:
            hidden: float32, shape ``(..., hidden)``.
            targets: int64, shape ``(...)``.
        """
        result: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            hidden.reshape(-1, self.in_features), targets.reshape(-1), self
        )
        return result

    def pieces(self) -> Callable[[], Iterable[Piece]]:
        """Give a function that walks over the weight; it is unpacked once where all of it fits the scratch buffer."""
        rows = min(self.out_features, max(1, self.scratch.elements // self.in_features))
        if rows == self.out_features:
            whole = [(0, rows, self.scratch.unpack(self.packed, 0, rows))]
            return lambda: whole

        def walk() -> Iterator[Piece]:
            for first in range(0, self.out_features, rows):
                last = min(first + rows, self.out_features)
                yield first, last, self.scratch.unpack(self.packed, first, last)

        return walk


def _logits_into(out: Tensor, hidden: Tensor, pieces: Iterable[Piece]) -> None:
    """Compute the logits of some positions into ``out``, ``(positions, vocab)``."""
    for first, last, weight in pieces:
        if weight.dtype == torch.float32:
            torch.mm(hidden, weight.T, out=out[:, first:last])
        else:
            out[:, first:last] = hidden.to(weight.dtype) @ weight.T


class _ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy over pieces of the positions; the gradient is ready when the loss is."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: PackedHead) -> Tensor:
        count = len(targets)
        size = max(16, min(count, _LOGIT_ELEMENTS // head.out_features))
        pieces = head.pieces()
        ctx.grad = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        logits = torch.empty(min(size, count), head.out_features)
        total = 0.0
        for start in range(0, count, size):
            positions, wanted = hidden[start : start + size], targets[start : start + size, None]
            scores = logits[: len(positions)]
            _logits_into(scores, positions, pieces())
            scores.sub_(scores.amax(dim=1, keepdim=True))
            chosen = scores.gather(1, wanted)
            mass = scores.exp_().sum(dim=1, keepdim=True)
            total += float((mass.log() - chosen).sum(dtype=torch.float64))
            if ctx.grad is None:
                continue
            scores.div_(mass * count)
            scores.scatter_add_(1, wanted, torch.full(wanted.shape, -1.0 / count))
            into = ctx.grad[start : start + size]
            for first, last, weight in pieces():
                into += scores[:, first:last].to(weight.dtype) @ weight
        return hidden.new_tensor(total / count)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (outer,) = grads
        return (None if ctx.grad is None else ctx.grad * outer), None, None
