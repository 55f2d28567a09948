"""Torch's backward pass, with a type, and what gradients are held against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agent.llm.ggml import F32, dequantize, format_of
from agent.llm.gguf_file import GgufTensor


def backward(loss: Tensor) -> None:
    """Fill the gradients of everything that the loss depends on."""
    loss.backward()  # type: ignore[no-untyped-call]


def unpacked(tensor: GgufTensor) -> Tensor:
    """Unpack a whole tensor to float32 of its own shape."""
    out = np.empty(tensor.shape, dtype=np.float32)
    dequantize(tensor.format, tensor.packed, out)
    return torch.from_numpy(out)


def packed(values: Tensor) -> GgufTensor:
    """Give float32 values as a tensor of a file."""
    data = values.detach().contiguous().numpy().reshape(-1).view(np.uint8)
    return GgufTensor("made", tuple(values.shape), format_of(F32), data)


def own(values: Tensor) -> Tensor:
    """Copy a tensor, to compute the same once more with gradients of its own."""
    return values.detach().clone().requires_grad_()
