"""``python -m tools.seedling``: every step from Debian packages to the model in the package."""

from __future__ import annotations

# ruff: noqa: PLC0415 - each step needs libraries that the others must not wait for, or that are not installed
import json
import random
import re
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "agent/llm/seedling"
MODEL = HOME / "seedling-q8_0.gguf"

_work = click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/seedling"),
    show_default=True,
    help="Folder for packages, text, tokens and checkpoints: 5 GB.",
)


@click.group(help=__doc__)
def main() -> None:
    """Group of the steps; each has its own help."""


@main.command()
@_work
@click.option(
    "--exclude",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text that no training paragraph may repeat, besides the standard library's docstrings. Repeatable.",
)
def corpus(work: Path, exclude: tuple[Path, ...]) -> None:
    """Debian packages to cleaned text (needs apt, dpkg, and lxml)."""
    from tools.seedling.corpus import build

    work.mkdir(parents=True, exist_ok=True)
    build(work, exclude)


@main.command()
@_work
@click.option("--megabytes", default=30, show_default=True, help="Text that the merges are learned from.")
def tokenizer(work: Path, megabytes: int) -> None:
    """Text to a vocabulary and packed tokens."""
    from tools.seedling import tokenizer as bpe

    text = work / "corpus.jsonl"
    prose, chat = list(bpe.corpus(text, "train")), list(bpe.corpus(text, "chat"))
    random.Random(1).shuffle(prose)
    sample, used = [], 0
    for piece in prose:
        if used > megabytes * 1e6:
            break
        sample.append(piece)
        used += len(piece)
    learned = bpe.learn(sample)
    learned.save(str(work / "tokenizer.json"))
    pieces = prose + chat
    random.Random(20).shuffle(pieces)
    held_out = list(bpe.corpus(text, "held_out"))
    counts = {
        "train_tokens": bpe.pack(learned, pieces, work / "train.u16"),
        "chat_tokens": bpe.pack(learned, chat, work / "chat.u16"),
        "held_out_tokens": bpe.pack(learned, held_out, work / "held_out.u16"),
        "held_out_bytes": sum(len(piece.encode()) for piece in held_out),
    }
    (work / "tokens.json").write_text(json.dumps(counts, indent=1) + "\n")
    click.echo(json.dumps(counts))


@main.command()
@_work
@click.option(
    "--minutes", default=60.0, show_default=True, help="Time budget over all runs, learning-rate decay included."
)
@click.option("--workers", default=2, show_default=True, help="Processes; one a core.")
def train(work: Path, minutes: float, workers: int) -> None:
    """Tokens to weights. Resumes from its checkpoint."""
    from tools.seedling.train import Plan
    from tools.seedling.train import train as run

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are ended, too
    run(work, Plan(minutes=minutes, workers=workers))


@main.command()
@_work
@click.option("--out", type=click.Path(path_type=Path), default=MODEL, help="Where the GGUF goes.")
def export(work: Path, out: Path) -> None:
    """Weights to GGUF, its checksum into the package, the loss curve beside this code."""
    import torch

    from tools.seedling.card import write_card
    from tools.seedling.export import export as write
    from tools.seedling.model import Shape
    from tools.seedling.plot import plot

    weights = torch.load(work / "seedling.pt", weights_only=True)["model"]
    shape = Shape()
    digest = write(weights, work / "tokenizer.json", out, shape=shape, context=shape.context)
    click.echo(f"{digest}  {out} ({out.stat().st_size:,} bytes)")
    if out == MODEL:
        pin = HOME / "__init__.py"
        pin.write_text(re.sub(r"\b[0-9a-f]{64}\b", digest, pin.read_text("utf-8")), "utf-8")
        here = Path(__file__).parent
        log = here / "loss.csv"
        shutil.copy(work / "seedling.csv", log)
        for record in ("sources.json", "tokens.json"):
            shutil.copy(work / record, here / record)
        plot(log, here / "loss.png")
        write_card(work, log, out, digest, HOME / "MODEL_CARD.md")


@main.command()
@_work
@click.option("--model", type=click.Path(path_type=Path, exists=True), default=MODEL)
@click.option("--texts", type=int, help="Compare tokens on this many texts only.")
def verify(work: Path, model: Path, texts: int | None) -> None:
    """Compare llama.cpp, transformers and the vocabulary that was learned."""
    from tools.seedling.verify import verify as compare

    result = compare(model, work, texts=texts)
    click.echo(json.dumps(asdict(result)))
    same_tokens = result.unlike_in_llama_cpp == result.unlike_in_transformers == 0
    if not same_tokens or abs(result.loss_llama_cpp - result.loss_transformers) > 0.01:
        sys.exit(1)


if __name__ == "__main__":
    main()
