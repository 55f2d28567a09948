"""Attention in tiles against the whole matrix of scores, and its gradients against autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.llm.rotary import Rotary
from agent.training import attention as attention_module
from agent.training.attention import Heads, Segments, attention, turns_of
from agent.training.compute import resolve_elementwise
from agent.training.packed import Scratch
from tests.training.gradients import backward, own

WIDTH = 8
LENGTHS = [(150,), (1, 70, 2, 64, 65), (128,), (3,), (300, 300, 5, 5, 257)]


def rotary(dimensions: int = WIDTH, magnitude: float = 1.0) -> Rotary:
    return Rotary(dimensions, 100.0 ** (-np.arange(dimensions // 2) * 2 / dimensions), magnitude)


def segments(lengths: tuple[int, ...]) -> Segments:
    ends = np.cumsum(lengths).tolist()
    return Segments(list(zip([0, *ends[:-1]], ends, strict=True)))


def turned(x: Tensor, positions: Tensor, how: Rotary) -> Tensor:
    """Turn ``(rows, heads, width)`` by complex numbers, whose parts are a half apart (RoFormer, equation 13)."""
    half = how.dimensions // 2
    angles = positions.double()[:, None] * torch.from_numpy(how.frequencies)
    turn = torch.polar(torch.full_like(angles, how.magnitude), angles)[:, None].to(torch.complex64)
    pairs = torch.complex(x[..., :half].contiguous(), x[..., half : 2 * half].contiguous()) * turn
    return torch.cat([pairs.real, pairs.imag, x[..., 2 * half :]], dim=-1)


def plain(qkv: Tensor, heads: Heads, where: Segments, how: Rotary) -> Tensor:
    """Compute attention with a matrix of all scores and a mask that says who sees whom."""
    rows, group = len(qkv), heads.queries // heads.keys
    split = qkv.view(rows, heads.all, heads.width)
    query, key, value = split.split([heads.queries, heads.keys, heads.keys], dim=1)
    number = torch.repeat_interleave(
        torch.arange(len(where.bounds)), torch.tensor([last - first for first, last in where.bounds])
    )
    positions = torch.cat([torch.arange(last - first) for first, last in where.bounds])
    distance = positions[:, None] - positions[None, :]
    sees = (number[:, None] == number[None, :]) & (distance >= 0)
    if heads.window is not None:
        sees &= distance < heads.window
    query, key = turned(query, positions, how), turned(key, positions, how)
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("ihw,jhw->hij", query, key) * heads.scale
    shares = scores.masked_fill(~sees, -torch.inf).softmax(dim=-1)
    return torch.einsum("hij,jhw->ihw", shares, value).reshape(rows, -1)


def room() -> Scratch:
    return Scratch(elements=16, compute=torch.float32)


def check(heads: Heads, lengths: tuple[int, ...], how: Rotary, *, dtype: torch.dtype = torch.float32) -> None:
    torch.manual_seed(2)
    where = segments(lengths)
    qkv = (2 * torch.randn(sum(lengths), heads.all * heads.width)).to(dtype).requires_grad_()
    copy = own(qkv.float())
    found = attention(qkv, heads, where, turns_of(how, where.positions()), room())
    assert found.dtype == dtype
    expected = plain(copy, heads, where, how)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance * scale)
    slope = torch.randn_like(expected)
    backward((found.float() * slope).sum())
    backward((expected * slope).sum())
    assert qkv.grad is not None
    assert copy.grad is not None
    scale = float(copy.grad.abs().max())
    torch.testing.assert_close(qkv.grad.float(), copy.grad, rtol=10 * tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("window", [None, 1, 2, 63, 64, 65, 127, 128, 129, 1000])
def test_tiles_give_what_the_whole_matrix_gives(lengths: tuple[int, ...], window: int | None) -> None:
    check(Heads(4, 2, WIDTH, 0.4, window), lengths, rotary())


@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (6, 2), (3, 1), (1, 1)])
@pytest.mark.parametrize("window", [None, 20])
def test_query_heads_share_their_key_heads_in_groups(queries: int, keys: int, window: int | None) -> None:
    check(Heads(queries, keys, WIDTH, 0.4, window), (70, 5), rotary())


@pytest.mark.parametrize("dimensions", [2, 4, 6])
def test_only_the_first_part_of_a_head_may_be_turned(dimensions: int) -> None:
    check(Heads(4, 2, WIDTH, 0.4), (70, 5), rotary(dimensions))


def test_a_magnitude_of_the_turns_counts_for_queries_and_for_keys() -> None:
    check(Heads(4, 2, WIDTH, 0.4), (70, 5), rotary(6, magnitude=1.2))


@pytest.mark.parametrize("window", [None, 20])
def test_bfloat16_is_close(window: int | None) -> None:
    check(Heads(4, 2, WIDTH, 0.4, window), (70, 5), rotary(), dtype=torch.bfloat16)


def test_the_comparison_notices_another_mask_scale_or_turn() -> None:
    heads, where = Heads(4, 2, WIDTH, 0.4, 20), segments((70, 5))
    qkv = torch.randn(75, heads.all * WIDTH)
    right = plain(qkv, heads, where, rotary())
    others = [
        plain(qkv, replace(heads, window=21), where, rotary()),
        plain(qkv, replace(heads, window=None), where, rotary()),
        plain(qkv, replace(heads, scale=0.41), where, rotary()),
        plain(qkv, heads, segments((71, 4)), rotary()),
        plain(qkv, heads, where, rotary(6)),
    ]
    assert all((right - other).abs().max() > 1e-3 for other in others)


def test_what_one_segment_holds_does_not_reach_another() -> None:
    heads, where = Heads(4, 2, WIDTH, 0.4), segments((70, 90, 5))
    qkv = torch.randn(165, heads.all * WIDTH)
    turns = turns_of(rotary(), where.positions())
    before = attention(qkv, heads, where, turns, room())
    qkv[70:160] = torch.randn(90, heads.all * WIDTH)
    after = attention(qkv, heads, where, turns, room())
    assert torch.equal(before[:70], after[:70])
    assert torch.equal(before[160:], after[160:])
    assert not torch.equal(before[70:160], after[70:160])


@pytest.mark.parametrize("window", [None, 40])
def test_nothing_is_multiplied_that_is_not_seen(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    bmm = torch.bmm

    def counting(one: Tensor, two: Tensor, *, out: Tensor | None = None) -> Tensor:
        seen.append(one.shape[0] * one.shape[1] * two.shape[2])
        return bmm(one, two, out=out)

    monkeypatch.setattr(attention_module.torch, "bmm", counting)
    heads, where = Heads(1, 1, WIDTH, 0.4, window), segments((512, 512))
    turns = turns_of(rotary(), where.positions())
    attention(torch.randn(1024, 3 * WIDTH), heads, where, turns, room())
    scores = sum(seen[::2])
    visible = 2 * sum(min(512 if window is None else window, place + 1) for place in range(512))
    assert visible <= scores < visible + 1024 * attention_module.TILE_ROWS


def test_far_positions_are_turned_exactly() -> None:
    how = rotary(4)
    far = turns_of(how, torch.tensor([100_003]))
    angles = (100_003 * how.frequencies) % (2 * np.pi)
    np.testing.assert_allclose(far.cos[0].numpy(), np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(far.sin[0].numpy(), np.sin(angles), atol=1e-6)


def test_positions_begin_again_with_every_segment() -> None:
    where = segments((3, 1, 2))
    assert where.positions().tolist() == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(
    ("lengths", "counts"),
    [((64, 64, 64, 64), [4]), ((30, 30, 7, 7, 7, 200, 30), [2, 3, 1, 1]), ((400, 400, 400), [2, 1])],
)
def test_neighbours_of_equal_length_are_computed_together(
    lengths: tuple[int, ...], counts: list[int], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, where = Heads(6, 3, WIDTH, 0.4, window), segments(lengths)
    turns = turns_of(rotary(), where.positions())
    qkv = torch.randn(sum(lengths), heads.all * WIDTH)
    outer = torch.randn(sum(lengths), heads.queries * WIDTH)
    found = []
    for rows, expected in ((0, [1] * len(lengths)), (1024, counts)):
        monkeypatch.setattr(attention_module, "_GROUP_ROWS", rows)
        assert [group.count for group in attention_module._groups(heads, where, resolve_elementwise())] == expected
        given = own(qkv)
        out = attention(given, heads, where, turns, room())
        found.append((out.detach(), *torch.autograd.grad(out, given, outer)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    check(heads, lengths, rotary())


@pytest.mark.parametrize("window", [None, 40])
def test_shares_that_are_kept_are_those_that_would_be_computed_again(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, where = Heads(6, 3, WIDTH, 0.4, window), segments((40, 200, 3))
    turns, qkv = turns_of(rotary(), where.positions()), torch.randn(243, heads.all * WIDTH)
    found = []
    for most in (0, 1000):
        monkeypatch.setattr(attention_module, "KEPT_SHARES", most)
        given = own(qkv)
        where_kept = room()
        attention(given, heads, where, turns, where_kept).square().sum().backward()  # type: ignore[no-untyped-call]
        found.append((given.grad, where_kept.arena.mark()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[1][1] > found[0][1]
