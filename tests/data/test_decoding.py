from __future__ import annotations

import codecs
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.data.decoding import NotTextError, decode_text, tidy


@pytest.mark.parametrize(
    "data",
    [
        "Grüße, 世界".encode(),
        codecs.BOM_UTF8 + "Grüße, 世界".encode(),
        codecs.BOM_UTF16_LE + "Grüße, 世界".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "Grüße, 世界".encode("utf-16-be"),
        codecs.BOM_UTF32_LE + "Grüße, 世界".encode("utf-32-le"),
        codecs.BOM_UTF32_BE + "Grüße, 世界".encode("utf-32-be"),
    ],
)
def test_unicode_is_read_in_every_form(data: bytes) -> None:
    assert decode_text(data) == "Grüße, 世界"


def test_what_is_no_utf_8_is_read_as_windows_1252() -> None:
    assert decode_text("smart “quotes” and Grüße".encode("cp1252")) == "smart “quotes” and Grüße"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"text\0with a null", "is not text"),
        (b"%PDF-1.7 looks like text at first", "is not text"),
        (b"\x1f\x8b\x08 gzip", "is not text"),
        (b"\x01\x02\x03\x04\x05 bell \x07", "is not text"),
        (b"x" * 3000, "is minified or encoded, not written"),
        (random.Random(7).randbytes(600).replace(b"\0", b"\1"), "is not text"),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(NotTextError) as caught:
        decode_text(data)
    assert str(caught.value) == reason


def test_line_ends_blanks_and_controls_are_made_even() -> None:
    assert tidy("one  \r\ntwo\rthree\x00\x1b\n\n\n\n\tfour\f\ufeff") == "one\ntwo\nthree\n\n\tfour"


@given(data=st.binary(max_size=300))
def test_any_bytes_give_clean_text_or_a_reason(data: bytes) -> None:
    try:
        text = decode_text(data)
    except NotTextError as refusal:
        text = str(refusal)
    assert text.strip()
    assert not {"\r", "\0", "\x1b", "\n\n\n"} & {text[i : i + n] for n in (1, 3) for i in range(len(text))}
