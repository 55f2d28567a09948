"""`bramble model`: the base models on this device's shelf."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import as_json, device_home, print_json
from agent.paths import Home

if TYPE_CHECKING:
    from agent.llm.shelf import ShelfModel

_FILE = click.Path(path_type=Path)


@click.group()
def model() -> None:
    """Keep base models: import, pull, quantise, list, remove."""


@model.command("import")
@click.argument("file", type=_FILE)
@device_home
@click.option("--name", help="What to call it; the file's own name if not given.")
@as_json
def import_(home: Home, file: Path, name: str | None, as_json: bool) -> None:
    """Check the GGUF in FILE and put it on the shelf, without a second copy where the disk allows."""
    from agent.llm.description import describe_model
    from agent.service import shelf_of

    described = describe_model(file)
    found, new = shelf_of(home).put(file, name=name)
    if not described.trainable:
        click.echo(f"It cannot be trained here: it {described.why_not}.", err=True)
    _say_shelved(found, new=new, as_json=as_json)


@model.command("list")
@device_home
@as_json
def list_(home: Home, as_json: bool) -> None:
    """List what is on the shelf."""
    from agent.errors import ModelError
    from agent.llm.description import describe_model
    from agent.service import shelf_of

    rows: list[dict[str, object]] = []
    for found in shelf_of(home).models():
        row: dict[str, object] = {"name": found.name, "sha256": found.sha256, "path": str(found.path)}
        row |= {"origin": found.record.origin, "added": found.record.added}
        try:
            described = describe_model(found.path)
        except ModelError as error:
            row |= {"architecture": "", "quantisation": "", "formats": {}, "parameters": 0, "trainable": False}
            row |= {"size": found.path.stat().st_size, "why_not": error.message}
        else:
            row |= {
                "architecture": described.architecture,
                "quantisation": described.mix,
                "formats": described.formats,
                "parameters": described.parameters,
                "size": described.size,
                "trainable": described.trainable,
                "why_not": described.why_not,
            }
        rows.append(row)
    if as_json:
        print_json(rows)
    elif rows:
        _show(rows)
    else:
        click.echo("The shelf is empty. Next: bramble model import FILE, or bramble model pull OWNER/NAME", err=True)


def _show(rows: list[dict[str, object]]) -> None:
    from rich.table import Table

    from agent.cli.tables import show_table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "family"):
        table.add_column(title, no_wrap=True)
    table.add_column("quantisation", overflow="fold", min_width=12)
    for title in ("parameters", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    table.add_column("trains", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["name"]),
            str(row["architecture"]),
            str(row["quantisation"]),
            f"{float(str(row['parameters'])) / 1e6:,.1f} M",
            f"{float(str(row['size'])) / 1e6:,.1f} MB",
            str(row["sha256"])[:12],
            "yes" if row["trainable"] else "no",
        )
    show_table(table)
    for row in rows:
        if not row["trainable"]:
            click.echo(f"{row['name']} cannot be trained here: it {row['why_not']}.")


@model.command()
@click.argument("reference", metavar="NAME")
@device_home
@as_json
def remove(home: Home, reference: str, as_json: bool) -> None:
    """Take the model NAME (or the beginning of its SHA-256) off the shelf."""
    from agent.service import remove_model

    gone = remove_model(home, reference)
    if as_json:
        print_json({"name": gone.name, "sha256": gone.sha256})
    else:
        click.echo(f"{gone.name} is off the shelf. A file that it was imported from is where it was.")


@model.command()
@click.argument("source")
@device_home
@click.option("--type", "kind", default="Q4_K_M", show_default=True, help="Such as Q4_K_M, Q8_0, F16.")
@click.option("--out", type=_FILE, help="Write this file; the result goes on the shelf if not given.")
@click.option("--name", help="What to call it on the shelf.")
@click.option("--threads", type=click.IntRange(1), help="Cores to use; all if not given.")
@click.option("--requantize", is_flag=True, help="Take a source that is quantised already; quality is lost twice.")
@click.option("--force", is_flag=True, help="Replace the file that --out names.")
@as_json
def quantize(home: Home, source: str, kind: str, out: Path | None, as_json: bool, **options: object) -> None:
    """Write SOURCE, a file or a name on the shelf, once more with smaller weights."""
    from agent.cli.bars import bar
    from agent.llm.quantise import name_in, quantise
    from agent.service import named_base, shelf_of

    path, kind = named_base(home, source), kind.upper()
    shelf = shelf_of(home)
    known = shelf.name_of(path) or path.stem
    if out is None:
        shelf.create()
    target = out or shelf.new_file()
    threads = int(str(options["threads"])) if options["threads"] else None
    try:
        with bar(f"{known} → {kind}") as on_progress:
            quantise(
                path,
                target,
                kind,
                threads=threads,
                requantise=bool(options["requantize"]),
                called=known,
                overwrite=bool(options["force"]) and out is not None,
                on_progress=on_progress,
            )
        if out is None:
            found, new = shelf.put(
                target,
                name=str(options["name"]) if options["name"] else None,
                stem=name_in(kind, known),
                origin=str(path),
                take=True,
            )
            _say_shelved(found, new=new, as_json=as_json)
            return
    finally:
        if out is None:
            target.unlink(missing_ok=True)
    if as_json:
        print_json({"path": str(target), "size": target.stat().st_size, "type": kind})
    else:
        click.echo(
            f"{target}: {target.stat().st_size / 1e6:,.1f} MB in {kind}, from {path.stat().st_size / 1e6:,.1f} MB"
        )


@model.command()
@click.argument("reference", metavar="OWNER/NAME[:FILE]")
@device_home
@click.option("--revision", help="Branch, tag or commit; the main branch if not given.")
@click.option("--sha256", help="What the file must be, whatever the repository says.")
@click.option("--name", help="What to call it on the shelf; the file's own name if not given.")
@as_json
def pull(home: Home, reference: str, revision: str | None, sha256: str | None, name: str | None, as_json: bool) -> None:
    """Fetch a GGUF from Hugging Face (or from HF_ENDPOINT), check it, and put it on the shelf.

    FILE is its path in the repository or a type in its name, such as Q4_K_M. An interrupted download goes on where it
    was. HF_TOKEN opens private and gated repositories.
    """
    from agent.cli.bars import bar
    from agent.errors import ModelError
    from agent.llm.choosing import choose
    from agent.llm.description import describe_model
    from agent.llm.pull import Repository
    from agent.service import shelf_of

    owner, _colon, wanted = reference.partition(":")
    repository, shelf = Repository(owner, revision=revision), shelf_of(home)
    file = choose(repository.files(), wanted or None, repository=owner)
    here = shelf.holding((sha256 or file.sha256).lower()) if file.sha256 or sha256 else None
    if here is not None and file.sha256 in {"", here.sha256}:
        _say_shelved(here, new=False, as_json=as_json)
        return
    shelf.create()
    with bar(file.path.rsplit("/", 1)[-1], of_bytes=True) as on_progress:
        pulled = repository.pull(file, shelf.unfinished, sha256=sha256, on_progress=on_progress)
    if not pulled.declared:
        click.echo(
            "The repository declares no SHA-256, and --sha256 was not given: nothing to check against.", err=True
        )
    try:
        described = describe_model(pulled.path)
    except ModelError:
        pulled.path.unlink(missing_ok=True)  # it is what the repository has, and that is no model
        raise
    stem = Path(file.path).stem
    found, new = shelf.put(pulled.path, name=name, stem=stem, origin=pulled.origin, sha256=pulled.sha256, take=True)
    if not described.trainable:
        click.echo(f"It cannot be trained here: it {described.why_not}.", err=True)
    _say_shelved(found, new=new, as_json=as_json)


def _say_shelved(found: ShelfModel, *, new: bool, as_json: bool) -> None:
    size = found.path.stat().st_size
    if as_json:
        print_json({"name": found.name, "sha256": found.sha256, "path": str(found.path), "size": size, "new": new})
        return
    where = "is on the shelf now" if new else "was on the shelf already"
    click.echo(f"{found.name} {where} ({size / 1e6:,.1f} MB, SHA-256 {found.sha256[:16]}…).")
