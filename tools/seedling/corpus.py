"""Debian packages in, one file of cleaned text out, with a record of where each byte came from."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

from tools.seedling import extract
from tools.seedling.chat import KEPT, exchanges
from tools.seedling.clean import SeenBefore, prose_blocks, render
from tools.seedling.exclude import Excluded, standard_library_prose
from tools.seedling.extract import Block, Document
from tools.seedling.sources import SOURCES, Source

HELD_OUT_OF = 80
"""One document in this many is never trained on; the loss is measured on it."""
SHORTEST = 200
"""Characters in a document, unless it is an entry of a dictionary."""


@dataclass(slots=True)
class PackageRecord:
    """What one package gave."""

    package: str
    version: str
    licence: str
    bytes_used: int = 0
    chat_bytes_used: int = 0
    documents: int = 0
    excluded_paragraphs: int = 0
    repeated_paragraphs: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    """One piece of the corpus."""

    package: str
    split: str
    """``train``, ``held_out`` or ``chat`` (trained on, too)."""
    text: str


def download(packages: Sequence[str], debs: Path, unpacked: Path) -> dict[str, str]:
    """Fetch and unpack packages with apt and dpkg; returns each one's version."""
    debs.mkdir(parents=True, exist_ok=True)
    versions = {}
    missing = [name for name in packages if not list(debs.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", "-q", *missing], cwd=debs, check=True, stdout=sys.stderr)
    for name in packages:
        deb = next(debs.glob(f"{name}_*.deb"))
        shown = subprocess.run(["dpkg-deb", "-f", deb, "Version"], check=True, capture_output=True, text=True)
        versions[name] = shown.stdout.strip()
        if not (unpacked / name).is_dir():
            (unpacked / name).mkdir(parents=True)
            subprocess.run(["dpkg-deb", "-x", deb, unpacked / name], check=True)
    return versions


def read_source(source: Source, unpacked: Path) -> list[tuple[Document, list[Block]]]:
    """The documents of a source with their blocks of prose, in an order that is shuffled but always the same."""
    extract.MANDOC = str(unpacked / "mandoc/usr/bin/mandoc")
    root = unpacked / source.package
    paths = sorted({path for pattern in source.paths for path in root.glob(pattern) if path.is_file()})
    paths = [path for path in paths if not any(part in str(path) for part in source.skip)]
    random.Random(source.package).shuffle(paths)
    documents: list[tuple[Document, list[Block]]] = []
    budget = source.megabytes * 1e6
    for path in paths:
        try:
            read = list(extract.READERS[source.kind](path, source))
        except (ValueError, OSError, EOFError) as error:
            print(f"skipped {path.name}: {error}", file=sys.stderr)
            continue
        if source.kind == "dict":
            random.Random(source.package).shuffle(read)
        for document in read:
            blocks = prose_blocks(document)
            budget -= sum(len(block.text) for block in blocks)
            if blocks:
                documents.append((document, blocks))
            if budget < 0:
                return documents
    return documents


def build(work: Path, texts_to_exclude: Sequence[Path], processes: int = 2) -> list[PackageRecord]:
    """Write ``corpus.jsonl`` and ``sources.json`` into ``work``; returns the record of each package.

    ``texts_to_exclude`` are files which, besides the standard library's docstrings and comments, nothing may repeat.
    """
    packages = sorted({source.package for source in SOURCES})
    versions = download([*packages, "mandoc"], work / "debs", work / "x")
    excluded = Excluded()
    excluded.update(standard_library_prose())
    excluded.update(path.read_text("utf-8") for path in texts_to_exclude)
    print(f"{excluded.words:,} words must not be repeated", file=sys.stderr)
    records: dict[str, PackageRecord] = {}
    counts: Counter[str] = Counter()
    with (work / "corpus.jsonl").open("w", encoding="utf-8") as out, ProcessPoolExecutor(processes) as pool:
        seen = SeenBefore()
        for source, read in zip(SOURCES, pool.map(read_source, SOURCES, [work / "x"] * len(SOURCES)), strict=True):
            record = records.setdefault(
                source.package, PackageRecord(source.package, versions[source.package], source.licence)
            )
            for text in _select(source, read, record, seen, excluded):
                out.write(json.dumps(asdict(text)) + "\n")
                counts[text.split] += len(text.text.encode())
            prose, chat = record.bytes_used / 1e6, record.chat_bytes_used / 1e6
            print(f"{record.package:28} {prose:6.2f} MB and {chat:5.2f} MB of chat", file=sys.stderr)
    result = {
        "excluded_words": excluded.words,
        "bytes": counts,
        "packages": [asdict(record) for record in records.values()],
    }
    (work / "sources.json").write_text(json.dumps(result, indent=1) + "\n")
    return list(records.values())


def _select(
    source: Source,
    read: Sequence[tuple[Document, list[Block]]],
    record: PackageRecord,
    seen: SeenBefore,
    excluded: Excluded,
) -> Iterator[Text]:
    rng = random.Random(source.package)
    asked = SeenBefore()
    for document, blocks in read:
        repeated = excluded.repeated([block.text for block in blocks])
        record.excluded_paragraphs += len(repeated)
        kept: list[Block] = []
        for index, block in enumerate(blocks):
            if index in repeated:
                continue
            if block.kind in {"text", "item"} and seen.repeats(block.text):
                record.repeated_paragraphs += 1
                continue
            kept.append(block)
        kept = [b for b, after in zip(kept, [*kept[1:], None], strict=False) if _introduces(b, after)]
        text = render(kept)
        if not any(block.kind == "text" for block in kept) or (len(text) < SHORTEST and source.kind != "dict"):
            continue
        held_out = crc32(document.name.encode()) % HELD_OUT_OF == 0
        record.documents += 1
        if source.prose:
            record.bytes_used += len(text.encode())
            yield Text(source.package, "held_out" if held_out else "train", text)
        if not held_out:
            for exchange in exchanges(document, kept, rng):
                if rng.random() < KEPT and not asked.repeats(exchange) and not excluded.repeated([exchange]):
                    record.chat_bytes_used += len(exchange.encode())
                    yield Text(source.package, "chat", exchange)


def _introduces(block: Block, after: Block | None) -> bool:
    """A heading or term whose text was dropped is dropped, too."""
    if block.kind == "heading":
        return after is not None and after.kind != "heading"
    return block.kind != "term" or (after is not None and after.kind in {"text", "item"})
