from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.testing import random_adapter
from agent.update.release import pack_difference, pack_whole, unpack
from agent.update.streams import BodyError


def nowhere(_sha256: str) -> None:
    return None


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_come_back_from_the_whole_form(data: bytes) -> None:
    assert unpack(pack_whole(data), len(data), nowhere) == data


@settings(max_examples=100, deadline=None)
@given(pair=st.integers(0, 200).flatmap(lambda size: st.tuples(*[st.binary(min_size=size, max_size=size)] * 2)))
def test_any_bytes_come_back_from_the_difference_to_others_of_their_length(pair: tuple[bytes, bytes]) -> None:
    data, base = pair
    content = pack_difference(data, base)
    assert content is not None
    known = {hashlib.sha256(base).hexdigest(): base}
    assert unpack(content, len(data), known.get) == data


def test_adapters_of_different_length_have_no_difference() -> None:
    assert pack_difference(bytes(8), bytes(9)) is None


def test_the_whole_form_is_smaller_than_the_adapter() -> None:
    data = random_adapter(rank=32, seed=1).to_bytes()
    assert len(pack_whole(data)) < 0.9 * len(data)


def test_rounded_numbers_halve_the_whole_form() -> None:
    numbers = np.random.default_rng(0).normal(0, 1, 50_000).astype(np.float32)
    rounded = (numbers.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert len(pack_whole(rounded.tobytes())) < 0.5 * len(pack_whole(numbers.tobytes()))


def test_a_difference_is_small_where_little_changed_in_either_direction() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(0, 1, 50_000).astype(np.float32)
    half = base.copy()
    half[::2] += 1
    near = base * (1 + rng.normal(0, 1e-5, base.size)).astype(np.float32)
    sizes = {}
    for name, numbers in {"same": base, "half": half, "near": near}.items():
        content = pack_difference(numbers.tobytes(), base.tobytes())
        assert content is not None
        sizes[name] = len(content) / base.nbytes
    assert sizes["same"] < 0.001
    assert sizes["half"] < 0.6
    assert sizes["near"] < 0.4 < len(pack_whole(near.tobytes())) / base.nbytes


def test_a_difference_from_what_is_not_here_is_refused() -> None:
    data, base = random_adapter(seed=1).to_bytes(), random_adapter(seed=2).to_bytes()
    content = pack_difference(data, base)
    assert content is not None
    with pytest.raises(BodyError, match="not here"):
        unpack(content, len(data), nowhere)
    with pytest.raises(BodyError, match="not here"):
        unpack(content, len(data), lambda _sha256: base[:-4])


def test_a_bomb_is_refused_before_it_is_expanded() -> None:
    bomb = pack_whole(bytes(64 * 1024 * 1024))
    tracemalloc.start()
    with pytest.raises(BodyError, match="states"):
        unpack(bomb, 1000, nowhere)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200), size=st.integers(0, 100), form=st.sampled_from([b"", b"\0", b"\1"]))
def test_any_bytes_give_as_many_as_were_asked_for_or_a_refusal(content: bytes, size: int, form: bytes) -> None:
    try:
        data = unpack(form + content, size, lambda _sha256: bytes(size))
    except BodyError as refusal:
        reason = refusal.reason
    else:
        reason = None
        assert len(data) == size
    assert reason in {None, "malformed", "size"}


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_gives_a_refusal_or_other_bytes_which_the_hash_tells(place: int, value: int) -> None:
    data = random_adapter(seed=1).to_bytes()
    content = bytearray(pack_whole(data))
    content[place % len(content)] ^= value
    try:
        got = unpack(bytes(content), len(data), nowhere)
    except BodyError:
        assert value
    else:
        assert len(got) == len(data)
