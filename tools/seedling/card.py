"""Writes the model card from what the other steps recorded, so that its numbers are those of the file beside it."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

TEMPLATE = Path(__file__).with_name("MODEL_CARD.template.md")
ASKED = ("What is ls?", "What does kernel mean?", "How do I install a package?")
BEGUN = ("The file system", "To change the password of a user,")


@dataclass(frozen=True, slots=True)
class _Source:
    package: str
    version: str
    licence: str
    bytes_used: int
    chat_bytes_used: int
    excluded_paragraphs: int


def write_card(work: Path, log: Path, model: Path, digest: str, out: Path) -> None:
    """Fill ``MODEL_CARD.template.md``; every ``{name}`` in it is one of the facts gathered here."""
    recorded: dict[str, Any] = json.loads((work / "sources.json").read_text("utf-8"))
    tokens: dict[str, int] = json.loads((work / "tokens.json").read_text("utf-8"))
    sources = [_Source(*(package[field] for field in _Source.__slots__)) for package in recorded["packages"]]
    with log.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    last = rows[-1]
    loss = float(last["held_out_loss"])
    bytes_per_token = tokens["held_out_bytes"] / tokens["held_out_tokens"]
    facts = {
        "sha256": digest,
        "size": f"{model.stat().st_size:,}",
        "train_loss": f"{float(last['train_loss']):.3f}",
        "loss": f"{loss:.3f}",
        "perplexity": f"{math.exp(loss):.1f}",
        "bits_per_byte": f"{loss / math.log(2) / bytes_per_token:.3f}",
        "bytes_per_token": f"{bytes_per_token:.2f}",
        "million_tokens_read": f"{int(last['tokens']) / 1e6:.1f}",
        "steps": f"{int(last['step']):,}",
        "minutes": f"{int(last['seconds']) / 60:.0f}",
        "million_tokens": f"{tokens['train_tokens'] / 1e6:.1f}",
        "passes": f"{int(last['tokens']) / tokens['train_tokens']:.2f}",
        "chat_share": f"{100 * tokens['chat_tokens'] / tokens['train_tokens']:.1f}",
        "megabytes": f"{recorded['bytes']['train'] / 1e6:.1f}",
        "held_out_megabytes": f"{recorded['bytes']['held_out'] / 1e6:.1f}",
        "packages": f"{len(sources)}",
        "excluded_words": f"{recorded['excluded_words']:,}",
        "excluded": f"{sum(source.excluded_paragraphs for source in sources):,}",
        "excluded_python": f"{sum(s.excluded_paragraphs for s in sources if s.package == 'python3.11-doc'):,}",
        "repeated": f"{sum(package['repeated_paragraphs'] for package in recorded['packages']):,}",
        "sources": _table(sources),
        "samples": _samples(model),
    }
    text = TEMPLATE.read_text("utf-8")
    for name, value in facts.items():
        text = text.replace("{" + name + "}", value)
    out.write_text(text, "utf-8")


def _table(sources: list[_Source]) -> str:
    lines = [
        "| package | version | licence | bytes used | of it chat | excluded paragraphs |",
        "| - | - | - | -: | -: | -: |",
    ]
    for source in sorted(sources, key=lambda source: -source.bytes_used - source.chat_bytes_used):
        used = source.bytes_used + source.chat_bytes_used
        lines.append(
            f"| {source.package} | {source.version} | {source.licence} | {used:,} | {source.chat_bytes_used:,} | "
            f"{source.excluded_paragraphs:,} |"
        )
    return "\n".join(lines)


def _samples(model: Path) -> str:
    llama = llama_cpp.Llama(str(model), n_ctx=256, verbose=False, seed=1, n_threads=1)
    parts = []
    for begun in BEGUN:
        said: Any = llama.create_completion(begun, max_tokens=60, temperature=0.6, repeat_penalty=1.1, seed=1)
        parts.append(f"> **{begun}**{_quoted(said['choices'][0]['text'])}")
    for question in ASKED:
        messages: Any = [{"role": "user", "content": question}]
        said = llama.create_chat_completion(messages, max_tokens=60, temperature=0.3, repeat_penalty=1.1, seed=1)
        parts.append(f"> *{question}*\n>\n> {_quoted(said['choices'][0]['message']['content'])}")
    return "\n\n".join(parts)


def _quoted(text: str) -> str:
    return text.rstrip().replace("<", "\\<").replace("\n", "\n> ")
