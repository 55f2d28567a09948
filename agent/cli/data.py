"""`bramble data`: which text this device may learn from, and what a model would see of it."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.options import as_json, device_home, print_json, yes
from agent.cli.preview import preview
from agent.paths import Home


@click.group()
def data() -> None:
    """Say which text may be learned from. Nothing is read without your consent."""


@data.command("add")
@click.argument("path", type=click.Path(path_type=Path))
@device_home
@yes
@as_json
def add(home: Home, path: Path, yes: bool, as_json: bool) -> None:
    """Look at PATH, say what was found, and ask for consent to learn from it."""
    from agent.data.sources import survey
    from agent.errors import ConsentMissingError
    from agent.service import add_source

    found = survey([path])
    kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in list(found.by_suffix.items())[:8])
    summary = {"path": str(path), "files": found.files, "bytes": found.size, "characters": found.characters}
    click.echo(f"{path}: {found.files} files of text, {found.characters:,} characters ({kinds})", err=True)
    for skipped in found.skipped[:5]:
        click.echo(f"  not used: {skipped.path} ({skipped.reason})", err=True)
    if len(found.skipped) > 5:
        click.echo(f"  … and {len(found.skipped) - 5} more", err=True)
    click.echo("Bramble will train on it here. The text stays on this machine.", err=True)
    click.echo(f"What a model would see of it: bramble data preview {path}", err=True)
    if not (yes or click.confirm("May it be learned from?", default=False, err=True)):
        raise ConsentMissingError(f"{path} was not added", advice="Nothing was read into the model. Add it any time.")
    add_source(home, path, found)
    if as_json:
        print_json(summary)
    else:
        click.echo(f"{path} was added. Withdraw it any time: bramble data remove {path}")


@data.command("list")
@device_home
@as_json
def list_(home: Home, as_json: bool) -> None:
    """List what may be learned from, and since when."""
    from agent.service import sources

    rows = sources(home)
    if as_json:
        print_json(rows)
    for row in [] if as_json else rows:
        click.echo(f"{row['at']}  {row['path']}")
    if not rows and not as_json:
        click.echo("No text yet. Add some: bramble data add PATH", err=True)


@data.command("remove")
@click.argument("path", type=click.Path(path_type=Path))
@device_home
def remove(home: Home, path: Path) -> None:
    """Withdraw consent: PATH is not learned from any more."""
    from agent.service import remove_source

    remove_source(home, path)
    click.echo(f"{path} will not be learned from any more. What was sent before cannot be taken back.")


data.add_command(preview)
