"""The header of a GGUF file, parsed with a bound on everything that a hostile file can claim.

Follows ``docs/gguf.md`` of ggml (versions 2 and 3, little-endian). Arrays are left where they lie and are decoded when
asked for, because a vocabulary of 150,000 strings is not needed to train on a model.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from agent.errors import UnreadableModelError, UnsupportedModelError

Buffer: TypeAlias = bytes | memoryview

MAX_ENTRIES = 65_536
MAX_NAME_BYTES = 65_535
MAX_ARRAY_ITEMS = 1 << 24
MAX_DIMENSIONS = 4
MAX_DIMENSION = 1 << 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9
_BIG_ENDIAN_VERSIONS = {0x0200_0000, 0x0300_0000}


@dataclass(frozen=True, slots=True)
class ArrayValue:
    """An array in the metadata, not decoded yet.

    Attributes:
        item_type: the GGUF value type of its items.
        count: how many items.
        start: where the first item begins, in bytes from the start of the file.
    """

    item_type: int
    count: int
    start: int


Value: TypeAlias = int | float | bool | str | ArrayValue


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One line of the tensor table.

    Attributes:
        name: such as ``blk.0.attn_q.weight``.
        dimensions: in ggml's order: the first is the length of a row.
        type_number: ``enum ggml_type``, unchecked.
        offset: bytes from the start of the data section, unchecked against the file's end.
    """

    name: str
    dimensions: tuple[int, ...]
    type_number: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """Everything before the weights.

    Attributes:
        version: 2 or 3.
        metadata: scalars and strings decoded, arrays as :class:`ArrayValue`.
        tensors: the tensor table in file order.
        data_start: where the data section begins, in bytes.
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorEntry, ...]
    data_start: int


class _Cursor:
    """A position in a buffer that cannot leave it."""

    def __init__(self, data: Buffer, at: int = 0) -> None:
        self.data = data
        self.at = at

    def take(self, size: int) -> int:
        """Step over ``size`` bytes and say where they begin."""
        start = self.at
        if size > len(self.data) - start:
            raise _damaged("ends in the middle of its header")
        self.at = start + size
        return start

    def scalar(self, code: str) -> int | float | bool:
        layout = "<" + code
        start = self.take(struct.calcsize(layout))
        value: int | float | bool = struct.unpack_from(layout, self.data, start)[0]
        return value

    def integer(self, code: str) -> int:
        return int(self.scalar(code))

    def string(self, limit: int | None = None) -> str:
        length = self.integer("Q")
        if limit is not None and length > limit:
            raise _damaged(f"has a name of {length} bytes")
        start = self.take(length)
        return bytes(self.data[start : start + length]).decode("utf-8", "replace")

    def skip_strings(self, count: int) -> None:
        """Step over ``count`` strings; a tight loop, because vocabularies are long."""
        data, at, size = self.data, self.at, len(self.data)
        read = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if size - at < 8:
                raise _damaged("ends in the middle of its header")
            at += 8 + read(data, at)[0]
            if at > size:
                raise _damaged("ends in the middle of its header")
        self.at = at


def parse_header(data: Buffer) -> Header:
    """Parse the header at the start of ``data``.

    Raises:
        UnreadableModelError: it is no GGUF, or is cut short or damaged.
        UnsupportedModelError: it is a GGUF of a version or byte order that is not read here.
    """
    cursor = _Cursor(data)
    if bytes(data[:4]) != b"GGUF":
        raise UnreadableModelError(
            "does not begin as a GGUF file does", advice="Give the path of a .gguf file; convert other formats first."
        )
    cursor.take(4)
    version = cursor.integer("I")
    if version in _BIG_ENDIAN_VERSIONS or version not in {2, 3}:
        kind = "a big-endian file" if version in _BIG_ENDIAN_VERSIONS else f"GGUF version {version}"
        raise UnsupportedModelError(
            f"is {kind}", advice="Use a little-endian GGUF of version 2 or 3, as llama.cpp's tools write today."
        )
    tensor_count, entry_count = cursor.integer("Q"), cursor.integer("Q")
    if max(tensor_count, entry_count) > MAX_ENTRIES:
        raise _damaged(f"claims {tensor_count} tensors and {entry_count} metadata entries")
    metadata: dict[str, Value] = {}
    for _ in range(entry_count):
        key = cursor.string(MAX_NAME_BYTES)
        metadata[key] = _value(cursor, cursor.integer("I"))
    tensors = tuple(_tensor(cursor) for _ in range(tensor_count))
    if len({tensor.name for tensor in tensors}) != tensor_count:
        raise _damaged("has two tensors of one name")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 65_536 or alignment & (alignment - 1):
        raise _damaged(f"claims an alignment of {alignment}")
    return Header(version, metadata, tensors, -(-cursor.at // alignment) * alignment)


def decode_array(data: Buffer, array: ArrayValue) -> list[int | float | bool | str]:
    """Decode the items of an array that :func:`parse_header` found in the same data."""
    cursor = _Cursor(data, array.start)
    if array.item_type == _STRING:
        return [cursor.string() for _ in range(array.count)]
    layout = f"<{array.count}{_SCALARS[array.item_type]}"
    start = cursor.take(struct.calcsize(layout))
    return list(struct.unpack_from(layout, data, start))


def _value(cursor: _Cursor, value_type: int) -> Value:
    """Read one metadata value; arrays are stepped over."""
    if value_type in _SCALARS:
        return cursor.scalar(_SCALARS[value_type])
    if value_type == _STRING:
        return cursor.string()
    if value_type != _ARRAY:
        raise _damaged(f"has a metadata value of unknown type {value_type}")
    item_type, count = cursor.integer("I"), cursor.integer("Q")
    if count > MAX_ARRAY_ITEMS:
        raise _damaged(f"has an array of {count} items")
    start = cursor.at
    if item_type == _STRING:
        cursor.skip_strings(count)
    elif item_type in _SCALARS:
        cursor.take(count * struct.calcsize("<" + _SCALARS[item_type]))
    else:
        raise _damaged(f"has an array of unknown type {item_type}")
    return ArrayValue(item_type, count, start)


def _tensor(cursor: _Cursor) -> TensorEntry:
    """Read one line of the tensor table."""
    name = cursor.string(MAX_NAME_BYTES)
    rank = cursor.integer("I")
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise _damaged(f"gives tensor {name} {rank} dimensions")
    dimensions = tuple(cursor.integer("Q") for _ in range(rank))
    if not all(0 < size <= MAX_DIMENSION for size in dimensions):
        raise _damaged(f"gives tensor {name} the shape {dimensions}")
    return TensorEntry(name, dimensions, cursor.integer("I"), cursor.integer("Q"))


def _damaged(what: str) -> UnreadableModelError:
    return UnreadableModelError(what, advice="The download was cut short or the file is damaged; fetch it again.")
