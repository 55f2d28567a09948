from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.crypto import canonical
from agent.errors import UpdateRefusedError
from agent.llm.adapter import LoraFactors, ModulePath
from agent.testing import SMALL_SHAPES, random_delta
from agent.update.delta import Delta, Factors
from agent.update.streams import compress, expand, stated_size
from agent.update.wire import Reason, UpdateHeader, decode_update, encode, encode_update, open_update

HEADER = UpdateHeader(
    round=7, base_sha256="ab" * 32, start_release="cd" * 32, rank=4, alpha=8.0, tokens=1000, steps=40, seed=3
)
LIMIT = 1 << 20


def decode(data: bytes, *, max_rank: int = 8, max_bytes: int = LIMIT) -> tuple[UpdateHeader, Delta]:
    return decode_update(data, expected=SMALL_SHAPES, max_rank=max_rank, max_bytes=max_bytes)


def reason_of(data: bytes, *, max_rank: int = 8, max_bytes: int = LIMIT) -> str:
    with pytest.raises(UpdateRefusedError) as caught:
        decode(data, max_rank=max_rank, max_bytes=max_bytes)
    assert caught.value.advice
    return caught.value.reason


def with_fields(data: bytes, changes: Mapping[str, object]) -> bytes:
    """Give the update with some header fields replaced; ``None`` takes one out, ``modules`` is a list."""
    length = int.from_bytes(data[:4], "big")
    frame = data[4 : 4 + length]
    fields = canonical.decode(expand(frame, stated_size(frame)), max_bytes=LIMIT)
    assert isinstance(fields, dict)
    kept = {key: value for key, value in {**fields, **changes}.items() if value is not None}
    if isinstance(kept["modules"], list):
        kept["modules"] = canonical.encode(kept["modules"])
    head = compress(canonical.encode(kept))  # type: ignore[arg-type]
    return len(head).to_bytes(4, "big") + head + data[4 + length :]


def encoded(delta: Delta, compression: str = "int8", density: float = 1.0) -> bytes:
    header = replace(HEADER, rank=delta.rank, factors=delta.factors)
    return encode_update(header, delta, compression, density=density)


def trained(factors: Factors, *, seed: int = 0, rank: int = 4) -> Delta:
    """Give a random delta in which only these factors were trained."""
    delta = random_delta(seed=seed, rank=rank)
    modules = {
        name: LoraFactors(
            a=f.a if factors != "b" else np.zeros_like(f.a), b=f.b if factors != "a" else np.zeros_like(f.b)
        )
        for name, f in delta.modules.items()
    }
    return replace(delta, modules=modules, factors=factors)


@settings(max_examples=25, deadline=None)
@given(
    rank=st.integers(1, 8),
    seed=st.integers(0, 50),
    numbers=st.tuples(*[st.integers(0, 2**48 - 1)] * 3),
    alpha=st.floats(1e-3, 1e3),
    names=st.sets(st.sampled_from(sorted(SMALL_SHAPES)), min_size=1),
)
def test_an_uncompressed_update_comes_back_exactly(
    rank: int, seed: int, numbers: tuple[int, int, int], alpha: float, names: set[ModulePath]
) -> None:
    header = replace(HEADER, rank=rank, alpha=alpha, round=numbers[0], tokens=numbers[1], steps=numbers[2], seed=seed)
    delta = random_delta(rank=rank, seed=seed, shapes={name: SMALL_SHAPES[name] for name in names})
    read, back = decode(encode_update(header, delta, "none"))
    assert read == header
    assert list(back.modules) == sorted(names)
    for name, factors in delta.modules.items():
        np.testing.assert_array_equal(back.modules[name].a, factors.a)
        np.testing.assert_array_equal(back.modules[name].b, factors.b)


CODERS = [("int8", 1.0), ("int4", 1.0), ("none", 1.0), ("topk", 0.3)]


@pytest.mark.parametrize(("name", "density"), CODERS)
@pytest.mark.parametrize("factors", ["both", "a", "b"])
def test_the_receiver_reads_exactly_what_the_sender_was_told(name: str, density: float, factors: Factors) -> None:
    delta = trained(factors, seed=4)
    header = replace(HEADER, factors=factors)
    made = encode(header, delta, name, density=density)
    assert made.data == encode(header, delta, name, density=density).data
    read, back = decode(made.data)
    assert (read, back.factors, back.rank) == (header, factors, 4)
    for module, factor in made.sent.modules.items():
        np.testing.assert_array_equal(back.modules[module].a, factor.a)
        np.testing.assert_array_equal(back.modules[module].b, factor.b)
        frozen = {"both": (), "a": (factor.b,), "b": (factor.a,)}[factors]
        assert not any(part.any() for part in frozen)


def test_a_frozen_factor_takes_no_bytes() -> None:
    sizes = {factors: len(encoded(trained(factors), "none")) for factors in ("both", "a", "b")}
    numbers = {"a": 4 * 4 * (20 + 12 + 12), "b": 4 * 4 * (12 + 16 + 20)}
    assert sizes["both"] - sizes["a"] == pytest.approx(numbers["b"], rel=0.1)
    assert sizes["both"] - sizes["b"] == pytest.approx(numbers["a"], rel=0.1)


def test_two_updates_do_not_round_alike() -> None:
    delta = random_delta(seed=4)
    first, second = (decode(encode_update(replace(HEADER, round=number), delta, "int4"))[1] for number in (1, 2))
    name = min(delta.modules)
    assert not np.array_equal(first.modules[name].a, second.modules[name].a)


@pytest.mark.parametrize(("name", "density", "share"), [("int8", 1.0, 0.26), ("int4", 1.0, 0.1), ("topk", 0.1, 0.03)])
def test_an_update_is_much_smaller_than_fp32(name: str, density: float, share: float) -> None:
    wide = {ModulePath(f"model.layers.{layer}.mlp.up_proj"): (768, 256) for layer in range(20)}
    delta = random_delta(rank=8, shapes=wide)
    assert len(encoded(delta, name, density)) < share * 4 * delta.parameter_count


@pytest.mark.parametrize(("name", "density"), CODERS)
@pytest.mark.parametrize("factors", ["both", "a", "b"])
def test_updates_written_over_a_row_can_be_added_up(name: str, density: float, factors: Factors) -> None:
    opened = [
        open_update(
            encoded(trained(factors, seed=seed), name, density), expected=SMALL_SHAPES, max_rank=8, max_bytes=LIMIT
        )
        for seed in range(3)
    ]
    (layout,) = {update.layout.count: update.layout for update in opened}.values()
    into = np.zeros(layout.count, np.float32)
    for update in opened:
        row = np.full(layout.count, np.nan, np.float32)
        update.write(row, 0.5)
        into += row
    summed = sum(layout.flatten(update.delta()) for update in opened)
    np.testing.assert_allclose(into, 0.5 * summed, atol=1e-6)
    for wrong in (into[1:], into.astype(np.float64), np.zeros((2, layout.count), np.float32)[:, ::2]):
        with pytest.raises(ValueError, match="contiguous row"):
            opened[0].write(wrong, 1.0)


def test_a_refused_body_leaves_the_row_untouched() -> None:
    data = bytearray(encoded(random_delta(), "int4"))
    data[-1:] = b""
    opened = open_update(bytes(data), expected=SMALL_SHAPES, max_rank=8, max_bytes=LIMIT)
    into = np.ones(opened.layout.count, np.float32)
    with pytest.raises(UpdateRefusedError):
        opened.write(into, 1.0)
    assert (into == 1).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 1}, Reason.VERSION),
        ({"version": None}, Reason.MALFORMED),
        ({"seed": None}, Reason.MALFORMED),
        ({"extra": 1}, Reason.MALFORMED),
        ({"round": -1}, Reason.MALFORMED),
        ({"round": True}, Reason.MALFORMED),
        ({"base": "AB" * 32}, Reason.MALFORMED),
        ({"start": "cd"}, Reason.MALFORMED),
        ({"rank": 0}, Reason.RANK),
        ({"rank": 9}, Reason.RANK),
        ({"rank": 2**30}, Reason.RANK),
        ({"alpha": 0.0}, Reason.ALPHA),
        ({"alpha": 8}, Reason.ALPHA),
        ({"compression": "gzip"}, Reason.COMPRESSION),
        ({"compression": ["int8"]}, Reason.COMPRESSION),
        ({"compression": "none"}, Reason.MALFORMED),
        ({"compression": "int4"}, Reason.SIZE),
        ({"compression": "topk"}, Reason.MALFORMED),
        ({"density": 0.0}, Reason.COMPRESSION),
        ({"density": 1.5}, Reason.COMPRESSION),
        ({"density": 1}, Reason.COMPRESSION),
        ({"factors": "c"}, Reason.FACTORS),
        ({"factors": 1}, Reason.FACTORS),
        ({"rank": 8}, Reason.SIZE),
        ({"modules": []}, Reason.MODULES),
        ({"modules": "all"}, Reason.MALFORMED),
        ({"modules": b"all"}, Reason.MALFORMED),
        ({"modules": [["model.layers.9.mlp.up_proj", 20, 12]]}, Reason.MODULES),
        ({"modules": [[name, *SMALL_SHAPES[name]] for name in sorted(SMALL_SHAPES, reverse=True)]}, Reason.MODULES),
        ({"modules": [[min(SMALL_SHAPES), 12, 20]] * 2}, Reason.MODULES),
        ({"modules": [[min(SMALL_SHAPES), 20, 12]]}, Reason.SHAPE),
        ({"modules": [[min(SMALL_SHAPES), 12]]}, Reason.MALFORMED),
        ({"modules": [[min(SMALL_SHAPES), 12, True]]}, Reason.MALFORMED),
        ({"modules": [7]}, Reason.MALFORMED),
    ],
)
def test_a_header_that_does_not_fit_is_refused_with_its_reason(changes: dict[str, object], reason: Reason) -> None:
    assert reason_of(with_fields(encode_update(HEADER, random_delta()), changes)) == reason


def test_an_update_above_the_size_is_refused_unread() -> None:
    data = encode_update(HEADER, random_delta())
    assert reason_of(data, max_bytes=len(data) - 1) == Reason.OVERSIZED


def test_a_rank_above_the_device_s_is_refused() -> None:
    assert reason_of(encode_update(HEADER, random_delta()), max_rank=3) == Reason.RANK


def test_a_header_that_would_expand_to_much_is_refused_unexpanded() -> None:
    bomb = compress(bytes(300 * 1024))
    assert reason_of(len(bomb).to_bytes(4, "big") + bomb) == Reason.MALFORMED


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\xff" * 40, b"\0\0\0\x01", b"\0\0\0\x01\xa0", bytes(100)])
def test_bytes_that_are_no_update_are_malformed(data: bytes) -> None:
    assert reason_of(data) == Reason.MALFORMED


def test_a_delta_that_is_not_finite_or_of_another_rank_is_not_encoded() -> None:
    for delta in (random_delta(rank=3), random_delta(size=float("inf")), Delta(rank=4, modules={}), trained("a")):
        with pytest.raises(ValueError, match="an update must have"):
            encode_update(HEADER, delta)


ENCODED = {name: encoded(random_delta(seed=9), name, density) for name, density in CODERS}


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(ENCODED)),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 10_000)),
    head=st.booleans(),
)
def test_changed_bytes_give_a_refusal_or_a_finite_update_in_bounds(
    name: str, edits: list[tuple[int, int]], cut: int | None, *, head: bool
) -> None:
    data = bytearray(ENCODED[name])
    reach = min(len(data), 4 + int.from_bytes(data[:4], "big")) if head else len(data)
    for place, value in edits:
        data[place % reach] = value
    if cut is not None:
        del data[cut % len(data) :]
    try:
        header, delta = decode(bytes(data))
    except UpdateRefusedError as refusal:
        reason = refusal.reason
    else:
        reason = None
        assert delta.rank == header.rank <= 8
        assert delta.is_finite
        assert all(SMALL_SHAPES[module] == shape for module, shape in delta.shapes.items())
    assert reason is None or reason in set(Reason)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_refused_cleanly(data: bytes) -> None:
    assert reason_of(data) in set(Reason)
