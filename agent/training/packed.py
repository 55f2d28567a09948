"""Frozen weights that stay ggml blocks, mapped from the file, and are unpacked only while they are multiplied.

One scratch buffer serves all layers of a model. A weight is unpacked into it in the forward pass and again in the
backward pass; nothing keeps it (Dettmers et al. 2023, *QLoRA*, section 3, which does the same on a GPU).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.llm.ggml import FloatArray, Packed, dequantize, narrow_to_bfloat16
from agent.llm.gguf_file import GgufTensor
from agent.training.arena import Arena, Keeper
from agent.training.compute import resolve_elementwise
from agent.training.crew import Crew
from agent.training.elementwise import Elementwise

_TILE_ELEMENTS = 1 << 18  # unpacked at a time on the way to bfloat16: few calls, and still in a core's cache
_PARALLEL_ELEMENTS = 1 << 21  # below this, handing rows to other threads costs more than it saves
_PART_ELEMENTS = 1 << 20  # that a thread takes at a time


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The frozen weight of one linear layer.

    Attributes:
        tensor: in the file, shape ``(out_features, in_features)``.
        order: int64, which row of the file is each row of the layer; None where they are the same.
    """

    tensor: GgufTensor
    order: NDArray[np.int64] | None = None

    @property
    def rows(self) -> int:
        """Outputs of the layer."""
        return self.tensor.shape[0]

    def packed(self, first: int, last: int) -> Packed:
        """Give the blocks of rows ``[first, last)`` of the layer, one row after another."""
        row_bytes = self.tensor.format.bytes_for(self.tensor.shape[1])
        if self.order is None:
            return self.tensor.packed[first * row_bytes : last * row_bytes]
        return self.tensor.packed.reshape(-1, row_bytes)[self.order[first:last]].reshape(-1)


class Scratch:
    """Room for some rows of unpacked weights, shared by all layers of a model.

    Args:
        elements: that it holds.
        compute: what the layers multiply in: float32 or bfloat16.
        threads: that unpack a large piece together.
        before_use: called before every piece of work with a frozen weight, forward and backward; it may raise to
            abandon what is being computed, so that even a step of many seconds can be left at once.
        elementwise: what does the passes over memory; what is fastest here where None.
    """

    def __init__(
        self,
        *,
        elements: int,
        compute: torch.dtype,
        threads: int = 1,
        before_use: Callable[[], None] | None = None,
        elementwise: Elementwise | None = None,
    ) -> None:
        self.elements = elements
        self.compute = compute
        self.elementwise = elementwise or resolve_elementwise()
        self.arena = Arena()
        """Where passes over these weights keep what their backward pass needs."""
        self._before_use = before_use
        self._room = torch.empty(elements, dtype=compute)
        self._bytes = self._room.view(torch.uint8).numpy()
        self._item = self._room.element_size()
        self._crew = Crew(threads)
        self._tiles = threading.local()

    def about_to_use(self) -> None:
        """Let whoever asked for what is being computed abandon it; for work that goes on with an unpacked weight."""
        if self._before_use is not None:
            self._before_use()

    def keeper(self) -> Keeper:
        """Give what hands out room for what a step keeps, if it keeps anything now."""
        return Keeper(self.arena if torch.is_grad_enabled() else None)

    def pieces(self, weights: Sequence[PackedWeight]) -> Iterator[tuple[int, int, Tensor]]:
        """Unpack weights of equal width, one above the other.

        Yields:
            First row, row after the last, and those rows in the compute type, shape ``(rows, in_features)``; they are
            overwritten by the next piece. One piece holds everything where the scratch buffer does.
        """
        columns = weights[0].tensor.shape[1]
        room = self.elements // columns
        if sum(weight.rows for weight in weights) <= room:
            yield 0, sum(weight.rows for weight in weights), self._unpacked(weights, columns)
            return
        done = 0
        for weight in weights:
            step = min(weight.rows, room)
            for first in range(0, weight.rows, step):
                last = min(first + step, weight.rows)
                yield done + first, done + last, self._rows(weight, first, last, at=0).view(last - first, columns)
            done += weight.rows

    def _unpacked(self, weights: Sequence[PackedWeight], columns: int) -> Tensor:
        at = 0
        for weight in weights:
            self._rows(weight, 0, weight.rows, at=at)
            at += weight.rows * columns
        return self._room[:at].view(-1, columns)

    def _rows(self, weight: PackedWeight, first: int, last: int, *, at: int) -> Tensor:
        """Unpack rows ``[first, last)`` to place ``at`` of the room."""
        self.about_to_use()
        columns = weight.tensor.shape[1]
        count = (last - first) * columns
        share = last - first if count < _PARALLEL_ELEMENTS else max(1, _PART_ELEMENTS // columns)

        def unpack(start: int) -> None:
            self._dequantize(weight, start, min(start + share, last), at + (start - first) * columns)

        self._crew.do([functools.partial(unpack, start) for start in range(first, last, share)])
        return self._room[at : at + count]

    def _dequantize(self, weight: PackedWeight, first: int, last: int, at: int) -> None:
        """Unpack rows in this thread; ggml's code runs without Python's lock."""
        tensor, item = weight.tensor, self._item
        columns = tensor.shape[1]
        step = max(1, _TILE_ELEMENTS // columns)
        for start in range(first, last, step):
            end = min(start + step, last)
            place = at + (start - first) * columns
            out = self._bytes[place * item : (place + (end - start) * columns) * item]
            if self.compute == torch.float32:
                dequantize(tensor.format, weight.packed(start, end), out.view(np.float32))
            else:
                wide = self._tile(step * columns)[: (end - start) * columns]
                dequantize(tensor.format, weight.packed(start, end), wide)
                narrow_to_bfloat16(wide, out)

    def _tile(self, elements: int) -> FloatArray:
        """Give this thread's own room for float32 on the way to bfloat16."""
        tile: FloatArray | None = getattr(self._tiles, "room", None)
        if tile is None or tile.size < elements:
            tile = self._tiles.room = np.empty(elements, dtype=np.float32)
        return tile


class PackedEmbedding:
    """A frozen embedding whose table stays packed: only the rows that are looked up are unpacked.

    Args:
        weight: the table in the file, shape ``(vocab, hidden)``.
        scale: what the rows are multiplied by.
    """

    def __init__(self, *, weight: GgufTensor, scale: float = 1.0) -> None:
        self.vocab, self.width = weight.shape
        self._weight = weight
        self._scale = scale
        self._rows = weight.packed.reshape(self.vocab, -1)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Give float32 embeddings of shape ``(n, hidden)`` for int64 tokens of shape ``(n,)``."""
        distinct, inverse = np.unique(tokens.numpy(), return_inverse=True)
        unpacked = np.empty((len(distinct), self.width), dtype=np.float32)
        dequantize(self._weight.format, np.ascontiguousarray(self._rows[distinct]), unpacked)
        if self._scale != 1.0:
            unpacked *= np.float32(self._scale)
        return torch.from_numpy(unpacked[inverse.reshape(-1)])


def unpack_vector(tensor: GgufTensor) -> Tensor:
    """Unpack a small tensor, such as the weight of a norm, to float32 of its own shape."""
    out = np.empty(tensor.shape, dtype=np.float32)
    dequantize(tensor.format, tensor.packed, out)
    return torch.from_numpy(out)
