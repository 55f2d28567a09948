"""Room for what a forward pass keeps for its backward pass, used again by the next pass.

General allocators scatter such long-lived pieces among short-lived ones and keep the holes; here they lie one after
another, so a pass takes exactly what its dimensions say, and no page is asked of the system twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK_BYTES = 64 << 20
_ALIGNMENT = 64


class Arena:
    """Memory that is handed out piece by piece and taken back all at once."""

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []
        self._chunk = self._used = 0
        self.generation = 0
        """Changes when everything is taken back."""

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Give room for a tensor; what is in it is undefined."""
        count = 1
        for length in shape:
            count *= length
        size = -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        while self._chunk < len(self._chunks) and self._used + size > self._chunks[self._chunk].numel():
            self._chunk, self._used = self._chunk + 1, 0
        if self._chunk == len(self._chunks):
            self._chunks.append(torch.empty(max(_CHUNK_BYTES, size), dtype=torch.uint8))
        storage = self._chunks[self._chunk].untyped_storage()
        taken: Tensor = torch.empty(0, dtype=dtype).set_(storage, self._used // dtype.itemsize, (count,), (1,))
        self._used += size
        return taken.view(tuple(shape))

    def mark(self) -> tuple[int, int]:
        """Say how much is handed out."""
        return self._chunk, self._used

    def back_to(self, mark: tuple[int, int]) -> None:
        """Take back what was handed out since a mark."""
        self._chunk, self._used = mark

    def clear(self) -> None:
        """Take everything back; the backward pass of what was kept in it is no longer possible."""
        self._chunk = self._used = 0
        self.generation += 1


class Keeper:
    """Hands out room to one step of a pass: from an arena while gradients are wanted, else from the allocator.

    Args:
        arena: None where nothing is kept.
    """

    def __init__(self, arena: Arena | None) -> None:
        self.arena = arena
        self._generation = arena.generation if arena is not None else 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Give room for a tensor that may be kept."""
        return torch.empty(tuple(shape), dtype=dtype) if self.arena is None else self.arena.take(shape, dtype)

    def check(self) -> None:
        """Fail where another pass has begun since: what was kept is overwritten.

        Raises:
            RuntimeError: it has.
        """
        if self.arena is not None and self.arena.generation != self._generation:
            raise RuntimeError("another pass of this model began before the backward pass of this one")
