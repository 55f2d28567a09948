"""Passes over memory beside the matrix products: gates, norms, softmaxes, turns, the loss. Torch does them, or C code.

The two differ in the last bits. So a training stays with those that it began with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from torch import Tensor

Activation: TypeAlias = Literal["silu", "gelu"]
"""SiLU, or the tanh form of GELU."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Which scores of a tile count; query rows come one after another, and again for the next head.

    Attributes:
        rows: of one head.
        before: keys before the one of the first row; row r sees those up to ``before + r``.
        window: how many of these it sees at most; None for all.
    """

    rows: int
    before: int
    window: int | None


@dataclass(frozen=True, slots=True)
class Turns:
    """Cosine and sine by which each row is turned; float32, shape ``(rows, dimensions // 2)``."""

    cos: Tensor
    sin: Tensor

    def at(self, first: int, end: int) -> Turns:
        """Give those of some rows."""
        return Turns(self.cos[first:end], self.sin[first:end])


class Elementwise(Protocol):
    """What a step does to each number or row by itself.

    Tensors are float32 or bfloat16, of the same type where nothing else is said; arithmetic is in float32.
    """

    @property
    def name(self) -> str:
        """Which bits come out: the same name, the same bits."""
        ...

    def gate(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """Give ``act(gate) * up``."""
        ...

    def gate_backward(self, gate: Tensor, up: Tensor, grad: Tensor, activation: Activation) -> tuple[Tensor, ...]:
        """Give ``act(gate) * up``, and the gradients of gate and up.

        Args:
            gate: what :meth:`gate` was given.
            up: likewise.
            grad: the gradient of what came out; it may be overwritten.
            activation: as there.
        """
        ...

    def norm(self, x: Tensor, weight: Tensor, eps: float, unit: Tensor, scale: Tensor) -> Tensor:
        """Give ``x / sqrt(mean(x ** 2) + eps) * weight`` over the last dimension, in the type of ``unit``.

        Args:
            x: float32, of any shape.
            weight: float32, shape ``(width,)``.
            eps: added to the mean square.
            unit: becomes the result without the weight; of the shape of ``x``.
            scale: becomes the reciprocal length; float32, one number a row.
        """
        ...

    def norm_again(self, unit: Tensor, weight: Tensor) -> Tensor:
        """Give what :meth:`norm` gave."""
        ...

    def norm_backward(self, unit: Tensor, scale: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Give what :meth:`norm` gave, and the float32 gradient of ``x`` for the gradient of that."""
        ...

    def shares(self, scores: Tensor, seen: Seen) -> Tensor:
        """Turn contiguous scores into their softmax, in place; what is not seen gets 0.

        Args:
            scores: ``(tiles, rows, keys)``, rows as ``seen`` says.
            seen: which of them count.
        """
        ...

    def shares_backward(self, shares: Tensor, grad: Tensor, seen: Seen) -> Tensor:
        """Give the gradient of the scores for that of their shares, which may be overwritten."""
        ...

    def turn(self, given: Tensor, out: Tensor, turns: Turns, scale: float, *, back: bool = False) -> None:
        """Turn and multiply heads; dimensions that do not turn are only multiplied.

        Args:
            given: ``(count, heads, rows, width)``, in any order in memory but for the width.
            out: likewise; overwritten.
            turns: of each row, contiguous.
            scale: what they are multiplied by.
            back: turn the other way.
        """
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Turn logits into the gradient of their cross-entropy, in place; give that in nats, float64 ``(n,)``.

        Args:
            logits: contiguous, ``(n, vocab)``.
            targets: int64, ``(n,)``, each one of the vocabulary.
        """
        ...
