from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.crypto.canonical import MAX_DEPTH, decode, encode
from agent.errors import MalformedMessageError, OversizedMessageError, ProtocolError

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.binary(max_size=80)
    | st.text(max_size=40)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=30), inner, max_size=5)
)


@given(values)
def test_what_is_encoded_decodes_to_itself(value: Any) -> None:
    assert decode(encode(value), max_bytes=1 << 20) == value


@given(values)
def test_decoding_refuses_anything_behind_the_end_and_any_cut(value: Any) -> None:
    data = encode(value)
    with pytest.raises(MalformedMessageError):
        decode(data + b"\x00", max_bytes=1 << 20)
    with pytest.raises(MalformedMessageError):
        decode(data[:-1], max_bytes=1 << 20)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_are_the_one_encoding_of_what_they_say(data: bytes) -> None:
    try:
        value = decode(data, max_bytes=200)
    except ProtocolError:
        return
    assert encode(value) == data


def test_the_same_map_in_another_order_has_the_same_encoding() -> None:
    assert (
        encode({"bb": 1, "a": 2, "c": 3})
        == encode({"c": 3, "a": 2, "bb": 1})
        == bytes.fromhex("a3616102616303626262 01")
    )


@pytest.mark.parametrize(
    "hexadecimal",
    [
        pytest.param("9f01ff", id="an indefinite list"),
        pytest.param("bf616101ff", id="an indefinite map"),
        pytest.param("5f4101ff", id="indefinite bytes"),
        pytest.param("1801", id="a length longer than needed"),
        pytest.param("190001", id="a length of two bytes for one"),
        pytest.param("a10102", id="a map key that is not text"),
        pytest.param("a2616201616102", id="keys out of order"),
        pytest.param("a2616101616102", id="a key twice"),
        pytest.param("c074323031332d30332d32315432303a30343a30305a", id="a tag"),
        pytest.param("c249010000000000000000", id="a big number"),
        pytest.param("f7", id="undefined"),
        pytest.param("e0", id="a simple value"),
        pytest.param("f8ff", id="a simple value in two bytes"),
        pytest.param("f97e00", id="not a number"),
        pytest.param("f97c00", id="infinity"),
        pytest.param("fb3ff8000000000000", id="a float longer than needed"),
        pytest.param("62ff00", id="text that is not UTF-8"),
        pytest.param("ff", id="a break alone"),
        pytest.param("", id="nothing"),
        pytest.param("1c", id="a reserved length"),
    ],
)
def test_what_has_another_encoding_is_refused(hexadecimal: str) -> None:
    with pytest.raises(MalformedMessageError):
        decode(bytes.fromhex(hexadecimal), max_bytes=100)


@pytest.mark.parametrize("head", ["5a", "7a", "9a", "ba", "5b", "7b", "9b", "bb"])
def test_a_promise_of_gigabytes_allocates_nothing(head: str) -> None:
    data = bytes.fromhex(head) + b"\x7f" + b"\xff" * (3 if head.endswith("a") else 7)
    tracemalloc.start()
    with pytest.raises(MalformedMessageError):
        decode(data, max_bytes=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_too_many_too_deep_and_too_large_are_refused() -> None:
    with pytest.raises(OversizedMessageError):
        decode(encode(bytes(100)), max_bytes=101)
    with pytest.raises(MalformedMessageError):
        decode(encode([0] * 20), max_bytes=100, max_items=20)
    deepest: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        deepest = [deepest]
    assert decode(encode(deepest), max_bytes=100) == deepest
    with pytest.raises(ValueError, match="nested"):
        encode([deepest])
    with pytest.raises(MalformedMessageError):
        decode(b"\x81" + encode(deepest), max_bytes=100)
    with pytest.raises(MalformedMessageError):
        decode(b"\x81" * 100_000, max_bytes=1 << 20)


@pytest.mark.parametrize("value", [{1: 2}, {1, 2}, object(), bytearray(b"x"), {"a": {b"k": 1}}])
def test_a_type_outside_the_model_cannot_be_encoded(value: Any) -> None:
    with pytest.raises(TypeError):
        encode(value)


@pytest.mark.parametrize("value", [2**64, -(2**64) - 1, float("nan"), float("inf"), "\ud800", {"\ud800": 1}])
def test_a_value_outside_the_model_cannot_be_encoded(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever part of it is wrong
        encode(value)
