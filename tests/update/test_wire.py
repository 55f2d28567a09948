from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.crypto import canonical
from agent.errors import UpdateRefusedError
from agent.llm.adapter import ModulePath
from agent.testing import SMALL_SHAPES, random_delta
from agent.update.delta import Delta
from agent.update.wire import Reason, UpdateHeader, decode_update, encode_update

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
    """Give the update with some header fields replaced; ``None`` takes one out."""
    length = int.from_bytes(data[:4], "big")
    fields = canonical.decode(data[4 : 4 + length], max_bytes=LIMIT)
    assert isinstance(fields, dict)
    kept = {key: value for key, value in {**fields, **changes}.items() if value is not None}
    head = canonical.encode(kept)  # type: ignore[arg-type]
    return len(head).to_bytes(4, "big") + head + data[4 + length :]


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


def test_an_int8_update_comes_back_closely_and_encodes_to_the_same_bytes_again() -> None:
    delta = random_delta(seed=4)
    data = encode_update(HEADER, delta)
    assert data == encode_update(HEADER, delta)
    _, back = decode(data)
    for name, factors in delta.modules.items():
        assert np.linalg.norm(back.modules[name].a - factors.a) < 0.01 * np.linalg.norm(factors.a)


def test_int8_takes_about_a_quarter_of_fp32() -> None:
    wide = {ModulePath(f"model.layers.{layer}.mlp.up_proj"): (768, 256) for layer in range(4)}
    delta = random_delta(rank=8, shapes=wide)
    data = encode_update(replace(HEADER, rank=8), delta)
    assert len(data) < 0.27 * 4 * delta.parameter_count


def test_the_form_of_an_update_is_pinned() -> None:
    delta = random_delta(seed=1)
    data = encode_update(HEADER, delta, "none")
    length = int.from_bytes(data[:4], "big")
    assert hashlib.sha256(data[: 4 + length]).hexdigest() == (
        "30e0ce7ed4a82d7083b498d7b6568892835900ab1f8b7308ec4d612fedeaae76"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, Reason.VERSION),
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
        ({"compression": "none"}, Reason.SIZE),
        ({"rank": 5}, Reason.SIZE),
        ({"modules": []}, Reason.MODULES),
        ({"modules": "all"}, Reason.MODULES),
        ({"modules": [["model.layers.9.mlp.up_proj", 20, 12]]}, Reason.MODULES),
        ({"modules": [[name, *SMALL_SHAPES[name]] for name in sorted(SMALL_SHAPES, reverse=True)]}, Reason.MODULES),
        ({"modules": [[min(SMALL_SHAPES), 12, 20]] * 2}, Reason.MODULES),
        ({"modules": [[min(SMALL_SHAPES), 20, 12]]}, Reason.SHAPE),
        ({"modules": [[min(SMALL_SHAPES), 12]]}, Reason.MALFORMED),
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


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\xff" * 40, b"\0\0\0\x01", b"\0\0\0\x01\xa0", bytes(100)])
def test_bytes_that_are_no_update_are_malformed(data: bytes) -> None:
    assert reason_of(data) == Reason.MALFORMED


def test_a_delta_that_is_not_finite_or_of_another_rank_is_not_encoded() -> None:
    for delta in (random_delta(rank=3), random_delta(size=float("inf")), Delta(rank=4, modules={})):
        with pytest.raises(ValueError, match="an update must have"):
            encode_update(HEADER, delta)


ENCODED = {name: encode_update(HEADER, random_delta(seed=9), name) for name in ("int8", "none")}


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(["int8", "none"]),
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
