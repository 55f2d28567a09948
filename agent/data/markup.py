"""From HTML to the text that a reader would see.

One pass, in time that grows as the page does: whatever was opened and is not closed (a tag, a comment, a script) goes
to the end of the page, as in browsers (WHATWG HTML, section 13.2.5), so no byte is looked at twice. Python's own
``html.parser`` looks again and again: a few kilobytes of ``<a <a <a`` keep it for minutes in the versions that this
project runs on.
"""

from __future__ import annotations

import re
from collections import Counter
from html import unescape

_HIDDEN = frozenset({"template", "svg", "noscript", "nav", "iframe", "object", "select", "button"})
_RAW = frozenset({"script", "style"})
_RCDATA = frozenset({"textarea", "title"})
_HEADINGS = {f"h{level}" for level in range(1, 7)}
# fmt: off
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl", "dt", "fieldset",
    "figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "ol", "option", "p", "pre", "section",
    "summary", "table", "tbody", "thead", "title", "tr", "ul", *_HEADINGS,
})
# fmt: on
_CELLS = frozenset({"td", "th"})
_BLANKS = re.compile(r"\s+")
_NO_CHARACTER = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{8,});?")  # nor a number that Python reads
_NAME = re.compile(r"/?[a-zA-Z][^\s/>]*")
_IN_TAG = re.compile(r">|[\"']")
_ENDS = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _RAW | _RCDATA}
_VALUE_FOLLOWS = re.compile(r"=\s*\Z")
_NEAR = 64


def html_to_text(html: str) -> str:
    """Give the visible text of an HTML page: a blank line between blocks, entities resolved, ``pre`` kept as it is."""
    reader = _Reader()
    place = 0
    while place < len(html):
        begin = html.find("<", place)
        begin = len(html) if begin < 0 else begin
        reader.add(_characters(html[place:begin]))
        place = _after_markup(html, begin, reader) if begin < len(html) else begin
    return reader.text()


def _after_markup(html: str, begin: int, reader: _Reader) -> int:
    """Take in what begins with ``<`` and say where it ends."""
    named = _NAME.match(html, begin + 1)
    if named is not None:
        return _after_tag(html, named, reader)
    if html.startswith("<!--", begin):
        return _behind(html, "-->", begin + 4)
    if html.startswith(("<!", "<?", "</"), begin):
        return _behind(html, ">", begin + 2)
    reader.add("<")
    return begin + 1


def _after_tag(html: str, named: re.Match[str], reader: _Reader) -> int:
    """Take in a tag, and with one that begins an element of text alone also that text."""
    end = _end_of_tag(html, named.end())
    if end is None:
        return len(html)
    name = named[0].lower()
    if name.startswith("/"):
        reader.close(name[1:])
    elif html[end - 2] == "/":
        reader.open(name, empty=True)
    else:
        reader.open(name, empty=False)
        if name in _ENDS:
            return _read_raw(html, end, name, reader)
    return end


def _read_raw(html: str, begin: int, name: str, reader: _Reader) -> int:
    """Take in an element in which no other begins, and give where its end tag begins."""
    found = _ENDS[name].search(html, begin)
    end = len(html) if found is None else found.start()
    if name in _RCDATA:
        reader.add(_characters(html[begin:end]))
    return end


def _characters(text: str) -> str:
    """Give text with its entities resolved."""
    return unescape(_NO_CHARACTER.sub("\ufffd", text))


def _behind(html: str, end: str, place: int) -> int:
    found = html.find(end, place)
    return len(html) if found < 0 else found + len(end)


def _end_of_tag(html: str, place: int) -> int | None:
    """Give where a tag ends, past ``>`` in quoted values; None where it does not."""
    while found := _IN_TAG.search(html, place):
        place = found.end()
        if found[0] == ">":
            return place
        if _VALUE_FOLLOWS.search(html, max(place - _NEAR, 0), place - 1):  # else it is a quotation mark in a name
            place = html.find(found[0], place) + 1
            if not place:
                return None
    return None


class _Reader:
    """Collects text between the tags that it is told of."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._line: list[str] = []
        self._hidden: list[str] = []
        self._hiding: Counter[str] = Counter()
        self._verbatim = 0

    def open(self, tag: str, *, empty: bool) -> None:
        """Begin an element, or meet one that is empty, like ``<svg/>``, which hides nothing."""
        if tag in _HIDDEN:
            if not empty:
                self._hidden.append(tag)
                self._hiding[tag] += 1
        elif tag == "br":
            self._line.append("\n")
        elif tag in _CELLS:
            self._line.append(" ")
        elif tag in _BLOCKS:
            self._end_block()
            self._verbatim += tag == "pre"

    def close(self, tag: str) -> None:
        """End an element, and what was left open inside it."""
        if tag in _HIDDEN:
            while self._hiding[tag]:
                inner = self._hidden.pop()
                self._hiding[inner] -= 1
                if inner == tag:
                    break
        elif tag in _BLOCKS:
            self._end_block()
            if tag == "pre" and self._verbatim:
                self._verbatim -= 1

    def add(self, data: str) -> None:
        """Meet text."""
        if data and not self._hidden:
            self._line.append(data if self._verbatim else _BLANKS.sub(" ", data))

    def text(self) -> str:
        """Give everything collected so far."""
        self._end_block()
        return "\n\n".join(self._blocks)

    def _end_block(self) -> None:
        joined = "".join(self._line)
        self._line.clear()
        if self._verbatim:
            block = joined.strip("\n").rstrip()
        else:
            block = "\n".join(_BLANKS.sub(" ", line).strip() for line in joined.split("\n")).strip()
        if block:
            self._blocks.append(block)
