"""Deterministic CBOR: one value, one encoding.

Everything that is signed or hashed is encoded here, so that two programs that mean the same bytes write the same bytes
(RFC 8949 section 4.2, core deterministic encoding). The data model is small on purpose: null, booleans, 64-bit
integers, finite floats, byte strings, text, lists, and maps with text keys. With text keys only, the two key orders
that RFC 8949 names (bytewise, and length first) are the same order.

Decoding walks the bytes before anything is built from them: a header that promises more than is there, a depth or a
count above the limit, a tag, an indefinite length or a longer-than-needed length is refused while memory use is still
nothing. What passes is decoded, encoded again, and compared, which catches the rest (key order, duplicate keys, long
floats).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import cbor2

from agent.errors import MalformedMessageError, OversizedMessageError

Value: TypeAlias = "bool | int | float | bytes | str | Sequence[Value] | Mapping[str, Value] | None"
"""What can be encoded. Decoding gives ``list`` for sequences and ``dict`` for mappings."""

MAX_DEPTH = 16
"""Lists and maps inside one another, at most."""

MAX_ITEMS = 65_536
"""Values of any kind in one message, at most (keys count)."""

_INT_MIN = -(2**64)
_INT_MAX = 2**64 - 1

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_ONE_BYTE, _TWO_BYTES, _FOUR_BYTES, _EIGHT_BYTES = 24, 25, 26, 27
_FALSE, _TRUE, _NULL = 20, 21, 22
_BYTES_FOR_ONE = {_BYTES: 1, _TEXT: 1, _ARRAY: 1, _MAP: 2}  # what each unit of the argument takes at least
_SHORTEST = {_ONE_BYTE: 24, _TWO_BYTES: 2**8, _FOUR_BYTES: 2**16, _EIGHT_BYTES: 2**32}
_ADVICE = "The sender speaks another protocol or the message was damaged; it is dropped."


def encode(value: Value) -> bytes:
    """Give the one encoding of ``value``.

    Raises:
        TypeError: a type outside the data model (a key that is not text, a set, an object).
        ValueError: an integer beyond 64 bits, a float that is not finite, or lists nested deeper than ``MAX_DEPTH``.
    """
    _check(value, 0)
    encoded: bytes = cbor2.dumps(value, canonical=True)
    return encoded


def decode(data: bytes, *, max_bytes: int, max_items: int = MAX_ITEMS) -> Value:
    """Read one canonical value that fills ``data`` exactly.

    Args:
        data: the encoding.
        max_bytes: how large it may be; larger is refused unread.
        max_items: how many values it may hold, keys included.

    Raises:
        OversizedMessageError: ``data`` is longer than ``max_bytes``.
        MalformedMessageError: anything else that is wrong with it.
    """
    if len(data) > max_bytes:
        raise OversizedMessageError(
            f"A message of {len(data)} bytes came where at most {max_bytes} are allowed.", advice=_ADVICE
        )
    _scan(data, max_items)
    try:
        value: Value = cbor2.loads(data)
        again = encode(value)
    except (cbor2.CBORError, TypeError, ValueError, RecursionError) as error:
        raise _malformed("it holds a value outside the protocol") from error
    if again != data:
        raise _malformed("it is not in canonical form")
    return value


def _malformed(what: str) -> MalformedMessageError:
    return MalformedMessageError(f"A message could not be read: {what}.", advice=_ADVICE)


def _check(value: object, depth: int) -> None:
    if value is None or isinstance(value, bool | bytes):
        return
    if isinstance(value, str | int | float):
        _check_scalar(value)
        return
    if not isinstance(value, Mapping | list | tuple):
        raise TypeError(f"{type(value).__name__} cannot be encoded")
    if depth >= MAX_DEPTH:
        raise ValueError(f"lists and maps are nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"a key must be text, not {type(key).__name__}")
            _check_scalar(key)
        value = value.values()
    for item in value:
        _check(item, depth + 1)


def _check_scalar(value: str | float) -> None:
    if isinstance(value, str):
        value.encode("utf-8")  # a lone surrogate is a ValueError here
    elif isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise ValueError(f"{value} does not fit in 64 bits")
    elif not math.isfinite(value):
        raise ValueError("a float must be finite")


def _scan(data: bytes, max_items: int) -> None:
    """Walk the whole encoding without building anything from it."""
    position = 0
    items = 0
    waiting: list[tuple[int, bool]] = [(1, False)]  # at each depth: values still to come, and whether it is a map
    while waiting:
        left, is_map = waiting.pop()
        if not left:
            continue
        waiting.append((left - 1, is_map))
        items += 1
        if items > max_items:
            raise _malformed(f"it holds more than {max_items} values")
        major, argument, position = _head(data, position)
        if is_map and left % 2 == 0 and major != _TEXT:
            raise _malformed("a key is not text")
        needed = argument * _BYTES_FOR_ONE.get(major, 0)
        if needed > len(data) - position:
            raise _malformed("it is cut short")
        if major in (_BYTES, _TEXT):
            position += needed
        elif needed:
            if len(waiting) > MAX_DEPTH:
                raise _malformed(f"it is nested deeper than {MAX_DEPTH}")
            waiting.append((needed, major == _MAP))
    if position != len(data):
        raise _malformed("there is something behind its end")


def _head(data: bytes, position: int) -> tuple[int, int, int]:
    """Read the head of one value: its major type, its argument, and where the head ends."""
    if position >= len(data):
        raise _malformed("it is cut short")
    major, info = divmod(data[position], 32)
    position += 1
    if major == _TAG:
        raise _malformed("it holds a tag")
    if info < _ONE_BYTE:
        if major == _SIMPLE and info not in (_FALSE, _TRUE, _NULL):
            raise _malformed("it holds an unknown simple value")
        return major, info, position
    if info > _EIGHT_BYTES:
        raise _malformed("it holds an indefinite or reserved length")
    width = 1 << (info - _ONE_BYTE)
    end = position + width
    if end > len(data):
        raise _malformed("it is cut short")
    if major == _SIMPLE:
        if info == _ONE_BYTE:
            raise _malformed("it holds an unknown simple value")
        return major, 0, end  # a float; its value is judged after decoding
    argument = int.from_bytes(data[position:end], "big")
    if argument < _SHORTEST[info]:
        raise _malformed("a length is longer than needed")
    return major, argument, end
