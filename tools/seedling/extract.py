"""Files of documentation in, paragraphs of plain prose out.

Each reader takes one file and gives a :class:`Document`: its headings, paragraphs and list items in reading order. Code
blocks, tables and everything a site repeats on each page (navigation, headers, footers) are left out.
"""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lxml import etree, html

from tools.seedling.sources import Kind, Source

BlockKind = Literal["heading", "text", "item", "term"]

_BLOCKS = {
    "p": "text", "para": "text", "simpara": "text", "blockquote": "text", "dd": "text", "div": "text",
    "section": "text", "article": "text", "aside": "text", "note": "text", "example": "text", "body": "text",
    "main": "text", "li": "item", "item": "item", "listitem": "item", "dt": "term", "term": "term",
    "h1": "heading", "h2": "heading", "h3": "heading", "h4": "heading", "h5": "heading", "h6": "heading",
    "title": "heading", "ul": "text", "ol": "text", "dl": "text", "br": "", "center": "text",
}  # fmt: skip
_DROPPED = frozenset(
    "script style nav header footer head table pre form button svg math noscript select textarea info media screen "  # noqa: SIM905
    "programlisting synopsis indexterm desc figure screenshot mediaobject code-block comment iframe sup links".split()
)
_FURNITURE = re.compile(
    r"\b(?:nav(?:header|footer|bar|igation)?\w*|sphinxsidebar\w*|related|headerlink|footer|toc\w*|breadcrumbs?|"
    r"index(?:table|term)?|genindex\w*|sidebar\w*|highlight\w*|literal-block|permalink|footnotes?|footdef|"
    r"contents|admonition-title|versionmodified|copyright|banner|qindex|srctable|menu\w*|langs|"
    r"head-ltitle|head|foot|synopsis|programlisting|screen|example-contents|verbatim|lilypond|linenos)\b"
)
_API = re.compile(r"^(?:py|c|cpp|js|class|function|method|data|exception|attribute|describe|rst)\b")


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, a paragraph, a list item or the term of a definition list."""

    kind: BlockKind
    text: str


@dataclass(slots=True)
class Document:
    """One file's text in reading order."""

    package: str
    name: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, kind: BlockKind, text: str) -> None:
        """Append a block, with its white space made plain, unless it is empty."""
        text = tidy(text)
        if text:
            self.blocks.append(Block(kind, text))


def tidy(text: str) -> str:
    """One line of text: white space collapsed, soft hyphens and pilcrow links gone, quotation marks as ASCII."""
    text = text.replace("\u00ad", "").replace("¶", "").replace("\u200b", "").replace("\ufeff", "")
    text = text.translate(_PLAIN)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" ([,.;:!?)])(?=\s|$)", r"\1", text)


_PLAIN = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2010": "-", "\u2011": "-", "\u2013": "-",
    "\u2026": "...", "\u2032": "'", "\u2212": "-", "\u00a0": " ", "\u2002": " ", "\u2003": " ", "\u2009": " ",
    "\u202f": " ", "\ufb01": "fi", "\ufb02": "fl",
})  # fmt: skip


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


class _Walker:
    """Walks an element tree once and cuts it into blocks at every block-level tag."""

    def __init__(self, document: Document, *, drop_api: bool) -> None:
        self.document = document
        self.drop_api = drop_api
        self.buffer: list[str] = []
        self.kind: BlockKind = "text"

    def flush(self) -> None:
        if self.buffer:
            self.document.add(self.kind, "".join(self.buffer))
            self.buffer.clear()

    def dropped(self, tag: str, element: etree._Element) -> bool:
        if tag in _DROPPED:
            return True
        names = f"{element.get('class', '')} {element.get('id', '')}".strip()
        if not names:
            return False
        if self.drop_api and tag == "dl" and _API.match(names):
            return True
        return tag not in {"body", "main", "html"} and bool(_FURNITURE.search(names))

    def walk(self, element: etree._Element) -> None:
        if not isinstance(element.tag, str):
            return
        tag = etree.QName(element).localname.lower()
        if self.dropped(tag, element):
            return
        kind = _BLOCKS.get(tag)
        before = self.kind
        if kind == "":
            self.buffer.append(" ")
        elif kind is not None:
            self.flush()
            # A paragraph inside a list item is still the item; a plain wrapper changes nothing.
            if not (kind == "text" and before in {"item", "heading"} and tag in {"p", "para", "div", "simpara"}):
                self.kind = kind  # type: ignore[assignment]
        if element.text:
            self.buffer.append(element.text)
        for child in element:
            self.walk(child)
            if child.tail:
                self.buffer.append(child.tail)
        if kind:
            self.flush()
            self.kind = before


_LEAST_TEXT = 100
_ROOTS = (
    "//*[@role='main']",
    "//main",
    "//div[@itemprop='articleBody']",
    "//div[@class='body']",
    "//div[@id='content']",
    "//div[@id='page-content']",
    "//div[@id='DisplayArea']",
    "//body",
)


def _root_of_prose(tree: etree._Element) -> etree._Element:
    for query in _ROOTS:
        for found in tree.xpath(query):
            if len(found.text_content()) > _LEAST_TEXT:
                return found
    return tree


def read_html(path: Path, source: Source) -> Iterator[Document]:
    """An HTML page."""
    yield _from_html(_read(path), Document(source.package, path.name), drop_api=source.drop_api)


def _from_html(data: bytes, document: Document, *, drop_api: bool = False) -> Document:
    head = data[:2000].lower()
    encoding = "latin-1" if b"iso-8859-1" in head else "utf-8"
    if not data.strip():
        return document
    parser = html.HTMLParser(encoding="utf-8")
    tree = html.document_fromstring(data.decode(encoding, "replace").encode(), parser=parser)
    walker = _Walker(document, drop_api=drop_api)
    walker.walk(_root_of_prose(tree))
    walker.flush()
    return document


def read_man(path: Path, source: Source) -> Iterator[Document]:
    """A manual page, rendered to HTML by mandoc. Its NAME line is kept as the first block."""
    data = _read(path)
    if data.lstrip().startswith(b".so "):
        return
    command = [MANDOC, "-T", "html", "-O", "fragment", "-K", "utf-8"]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)
    if done.stdout:
        yield _from_html(b"<body>" + done.stdout + b"</body>", Document(source.package, path.name))


MANDOC = "mandoc"
"""Program that renders manual pages."""


def read_info(path: Path, source: Source) -> Iterator[Document]:
    """An Info manual: one document per node, paragraphs by blank lines, examples (indented by five) left out."""
    for number, node in enumerate(_read(path).decode("utf-8", "replace").split("\x1f")):
        body = node.split("\n", 2)[-1]
        document = Document(source.package, f"{path.name}#{number}")
        for paragraph in re.split(r"\n\s*\n", body.split("* Menu:")[0]):
            lines = paragraph.strip("\n").split("\n")
            if lines[-1][:1] in set("*=-.") and len(lines) == 2:
                document.add("heading", re.sub(r"^[\d.]+ ", "", lines[0]))
            elif not all(line.startswith("     ") for line in lines[1:] or lines):
                document.add("text", paragraph)
        yield document


def read_xml(path: Path, source: Source) -> Iterator[Document]:
    """A Mallard page or a DocBook chapter."""
    tree = etree.fromstring(_read(path), etree.XMLParser(recover=True, resolve_entities=False))
    document = Document(source.package, path.name)
    if tree is not None:
        walker = _Walker(document, drop_api=False)
        walker.walk(tree)
        walker.flush()
    yield document


def read_markdown(path: Path, source: Source) -> Iterator[Document]:
    """A Markdown file without its code, tables and link targets."""
    text = re.sub(r"^(```|~~~).*?^\1", "", _read(path).decode("utf-8", "replace"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<[^>]+>|!\[[^]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("**", "").replace("`", "")
    document = Document(source.package, path.name)
    for paragraph in re.split(r"\n\s*\n|\n(?=[*#-] )", text):
        stripped = paragraph.strip()
        if stripped.startswith("#"):
            document.add("heading", stripped.lstrip("# "))
        elif stripped.startswith(("* ", "- ")):
            document.add("item", stripped[2:])
        elif "|" not in stripped and not paragraph.startswith("    "):
            document.add("text", stripped)
    yield document


def read_text(path: Path, source: Source) -> Iterator[Document]:
    """A plain text file, paragraphs by blank lines."""
    document = Document(source.package, path.name)
    for paragraph in re.split(r"\n\s*\n", _read(path).decode("utf-8", "replace")):
        document.add("text", paragraph)
    yield document


_SPOKEN = re.compile(r'(?:speaker|role)=\s*"?([\w ]+)|(story|message|name|description)=\s*_\s*"((?:[^"]|"")*)"')


def read_preformatted(path: Path, source: Source) -> Iterator[Document]:
    """Help that is one preformatted text inside an HTML page: its paragraphs, without examples and tables."""
    tree = html.document_fromstring(_read(path), parser=html.HTMLParser(encoding="utf-8"))
    document = Document(source.package, path.name)
    for paragraph in re.split(r"\n\s*\n|\n[=-]{20,}\n", _root_of_prose(tree).text_content()):
        lines = [line for line in paragraph.split("\n") if line.strip()]
        if sum("\t" in line.strip() or "   " in line.strip() for line in lines) > 0.2 * len(lines):
            continue
        if not any(line.startswith("    ") for line in lines) and not paragraph.rstrip().endswith("~"):
            document.add("text", re.sub(r"[*|]", "", paragraph))
    yield document


def read_wesnoth(path: Path, source: Source) -> Iterator[Document]:
    """Stories and what is said in a campaign's scenario; a speaker's name goes before the words."""
    document = Document(source.package, path.name)
    speaker = ""
    for match in _SPOKEN.finditer(_read(path).decode("utf-8", "replace")):
        who, key, words = match.groups()
        if who is not None:
            speaker = who.strip()
            continue
        words = re.sub(r"<[^>]+>", "", words.replace('""', '"'))
        if key == "message" and speaker.isalpha() and speaker not in {"unit", "narrator"}:
            document.add("text", f"{speaker}: {words}")
        elif key in {"story", "message"}:
            document.add("text", words)
        speaker = ""
    yield document


_BASE64 = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def read_dict(path: Path, source: Source) -> Iterator[Document]:
    """A dictionary in dictd's form: each entry's head word (``term``) and the text that explains it."""
    data = gzip.decompress(path.with_suffix(".dict.dz").read_bytes())

    def number(digits: str) -> int:
        value = 0
        for digit in digits:
            value = value * 64 + _BASE64[digit]
        return value

    for line in path.read_text("utf-8").splitlines():
        word, start, length, *_ = line.split("\t")
        if word.startswith("00-"):
            continue
        offset = number(start)
        head, _, body = data[offset : offset + number(length)].decode("utf-8", "replace").partition("\n")
        document = Document(source.package, word)
        document.add("term", head)
        for paragraph in re.split(r"\n\s*\n", body):
            document.add("text", re.sub(r"[{}]", "", paragraph))
        yield document


READERS: dict[Kind, Callable[[Path, Source], Iterator[Document]]] = {
    "html": read_html,
    "man": read_man,
    "info": read_info,
    "mallard": read_xml,
    "markdown": read_markdown,
    "text": read_text,
    "preformatted": read_preformatted,
    "wesnoth": read_wesnoth,
    "dict": read_dict,
}
