"""Layers that keep their weights as ggml blocks, mapped from the file, and unpack them only while they are used.

The frozen weight of a layer is unpacked into one scratch buffer that all layers share, once in the forward pass and
again in the backward pass; nothing keeps it. Gradients flow to the input alone, as LoRA needs (Dettmers et al. 2023,
*QLoRA*, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agent.llm.ggml import FloatArray, dequantize
from agent.llm.gguf_file import GgufTensor
from agent.llm.rotary import model_order

_PARALLEL_ELEMENTS = 1 << 18  # below this, handing rows to threads costs more than it saves


class Scratch:
    """Room for one unpacked weight, shared by all layers of a model.

    Args:
        elements: of the largest piece that is unpacked at a time.
        reordered: of the largest weight whose rows change places on the way.
        compute: what the layers multiply in: float32 or bfloat16.
        threads: that unpack a large piece together.
        before_use: called before every piece of work with a frozen weight, forward and backward; it may raise to
            abandon what is being computed, so that even a step of many seconds can be left at once.
    """

    def __init__(
        self,
        *,
        elements: int,
        reordered: int,
        compute: torch.dtype,
        threads: int = 1,
        before_use: Callable[[], None] | None = None,
    ) -> None:
        self._before_use = before_use
        self.elements = elements
        self.compute = compute
        self._flat = np.empty(elements, dtype=np.float32)
        self._float = torch.from_numpy(self._flat)
        self._reordered = torch.empty(reordered, dtype=torch.float32)
        self._narrow = torch.empty(elements if compute != torch.float32 else 0, dtype=compute)
        self._threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self._threads - 1, "unpack") if self._threads > 1 else None

    def unpack(self, weight: GgufTensor, first: int, last: int, order: Tensor | None = None) -> Tensor:
        """Give rows ``[first, last)`` of a weight in the compute type, shape ``(last - first, columns)``.

        The result is overwritten by the next call. ``order`` is the row of the file for each row of the result, for
        whole weights only.
        """
        if self._before_use is not None:
            self._before_use()
        columns = weight.shape[-1]
        count = (last - first) * columns
        row_bytes = weight.format.bytes_for(columns)
        self._dequantize(weight, first, last, row_bytes, self._flat[:count])
        unpacked = self._float[:count].view(last - first, columns)
        if order is not None:
            ordered = self._reordered[:count].view(last - first, columns)
            unpacked = torch.index_select(unpacked, 0, order, out=ordered)
        if self.compute == torch.float32:
            return unpacked
        return self._narrow[:count].view(last - first, columns).copy_(unpacked)

    def _dequantize(self, weight: GgufTensor, first: int, last: int, row_bytes: int, out: FloatArray) -> None:
        """Unpack rows, on several threads where there are many; ggml's code runs without Python's lock."""
        columns = weight.shape[-1]

        def piece(begin: int, end: int) -> None:
            packed = weight.packed[begin * row_bytes : end * row_bytes]
            dequantize(weight.format, packed, out[(begin - first) * columns : (end - first) * columns])

        if self._pool is None or out.size < _PARALLEL_ELEMENTS:
            piece(first, last)
            return
        share = -(-(last - first) // self._threads)
        starts = range(first, last, share)
        others = [self._pool.submit(piece, start, min(start + share, last)) for start in starts[1:]]
        piece(first, min(first + share, last))
        for other in others:
            other.result()


class _PackedMatmul(torch.autograd.Function):
    """``x @ W.T`` for a weight that is unpacked when needed; only ``x`` has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unpack: Callable[[], Tensor]) -> Tensor:
        ctx.unpack = unpack
        weight = unpack()
        return (x.to(weight.dtype) @ weight.T).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        weight = ctx.unpack()
        return (grad.to(weight.dtype) @ weight).to(grad.dtype), None


class PackedLinear(nn.Linear):
    """A frozen linear layer without bias whose weight stays packed.

    It is a ``Linear`` by type so that PEFT wraps it as one. ``weight`` is empty: it only tells device and type.

    Args:
        weight: the tensor in the file, shape ``(out_features, in_features)``.
        scratch: where it is unpacked.
        rotary_heads: heads whose rows are stored as interleaved rotary pairs; 0 for none.
    """

    def __init__(self, *, weight: GgufTensor, scratch: Scratch, rotary_heads: int = 0) -> None:
        nn.Module.__init__(self)  # Linear's own would allocate the weight
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", torch.empty(0), persistent=False)
        self.register_parameter("bias", None)
        self.packed = weight
        self.scratch = scratch
        self.order: Tensor | None = None
        if rotary_heads:
            self.order = torch.from_numpy(model_order(self.out_features, rotary_heads))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - Linear's own name for it
        """Give ``input @ W.T``; ``input`` of shape ``(..., in_features)``."""
        result: Tensor = _PackedMatmul.apply(input, self.unpacked)  # type: ignore[no-untyped-call]
        return result

    def unpacked(self) -> Tensor:
        """Give the weight in the order that transformers uses; overwritten by the next layer that unpacks."""
        return self.scratch.unpack(self.packed, 0, self.out_features, self.order)

    def extra_repr(self) -> str:
        """Describe the layer as torch prints it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, format={self.packed.format.name}"


class PackedEmbedding(nn.Module):
    """A frozen embedding whose table stays packed: only the rows that are looked up are unpacked.

    Args:
        weight: the table in the file, shape ``(vocab, hidden)``.
    """

    def __init__(self, *, weight: GgufTensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.packed = weight
        self._rows = weight.packed.reshape(self.num_embeddings, -1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Give float32 embeddings of shape ``(*tokens.shape, hidden)``."""
        wanted: NDArray[np.int64] = tokens.detach().reshape(-1).numpy()
        distinct, inverse = np.unique(wanted, return_inverse=True)
        unpacked = np.empty((len(distinct), self.embedding_dim), dtype=np.float32)
        dequantize(self.packed.format, np.ascontiguousarray(self._rows[distinct]), unpacked)
        return torch.from_numpy(unpacked[inverse]).view(*tokens.shape, self.embedding_dim)
