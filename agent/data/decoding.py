"""From the bytes of a file to its text, or to the reason why it holds none.

The rule for encodings: a byte order mark decides; else strict UTF-8; else windows-1252, in which every byte that the
encoding leaves undefined becomes U+FFFD (the fallback of the WHATWG Encoding Standard for unlabelled western text).
"""

from __future__ import annotations

import codecs
import re

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SIGNATURES = (
    b"%PDF-",
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"\x7fELF",
    b"GGUF",
    b"SQLite format 3",
    b"OggS",
    b"ID3",
    b"{\\rtf",
)
_HEAD_BYTES = 8192
_CONTROL_SHARE = 0.02
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff]")
_REMOVED = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_TRAILING_BLANKS = re.compile(r"(?<![ \t])[ \t]+$", re.MULTILINE)  # tried once a run of blanks, not at each of them
_BLANK_LINES = re.compile(r"\n{3,}")
_NO_WORDS = re.compile(r"[!-~]{2000}")


class NotTextError(ValueError):
    """The bytes are not text; the argument is the reason, as a phrase that follows the file's name."""


def decode_text(data: bytes) -> str:
    """Give the text of a file, with line ends and blank lines made even.

    Raises:
        NotTextError: the bytes are empty, binary, or encoded data without words.
    """
    if not data.strip():
        raise NotTextError("is empty")
    text = tidy(_decode(data))
    if not text.strip():
        raise NotTextError("is empty")
    if _NO_WORDS.search(text):
        raise NotTextError("is minified or encoded, not written")
    return text


def tidy(text: str) -> str:
    """Give text with even line ends, no control characters, no blanks at line ends, and single blank lines."""
    text = _REMOVED.sub("", _LINE_ENDS.sub("\n", text))
    return _BLANK_LINES.sub("\n\n", _TRAILING_BLANKS.sub("", text)).strip("\n")


def _decode(data: bytes) -> str:
    """Decode by the module's rule, refusing what looks binary."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _plausible(data[len(mark) :].decode(encoding, "replace"))
    head = data[:_HEAD_BYTES]
    if b"\0" in head or head.startswith(_SIGNATURES):
        raise NotTextError("is not text")
    try:
        return _plausible(data.decode("utf-8"))
    except UnicodeDecodeError:
        return _plausible(data.decode("cp1252", "replace"))


def _plausible(text: str) -> str:
    """Give the text back, unless it has more control characters than writing has."""
    head = text[:_HEAD_BYTES]
    if len(_CONTROLS.findall(head)) > _CONTROL_SHARE * len(head):
        raise NotTextError("is not text")
    return text
