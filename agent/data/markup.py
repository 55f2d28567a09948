"""From HTML to the text that a reader would see."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_UNSEEN = frozenset({"script", "style", "template", "svg", "noscript", "nav", "iframe", "object", "select", "button"})
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


def html_to_text(html: str) -> str:
    """Give the visible text of an HTML page: a blank line between blocks, entities resolved, ``pre`` kept as it is."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.text()


class _Reader(HTMLParser):
    """Collects text as the parser meets it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._blocks: list[str] = []
        self._line: list[str] = []
        self._unseen: list[str] = []
        self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if tag in _UNSEEN:
            self._unseen.append(tag)
        elif tag == "br":
            self._line.append("\n")
        elif tag in _CELLS:
            self._line.append(" ")
        elif tag in _BLOCKS:
            self._end_block()
            self._verbatim += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _UNSEEN:  # <svg/> hides nothing
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            if tag in self._unseen:  # also ends what was left open inside it
                del self._unseen[self._unseen.index(tag) :]
        elif tag in _BLOCKS:
            self._end_block()
            if tag == "pre" and self._verbatim:
                self._verbatim -= 1

    def handle_data(self, data: str) -> None:
        if not self._unseen:
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
