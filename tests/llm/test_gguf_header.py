from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import ModelError, UnreadableModelError, UnsupportedModelError
from agent.llm.gguf_file import open_gguf
from agent.llm.gguf_header import ArrayValue, decode_array, parse_header

SLOW_FIXTURE = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def header_bytes(tensors: int = 0, entries: int = 0, *, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def test_a_header_gives_metadata_and_tensors(tiny_f32: Path) -> None:
    data = tiny_f32.read_bytes()
    header = parse_header(data)
    assert header.version == 3
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["llama.embedding_length"] == 256
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, ArrayValue)
    assert decode_array(data, tokens)[ord("A") - 33 + 33] == "A"
    types = header.metadata["tokenizer.ggml.token_type"]
    assert isinstance(types, ArrayValue)
    assert len(decode_array(data, types)) == tokens.count == 320
    assert header.tensors[0].dimensions == (256, 320)
    assert header.data_start % 32 == 0


@pytest.mark.parametrize(
    "data",
    [b"", b"GG", b"GGUF", b"GGUF\x03\0\0\0", b"PK\x03\x04 a zip", b"<html>404 Not Found</html>"],
)
def test_what_is_no_gguf_or_ends_at_once_is_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableModelError) as caught:
        parse_header(data)
    assert caught.value.advice


@pytest.mark.parametrize("version", [0, 1, 4, 0x0300_0000])
def test_other_versions_and_byte_orders_are_unsupported(version: int) -> None:
    with pytest.raises(UnsupportedModelError, match="big-endian" if version > 4 else f"version {version}"):
        parse_header(header_bytes(version=version))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (header_bytes(2**60, 0), "claims"),
        (header_bytes(0, 2**60), "claims"),
        (header_bytes(0, 1, rest=struct.pack("<Q", 2**62)), "has a name of"),
        (header_bytes(0, 1, rest=string("k") + struct.pack("<IQ", 8, 2**63)), "middle of its header"),
        (header_bytes(0, 1, rest=string("k") + struct.pack("<IIQ", 9, 8, 2**40)), "has an array of"),
        (header_bytes(0, 1, rest=string("k") + struct.pack("<IIQ", 9, 8, 2**20)), "middle of its header"),
        (header_bytes(0, 1, rest=string("k") + struct.pack("<IIQ", 9, 9, 1)), "array of unknown type 9"),
        (header_bytes(0, 1, rest=string("k") + struct.pack("<I", 99)), "unknown type 99"),
        (header_bytes(1, 0, rest=string("t") + struct.pack("<I", 9)), "9 dimensions"),
        (header_bytes(1, 0, rest=string("t") + struct.pack("<IQ", 1, 0)), "the shape"),
        (header_bytes(1, 0, rest=string("t") + struct.pack("<IQ", 1, 2**63)), "the shape"),
        (header_bytes(2, 0, rest=2 * (string("t") + struct.pack("<IQIQ", 1, 1, 0, 0))), "two tensors of one name"),
        (header_bytes(0, 1, rest=string("general.alignment") + struct.pack("<II", 4, 3)), "alignment of 3"),
    ],
)
def test_a_hostile_claim_is_refused_without_being_followed(data: bytes, complaint: str) -> None:
    with pytest.raises(UnreadableModelError, match=complaint):
        parse_header(data)


@given(cut=st.integers(min_value=0))
@SLOW_FIXTURE
def test_a_file_cut_anywhere_is_unreadable(tiny_q8: Path, tmp_path: Path, cut: int) -> None:
    data = tiny_q8.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: cut % len(data)])
    with pytest.raises(UnreadableModelError) as caught:
        open_gguf(path)
    assert str(path) in caught.value.message


@given(edits=st.lists(st.tuples(st.integers(0, 12_000), st.integers(0, 255)), min_size=1, max_size=6))
@SLOW_FIXTURE
def test_a_damaged_header_is_read_or_refused_and_nothing_else(
    tiny_q8: Path, tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    data = bytearray(tiny_q8.read_bytes())
    for place, value in edits:
        data[place % len(data)] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with contextlib.suppress(ModelError):
        open_gguf(path)
