"""Causal attention within segments, in tiles of query rows, with the probabilities computed again in the backward pass.

Each tile sees only the keys that its rows may see: nothing above the diagonal, nothing before a sliding window, nothing
of another segment is multiplied (the recomputation is that of Dao et al. 2022, *FlashAttention*, section 3.1; the tiles
are as large as a core's cache, because here matrix products are what is fast). Rotary positions are applied on the way
in, and taken back on the way out (Su et al. 2021, *RoFormer*, equation 34, in halves as transformers does it).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from agent.llm.rotary import Rotary
from agent.training.arena import Keeper
from agent.training.elementwise import Elementwise, Seen, Turns
from agent.training.footprint import KEPT_SHARES, ROUND, TILE_ROWS, rounded
from agent.training.packed import Scratch

_GROUP_ROWS = 1024  # rows of segments that are computed together: more would not stay in a core's cache


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

    def positions(self) -> Tensor:
        """Give each row's place in its sequence, int64 ``(rows,)``."""
        return torch.cat([torch.arange(last - first) for first, last in self.bounds])


def turns_of(rotary: Rotary, positions: Tensor) -> Turns:
    """Compute by how much rows are turned, in float64, which keeps large positions exact."""
    angles = positions.double()[:, None] * torch.from_numpy(rotary.frequencies)
    return Turns((angles.cos() * rotary.magnitude).float(), (angles.sin() * rotary.magnitude).float())


def attention(qkv: Tensor, heads: Heads, segments: Segments, turns: Turns, scratch: Scratch) -> Tensor:
    """Give the attention of every row, ``(rows, queries * width)`` in the type of ``qkv``.

    Args:
        qkv: queries, keys and values side by side, ``(rows, all heads * width)``; not turned yet.
        heads: how they are divided.
        segments: which rows see one another.
        turns: by how much queries and keys are turned.
        scratch: gives room for what is kept, and what does the passes over memory.
    """
    setting = (heads, segments, turns, scratch.elementwise)
    result: Tensor = _Attention.apply(qkv, setting, scratch.keeper())  # type: ignore[no-untyped-call]
    return result


Setting: TypeAlias = tuple[Heads, Segments, Turns, Elementwise]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, setting: Setting, keeper: Keeper) -> Tensor:
        heads, segments, turns, elementwise = setting
        given = qkv.view(-1, heads.all, heads.width)
        out = keeper.take((len(qkv), heads.queries, heads.width), qkv.dtype)
        groups = _groups(heads, segments, elementwise)
        sizes = [group.shares for group in groups]
        keeps = keeper.arena is not None and sum(sizes) <= KEPT_SHARES * qkv.numel()
        kept = [group.kept(keeper, qkv.dtype) for group in groups]
        rooms = [keeper.take((size,), qkv.dtype) if keeps else None for size in sizes]
        for group, turned, room in zip(groups, kept, rooms, strict=True):
            group.forward(given, turned, out, turns, room)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(*itertools.chain(*kept))
            ctx.groups, ctx.rooms, ctx.heads, ctx.turns, ctx.keeper = groups, rooms, heads, turns, keeper
        return out.view(len(qkv), -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.keeper.check()
        heads, (grad,), saved = ctx.heads, grads, ctx.saved_tensors
        by_head = grad.view(-1, heads.queries, heads.width)
        out = torch.empty(len(grad), heads.all, heads.width, dtype=grad.dtype)
        for place, (group, room) in enumerate(zip(ctx.groups, ctx.rooms, strict=True)):
            group.backward(by_head, saved[3 * place : 3 * place + 3], out, ctx.turns, room)
        return out.view(len(grad), -1), None, None


def _groups(heads: Heads, segments: Segments, elementwise: Elementwise) -> list[_Group]:
    """Put neighbours of equal length together, so that each operation has enough work for all threads."""
    groups: list[_Group] = []
    for begin, end in segments.bounds:
        last = groups[-1] if groups else None
        if last is not None and last.rows == end - begin and rounded(last.rows) * (last.count + 1) <= _GROUP_ROWS:
            groups[-1] = replace(last, count=last.count + 1)
        else:
            groups.append(_Group(begin, 1, end - begin, heads, elementwise))
    return groups


@dataclass(frozen=True, slots=True)
class _Group:
    """Some segments of equal length, one after the other from row ``begin`` of a pass.

    What is kept of each is padded with zeros to a round length: kernels are made, and kept by the library, for every
    shape that occurs.
    """

    begin: int
    count: int
    rows: int
    heads: Heads
    elementwise: Elementwise

    @property
    def shares(self) -> int:
        """Numbers in the softmax of all its scores."""
        return sum(tile.size for tile in self._tiles())

    def kept(self, keeper: Keeper, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Take room for queries, keys and values, each ``(count * heads, rounded rows, width)``."""
        heads = self.heads
        query, key, value = (
            keeper.take((self.count * each, rounded(self.rows), heads.width), dtype)
            for each in (heads.queries, heads.keys, heads.keys)
        )
        for tensor in (query, key, value):
            tensor[:, self.rows :] = 0
        return query, key, value

    def forward(self, given: Tensor, kept: Sequence[Tensor], out: Tensor, turns: Turns, room: Tensor | None) -> None:
        """Turn queries and keys into what is kept, and write what attention finds; keep shares in ``room``."""
        turns = turns.at(self.begin, self.begin + self.rows)
        query, key, value = kept
        given_query, given_key, given_value = self._by_kind(self._by_segment(given))
        self.elementwise.turn(given_query, self._unpadded(query), turns, self.heads.scale)
        self.elementwise.turn(given_key, self._unpadded(key), turns, 1.0)
        self._unpadded(value).copy_(given_value)
        found = self._by_segment(out)
        for tile, kept_here in self._with_room(room):
            shares = self._shares(tile, tile.mine(query), tile.theirs(key), kept_here)
            tile.put(found, torch.bmm(shares, tile.theirs(value)))

    def backward(self, grad: Tensor, kept: Sequence[Tensor], out: Tensor, turns: Turns, room: Tensor | None) -> None:
        """Write the gradients of queries, keys and values, turned back."""
        turns = turns.at(self.begin, self.begin + self.rows)
        query, key, value = kept
        outer_rows = torch.zeros(query.shape, dtype=query.dtype)
        self._unpadded(outer_rows).copy_(self._by_segment(grad))
        to_query = torch.empty(query.shape, dtype=query.dtype)
        to_key, to_value = torch.zeros(2, *key.shape)
        for tile, kept_here in self._with_room(room):
            mine, keys = tile.mine(query), tile.theirs(key)
            shares = self._shares(tile, mine, keys) if kept_here is None else kept_here
            outer = tile.mine(outer_rows)
            tile.theirs(to_value).add_(torch.bmm(shares.transpose(1, 2), outer))
            to_shares = torch.bmm(outer, tile.theirs(value).transpose(1, 2))
            inner = self.elementwise.shares_backward(shares, to_shares, tile.seen_by_rows)
            tile.put(to_query.view(self.count, -1, *to_query.shape[1:]), torch.bmm(inner, keys))
            tile.theirs(to_key).add_(torch.bmm(inner.transpose(1, 2), mine))
        out_query, out_key, out_value = self._by_kind(self._by_segment(out))
        self.elementwise.turn(self._unpadded(to_query), out_query, turns, self.heads.scale, back=True)
        self.elementwise.turn(self._unpadded(to_key), out_key, turns, 1.0, back=True)
        out_value.copy_(self._unpadded(to_value))

    def _shares(self, tile: _Tile, mine: Tensor, keys: Tensor, out: Tensor | None = None) -> Tensor:
        """Give the softmax of a tile's scores, ``(keys, group * rows, seen rows)``, in ``out`` where there is one."""
        return self.elementwise.shares(torch.bmm(mine, keys.transpose(1, 2), out=out), tile.seen_by_rows)

    def _by_segment(self, by_row: Tensor) -> Tensor:
        """View this group's rows of ``(rows of the pass, heads, width)`` as ``(count, heads, rows, width)``."""
        mine = by_row[self.begin : self.begin + self.count * self.rows]
        return mine.view(self.count, self.rows, *by_row.shape[1:]).transpose(1, 2)

    def _by_kind(self, by_segment: Tensor) -> Sequence[Tensor]:
        """View queries, keys and values among all heads."""
        return torch.split(by_segment, [self.heads.queries, self.heads.keys, self.heads.keys], dim=1)

    def _unpadded(self, kept: Tensor) -> Tensor:
        """View what is kept of one kind as ``(count, heads, rows, width)``."""
        return kept.view(self.count, -1, *kept.shape[1:])[:, :, : self.rows]

    def _tiles(self) -> Iterator[_Tile]:
        """Cut the segments' rows and their padding, counted from the first of each."""
        rows, window = rounded(self.rows), self.heads.window
        for first in range(0, rows, TILE_ROWS):
            seen = 0 if window is None else max(0, first - window + 1) // ROUND * ROUND
            group = self.heads.queries // self.heads.keys
            yield _Tile(first, min(first + TILE_ROWS, rows), seen, self.count * self.heads.keys, group, window)

    def _with_room(self, room: Tensor | None) -> Iterator[tuple[_Tile, Tensor | None]]:
        """Give each tile with the room for its shares, ``(keys, group * rows, seen rows)``."""
        at = 0
        for tile in self._tiles():
            yield tile, None if room is None else room[at : at + tile.size].view(tile.keys, -1, tile.end - tile.seen)
            at += tile.size


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some query rows of every segment of a group, ``[first, end)``, and the keys that they see, ``[seen, end)``.

    ``keys`` counts the key heads of all segments, ``group`` the query heads of each.
    """

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

    @property
    def seen_by_rows(self) -> Seen:
        """Which scores count."""
        return Seen(self.end - self.first, self.first - self.seen, self.window)

    def mine(self, queries: Tensor) -> Tensor:
        """Give the tile's rows of the query heads, ``(keys, group * rows, width)``; heads of a group are neighbours."""
        return queries[:, self.first : self.end].reshape(self.keys, -1, queries.shape[-1])

    def theirs(self, by_head: Tensor) -> Tensor:
        """View the rows of keys or values that the tile sees, ``(keys, seen rows, width)``."""
        return by_head[:, self.seen : self.end]

    def put(self, queries: Tensor, found: Tensor) -> None:
        """Put what was found for the tile's rows in its place in ``(count, query heads, rows, width)``."""
        rows = min(self.end, queries.shape[2]) - self.first
        queries[:, :, self.first : self.first + rows] = found.view(*queries.shape[:2], -1, found.shape[-1])[:, :, :rows]
