"""Torch's backward pass, with a type."""

from __future__ import annotations

from torch import Tensor


def backward(loss: Tensor) -> None:
    """Fill the gradients of everything that the loss depends on."""
    loss.backward()  # type: ignore[no-untyped-call]
