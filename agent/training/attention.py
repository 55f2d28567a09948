"""Causal attention within segments, in tiles of query rows, with the probabilities computed again in the backward pass.

Each tile sees only the keys that its rows may see: nothing above the diagonal, nothing before a sliding window, nothing
of another segment is multiplied (the recomputation is that of Dao et al. 2022, *FlashAttention*, section 3.1; the tiles
are as large as a core's cache, because here matrix products are what is fast). Rotary positions are applied on the way
in, and taken back on the way out (Su et al. 2021, *RoFormer*, equation 34, in halves as transformers does it).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from agent.llm.rotary import Rotary
from agent.training.arena import Keeper
from agent.training.crew import Crew
from agent.training.footprint import KEPT_SHARES, TILE_ROWS
from agent.training.packed import ROUND, Scratch, rounded

_UNEVEN = 1.2  # a thread with so much more than its share makes the others wait


@dataclass(frozen=True, slots=True)
class Heads:
    """How attention is divided.

    Attributes:
        queries: query heads.
        keys: key and value heads; they divide the query heads.
        width: of one head.
        scale: what the product of query and key is multiplied by.
        window: how many tokens a position sees at most, itself included; None for all before it.
    """

    queries: int
    keys: int
    width: int
    scale: float
    window: int | None = None

    @property
    def all(self) -> int:
        """Heads of queries, keys and values together."""
        return self.queries + 2 * self.keys


@dataclass(frozen=True, slots=True)
class Segments:
    """Where sequences lie among the rows of a pass.

    Attributes:
        bounds: first row and row after the last of each, in order, covering all rows.
    """

    bounds: Sequence[tuple[int, int]]

    @property
    def lengths(self) -> list[int]:
        """Rows of each."""
        return [last - first for first, last in self.bounds]

    def positions(self) -> Tensor:
        """Give each row's place in its sequence, int64 ``(rows,)``."""
        return torch.cat([torch.arange(last - first) for first, last in self.bounds])


@dataclass(frozen=True, slots=True)
class Turns:
    """Cosine and sine by which each row is turned; float32, shape ``(rows, dimensions // 2)``."""

    cos: Tensor
    sin: Tensor

    def at(self, first: int, end: int) -> Turns:
        """Give those of some rows."""
        return Turns(self.cos[first:end], self.sin[first:end])

    @classmethod
    def of(cls, rotary: Rotary, positions: Tensor) -> Turns:
        """Compute them in float64, which keeps large positions exact."""
        angles = positions.double()[:, None] * torch.from_numpy(rotary.frequencies)
        return cls(
            (angles.cos() * rotary.magnitude).float(),
            (angles.sin() * rotary.magnitude).float(),
        )


def attention(qkv: Tensor, heads: Heads, segments: Segments, turns: Turns, scratch: Scratch) -> Tensor:
    """Give the attention of every row, ``(rows, queries * width)`` in the type of ``qkv``.

    Args:
        qkv: queries, keys and values side by side, ``(rows, all heads * width)``; not turned yet.
        heads: how they are divided.
        segments: which rows see one another.
        turns: by how much queries and keys are turned.
        scratch: gives room for what is kept, and threads.
    """
    setting = (heads, segments, turns, scratch.crew)
    result: Tensor = _Attention.apply(qkv, setting, scratch.keeper())  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, setting: tuple[Heads, Segments, Turns, Crew], keeper: Keeper) -> Tensor:
        heads, segments, turns, crew = setting
        given = qkv.view(-1, heads.all, heads.width).transpose(0, 1)
        turned = keeper.take((heads.all, sum(map(rounded, segments.lengths)), heads.width), qkv.dtype)
        out = keeper.take((len(qkv), heads.queries, heads.width), qkv.dtype)
        parts = _divide(crew, heads, segments)
        sizes = [part.shares for share in parts for part in share]
        keeps = keeper.arena is not None and sum(sizes) <= KEPT_SHARES * turned.numel()
        rooms = dict(zip((p for s in parts for p in s), _split(keeper, sizes, qkv.dtype), strict=True)) if keeps else {}
        _do(crew, parts, lambda p: p.forward(given, turned, out.transpose(0, 1), turns, rooms.get(p)))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(turned)
            ctx.setting, ctx.keeper, ctx.parts, ctx.rooms = setting, keeper, parts, rooms
        return out.view(len(qkv), -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.keeper.check()
        (grad,), (turned,) = grads, ctx.saved_tensors
        heads, _, turns, crew = ctx.setting
        by_head = grad.view(-1, heads.queries, heads.width).transpose(0, 1)
        out = torch.empty(len(grad), heads.all, heads.width, dtype=grad.dtype)
        back = Turns(turns.cos, -turns.sin)
        _do(crew, ctx.parts, lambda p: p.backward(by_head, turned, out.transpose(0, 1), back, ctx.rooms.get(p)))
        return out.view(len(grad), -1), None, None


def _divide(crew: Crew, heads: Heads, segments: Segments) -> list[list[_Part]]:
    """Give what each of a crew does: some whole segments, or, where those are few, some heads of every one."""
    places = itertools.accumulate(map(rounded, segments.lengths), initial=0)
    parts = [
        _Part(begin, end, at, 0, heads.keys, heads) for (begin, end), at in zip(segments.bounds, places, strict=False)
    ]
    shares = crew.divided([part.cost for part in parts])
    loads = [sum(parts[index].cost for index in share) for share in shares]
    if crew.threads > 1 and max(loads) * crew.threads > _UNEVEN * sum(loads):
        cuts = [heads.keys * thread // crew.threads for thread in range(crew.threads + 1)]
        parts = [
            replace(part, low=low, high=high) for part in parts for low, high in itertools.pairwise(cuts) if low < high
        ]
        shares = crew.divided([part.cost for part in parts])
    return [[parts[index] for index in share] for share in shares]


def _do(crew: Crew, parts: Sequence[Sequence[_Part]], work: Callable[[_Part], None]) -> None:
    """Let each of a crew do its parts."""

    def do(share: Sequence[_Part]) -> None:
        for part in share:
            work(part)

    crew.do([functools.partial(do, share) for share in parts])


def _split(keeper: Keeper, sizes: Sequence[int], dtype: torch.dtype) -> Sequence[Tensor]:
    """Take room for flat tensors of so many numbers."""
    whole = keeper.take((sum(sizes),), dtype)
    return [whole[end - size : end] for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]


@dataclass(frozen=True, slots=True)
class _Part:
    """One segment for key heads ``[low, high)`` and the query heads that go with them.

    The segment is rows ``[begin, end)`` of a pass. Among what is kept it begins at ``at`` and is padded with zeros to a
    round length: kernels are made, and kept by the library, for every shape that occurs.
    """

    begin: int
    end: int
    at: int
    low: int
    high: int
    heads: Heads

    @property
    def cost(self) -> float:
        """How much work it is, beside others of the same pass."""
        rows = self.rows
        seen = rows if self.heads.window is None else min(rows, self.heads.window)
        return rows * (seen + 4.0 * self.heads.width) * (self.high - self.low)

    @property
    def rows(self) -> int:
        """Rows of the segment."""
        return self.end - self.begin

    @property
    def shares(self) -> int:
        """Numbers in the softmax of all its scores."""
        return sum(tile.size for tile in self._tiles())

    def of(self, by_head: Tensor, first: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """View this part's queries, keys and values among all heads, each ``(heads, rows, width)``."""
        queries, keys = self.heads.queries, self.heads.keys
        return (
            self.queries_of(by_head, first, end),
            by_head[queries + self.low : queries + self.high, first:end],
            by_head[queries + keys + self.low : queries + keys + self.high, first:end],
        )

    def queries_of(self, by_head: Tensor, first: int, end: int) -> Tensor:
        """View some rows of this part's query heads among all."""
        group = self.heads.queries // self.heads.keys
        return by_head[self.low * group : self.high * group, first:end]

    def kept(self, turned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View this part's queries, keys and values among what is kept, padding included."""
        return self.of(turned, self.at, self.at + rounded(self.rows))

    def forward(self, given: Tensor, turned: Tensor, out: Tensor, turns: Turns, room: Tensor | None) -> None:
        """Turn queries and keys, keep them in ``turned``, and write what attention finds; keep shares in ``room``."""
        turns, rows = turns.at(self.begin, self.end), self.rows
        query, key, value = self.kept(turned)
        given_query, given_key, given_value = self.of(given, self.begin, self.end)
        _turn(given_query, query[:, :rows], turns, self.heads.scale)
        _turn(given_key, key[:, :rows], turns, 1.0)
        value[:, :rows] = given_value
        for tensor in (query, key, value):
            tensor[:, rows:] = 0
        found = self.queries_of(out, self.begin, self.end)
        for tile, kept in self._with_room(room):
            shares = tile.shares(tile.mine(query), tile.theirs(key), kept)
            tile.put(found, torch.bmm(shares, tile.theirs(value)))

    def backward(self, grad: Tensor, turned: Tensor, out: Tensor, back: Turns, room: Tensor | None) -> None:
        """Write the gradients of queries, keys and values, turned back."""
        back, rows = back.at(self.begin, self.end), self.rows
        query, key, value = self.kept(turned)
        outer_rows = torch.zeros(query.shape, dtype=query.dtype)
        outer_rows[:, :rows] = self.queries_of(grad, self.begin, self.end)
        to_query = torch.empty(query.shape, dtype=query.dtype)
        to_key, to_value = torch.zeros(2, *key.shape)
        for tile, kept in self._with_room(room):
            mine, keys = tile.mine(query), tile.theirs(key)
            shares = tile.shares(mine, keys) if kept is None else kept
            outer = tile.mine(outer_rows)
            tile.theirs(to_value).add_(torch.bmm(shares.transpose(1, 2), outer))
            inner = torch._softmax_backward_data(  # noqa: SLF001 - torch has no public name for it
                torch.bmm(outer, tile.theirs(value).transpose(1, 2)), shares, -1, shares.dtype
            )
            tile.put(to_query, torch.bmm(inner, keys))
            tile.theirs(to_key).add_(torch.bmm(inner.transpose(1, 2), mine))
        out_query, out_key, out_value = self.of(out, self.begin, self.end)
        _turn(to_query[:, :rows], out_query, back, self.heads.scale)
        _turn(to_key[:, :rows], out_key, back, 1.0)
        out_value.copy_(to_value[:, :rows])

    def _tiles(self) -> Iterator[_Tile]:
        """Cut the segment's rows and its padding, counted from its first."""
        rows, window = rounded(self.rows), self.heads.window
        for first in range(0, rows, TILE_ROWS):
            seen = 0 if window is None else max(0, first - window + 1) // ROUND * ROUND
            group = self.heads.queries // self.heads.keys
            yield _Tile(first, min(first + TILE_ROWS, rows), seen, self.high - self.low, group, window)

    def _with_room(self, room: Tensor | None) -> Iterator[tuple[_Tile, Tensor | None]]:
        """Give each tile with the room for its shares, ``(keys, group * rows, seen rows)``."""
        at = 0
        for tile in self._tiles():
            yield tile, None if room is None else room[at : at + tile.size].view(tile.keys, -1, tile.end - tile.seen)
            at += tile.size


def _turn(given: Tensor, out: Tensor, turns: Turns, scale: float) -> None:
    """Turn heads ``(heads, rows, width)`` and multiply them; dimensions beyond the rotary ones are only multiplied."""
    half = turns.cos.shape[-1]
    cos, sin = (turns.cos * scale, turns.sin * scale) if scale != 1.0 else (turns.cos, turns.sin)
    one, two = given[..., :half].float(), given[..., half : 2 * half].float()
    out[..., :half] = (one * cos).addcmul_(two, sin, value=-1.0)
    out[..., half : 2 * half] = (two * cos).addcmul_(one, sin)
    if 2 * half < given.shape[-1]:
        out[..., 2 * half :] = given[..., 2 * half :] * scale


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some query rows of a segment, ``[first, end)``, and the keys that they see, ``[seen, end)``."""

    first: int
    end: int
    seen: int
    keys: int
    group: int
    window: int | None

    @property
    def size(self) -> int:
        """Numbers in the softmax of its scores."""
        return self.keys * self.group * (self.end - self.first) * (self.end - self.seen)

    def mine(self, queries: Tensor) -> Tensor:
        """Give the tile's rows of the query heads, ``(keys, group * rows, width)``; heads of a group are neighbours."""
        return queries[:, self.first : self.end].reshape(self.keys, -1, queries.shape[-1])

    def theirs(self, by_head: Tensor) -> Tensor:
        """View the rows of keys or values that the tile sees, ``(keys, seen rows, width)``."""
        return by_head[:, self.seen : self.end]

    def put(self, queries: Tensor, found: Tensor) -> None:
        """Put what was found for the tile's rows in its place, as far as there is one."""
        rows = min(self.end, queries.shape[1]) - self.first
        queries[:, self.first : self.first + rows] = found.view(len(queries), -1, found.shape[-1])[:, :rows]

    def shares(self, mine: Tensor, keys: Tensor, out: Tensor | None = None) -> Tensor:
        """Give the softmax of the scores, ``(keys, group * rows, seen rows)``, in ``out`` where there is one."""
        scores = torch.bmm(mine, keys.transpose(1, 2))
        rows = self.end - self.first
        grid = scores.view(-1, rows, self.end - self.seen)
        grid[..., self.first - self.seen :].add_(_above_diagonal(rows, scores.dtype))
        if self.window is not None and self.end - self.seen > self.window:
            grid.add_(_before_window(self.first - self.seen, rows, self.window, scores.dtype))
        return torch.softmax(scores, dim=-1, out=out)


@functools.lru_cache(maxsize=256)
def _above_diagonal(rows: int, dtype: torch.dtype) -> Tensor:
    return torch.full((rows, rows), -math.inf, dtype=dtype).triu_(1)


@functools.lru_cache(maxsize=256)
def _before_window(before: int, rows: int, window: int, dtype: torch.dtype) -> Tensor:
    """Give minus infinity where a key is ``window`` or more places before a query, ``(rows, before + rows)``."""
    return torch.full((rows, before + rows), -math.inf, dtype=dtype).tril_(before - window)
