"""`bramble data preview`: what a model would see of some text."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import as_json, device_home
from agent.paths import Home

if TYPE_CHECKING:
    from rich.console import Console

    from agent.training.job import PrepareJob, PrepareResult, SampleWindow

_NOT_SHOWN = {"kind", "train_path", "heldout_path", "peak_rss_mb"}
_SKIPPED_SHOWN = 5


@click.command("preview")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--base", help="GGUF, or a name on the shelf. [default: the community's, else the seedling]")
@click.option(
    "--window", type=click.IntRange(8, 1 << 20), help="Tokens in a window. [default: the charter's, else 256]"
)
@click.option("--windows", type=click.IntRange(0, 100), default=3, show_default=True, help="How many windows to show.")
@device_home
@as_json
def preview(home: Home, path: Path | None, base: str | None, window: int | None, windows: int, as_json: bool) -> None:
    """Show what a model would see of PATH, or of the text you consented to. Nothing is kept and nothing is trained."""
    from agent.federation.preview import preview_job, preview_text
    from agent.service import named_base

    chosen = named_base(home, base) if base else None
    job = preview_job(home, path=path, base=chosen, window=window, samples=windows)
    click.echo(f"reading {', '.join(map(str, job.sources))} for {job.base_path.name} …", err=True)
    found = asyncio.run(preview_text(job))
    if as_json:
        shown = found.model_dump(mode="json", exclude=_NOT_SHOWN)
        about = {"base": str(job.base_path), "window": job.window, "filter_secrets": job.filter_secrets}
        click.echo(json.dumps({**about, **shown}, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    _print_counts(console, job, found)
    _print_removed(console, job, found)
    for number, sample in enumerate(found.samples, 1):
        _print_window(console, number, sample)


def _print_counts(console: Console, job: PrepareJob, found: PrepareResult) -> None:
    from rich.table import Table

    kept = found.train_passages + found.heldout_passages
    whole = found.tokens + found.padding
    rows = [
        ("documents", f"{found.documents:,}", f"{found.conversations:,} of them conversations"),
        ("passages", f"{found.passages:,}", f"{found.repeats:,} repeat others and are left out"),
        (
            "held out",
            f"{found.heldout_passages:,}",
            f"{found.heldout_passages / max(1, kept):.1%}: judged by, not trained on",
        ),
        ("tokens", f"{found.tokens:,}", f"{found.targets / max(1, found.tokens):.1%} of them count"),
        (
            "windows",
            f"{found.train_windows:,} + {found.heldout_windows:,}",
            f"of {job.window} tokens, to train on + held out; {found.padding / max(1, whole):.1%} empty",
        ),
    ]
    if found.cut:
        rows.append(
            ("cut", f"{found.cut:,}", "conversations are longer than a window; a longer one (--window) keeps more")
        )
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for skipped, reason in found.skipped[:_SKIPPED_SHOWN]:
        console.print(f"not used: {skipped} ({reason})", style="dim", markup=False, soft_wrap=True)
    if found.skipped_count > _SKIPPED_SHOWN:
        console.print(f"… and {found.skipped_count - _SKIPPED_SHOWN:,} more", style="dim")


def _print_removed(console: Console, job: PrepareJob, found: PrepareResult) -> None:
    """Say what the filter took out, by kind."""
    console.print()
    if not job.filter_secrets:
        console.print("The filter for secrets and personal data is off (filter_secrets in settings.toml).", style="red")
    elif not found.removed:
        console.print("The filter found no secrets and no personal data.")
    else:
        console.print("Taken out, and replaced by what it was:")
    for kind, count in found.removed.items():
        console.print(f"  {count:6,} <{kind}>  {', '.join(found.examples[kind])}", markup=False)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _print_window(console: Console, number: int, sample: SampleWindow) -> None:
    """Print a window: what counts is green, and between brackets where there is no colour."""
    from rich.text import Text

    console.print()
    padding = f", {sample.padding} tokens empty" if sample.padding else ""
    console.rule(f"window {number}: {_counted(len(sample.segments), 'segment')}{padding}", align="left")
    marks = ("", "") if console.color_system else ("⟦", "⟧")
    for index, segment in enumerate(sample.segments):
        if index:
            console.rule(style="dim", characters="╌")
        text = Text()
        for span in segment:
            if span.counts:
                text.append(marks[0] + span.text + marks[1], style="green")
            else:
                text.append(span.text, style="dim")
        console.print(text, soft_wrap=True)
