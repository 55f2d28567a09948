"""Passes over memory by torch's own operations: they run wherever torch does."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from agent.training.elementwise import Activation, Seen, Turns


class TorchElementwise:
    """Implements :class:`agent.training.elementwise.Elementwise`."""

    name = "torch"

    def gate(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """Two passes."""
        return _act(gate, activation).mul_(up)

    def gate_backward(self, gate: Tensor, up: Tensor, grad: Tensor, activation: Activation) -> tuple[Tensor, ...]:
        """Five passes."""
        act = _act(gate, activation)
        to_up = act * grad
        grad.mul_(up)
        if activation == "silu":
            to_gate = torch.ops.aten.silu_backward(grad, gate)
        else:
            to_gate = torch.ops.aten.gelu_backward(grad, gate, approximate="tanh")
        return act.mul_(up), to_gate, to_up

    def norm(self, x: Tensor, weight: Tensor, eps: float, unit: Tensor, scale: Tensor) -> Tensor:
        """Three passes."""
        torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=scale)
        torch.mul(x, scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_(), out=unit)
        return self.norm_again(unit, weight)

    def norm_again(self, unit: Tensor, weight: Tensor) -> Tensor:
        """Multiply by the weight again."""
        return unit * weight.to(unit.dtype)

    def norm_backward(self, unit: Tensor, scale: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Six passes."""
        again = self.norm_again(unit, weight)
        direction = unit.float()
        wide = grad.float() * weight
        along = (wide * direction).mean(dim=-1, keepdim=True)
        return again, wide.addcmul_(direction, along, value=-1.0).mul_(scale)

    def shares(self, scores: Tensor, seen: Seen) -> Tensor:
        """Add minus infinity to what is not seen."""
        columns = scores.shape[-1]
        grid = scores.view(-1, seen.rows, columns)
        grid[..., seen.before :].add_(_above_diagonal(seen.rows, scores.dtype))
        if seen.window is not None and columns > seen.window:
            grid.add_(_before_window(seen.before, seen.rows, seen.window, scores.dtype))
        return torch.softmax(scores, dim=-1, out=scores)  # each row is read before it is written

    def shares_backward(self, shares: Tensor, grad: Tensor, seen: Seen) -> Tensor:
        """Shares of 0 have no gradient."""
        del seen
        return torch._softmax_backward_data(  # noqa: SLF001 - torch has no public name for it
            grad, shares, -1, shares.dtype
        )

    def turn(self, given: Tensor, out: Tensor, turns: Turns, scale: float, *, back: bool = False) -> None:
        """Turn halves apart from one another."""
        half = turns.cos.shape[-1]
        cos, sin = (turns.cos * scale, turns.sin * scale) if scale != 1.0 else (turns.cos, turns.sin)
        sin = -sin if back else sin
        one, two = given[..., :half].float(), given[..., half : 2 * half].float()
        out[..., :half] = (one * cos).addcmul_(two, sin, value=-1.0)
        out[..., half : 2 * half] = (two * cos).addcmul_(one, sin)
        if 2 * half < given.shape[-1]:
            out[..., 2 * half :] = given[..., 2 * half :] * scale

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The largest share is never tiny, so the loss is exact where the target's share vanishes."""
        wanted = targets[:, None]
        behind = logits.amax(dim=1, keepdim=True).double() - logits.gather(1, wanted)
        shares = torch.softmax(logits, dim=1, out=logits)  # each row is read before it is written
        nats = behind - shares.amax(dim=1, keepdim=True).double().log()
        shares[torch.arange(len(targets)), targets] -= 1.0
        return nats[:, 0]


TORCH = TorchElementwise()


def _act(gate: Tensor, activation: Activation) -> Tensor:
    return functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")


@functools.lru_cache(maxsize=256)
def _above_diagonal(rows: int, dtype: torch.dtype) -> Tensor:
    return torch.full((rows, rows), -math.inf, dtype=dtype).triu_(1)


@functools.lru_cache(maxsize=256)
def _before_window(before: int, rows: int, window: int, dtype: torch.dtype) -> Tensor:
    """Give minus infinity where a key is ``window`` or more places before a query, ``(rows, before + rows)``."""
    return torch.full((rows, before + rows), -math.inf, dtype=dtype).tril_(before - window)
