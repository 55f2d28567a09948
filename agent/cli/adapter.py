"""`bramble adapter`: see, export and compare the adapters on this device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import as_json, device_home, print_json
from agent.paths import Home

if TYPE_CHECKING:
    from agent.federation.kept import ChosenAdapter, KeptAdapter
    from agent.llm.adapter_files import Form
    from agent.llm.comparison import AdapterComparison, Comparison

_PERSONAL = (
    "This is your personal adapter: it learned from your own text and may give parts of it away. Bramble never sends"
    " it anywhere; whom you give this file is for you to decide."
)

base_option = click.option("--base", help="The GGUF they belong to: a file or a name on the shelf. [the community's]")


@click.group()
def adapter() -> None:
    """See, export and compare adapters."""


@adapter.command("list")
@device_home
@as_json
def list_(home: Home, as_json: bool) -> None:
    """List the adapters on this device."""
    from agent.federation.kept import kept_adapters

    membership, kept = kept_adapters(home)
    rows = [_row(row, membership.base) for row in kept]
    if as_json:
        print_json(rows)
    elif rows:
        _show(rows)
    else:
        click.echo("No adapter yet: the first release comes with `bramble run`.", err=True)


def _row(kept: KeptAdapter, base: Path) -> dict[str, object]:
    from agent.llm.adapter_files import read_any_adapter
    from agent.llm.comparison import strength

    found = read_any_adapter(kept.path, base)
    strong = strength(found)
    return {
        "name": kept.name,
        "kind": kept.kind,
        "release": kept.release,
        "since": kept.since,
        "rank": found.rank,
        "alpha": found.alpha,
        "layers": len(found.modules),
        "target_modules": found.target_modules,
        "parameters": found.parameter_count,
        "size": kept.path.stat().st_size,
        "sha256": kept.sha256,
        "path": str(kept.path),
        "norm": strong.norm,
        "effective_rank": strong.effective_rank,
    }


def _show(rows: list[dict[str, object]]) -> None:
    from rich.table import Table

    from agent.cli.tables import show_table

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for title in ("release", "rank", "alpha", "layers", "parameters", "size", "norm"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("since", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    for row in rows:
        since = row["since"]
        on_top = "+" if row["kind"] == "personal" else ""
        table.add_row(
            str(row["name"]),
            "" if row["release"] is None else f"{on_top}{row['release']}",
            str(row["rank"]),
            f"{row['alpha']:g}",
            str(row["layers"]),
            f"{row['parameters']:,}",
            f"{float(str(row['size'])) / 1e6:,.2f} MB",
            f"{row['norm']:.4g}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(int(str(since)))) if since else "",
            str(row["sha256"])[:12],
        )
    show_table(table)


@adapter.command()
@click.argument("which")
@device_home
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A directory (peft), or a file.")
@click.option("--format", "form", type=click.Choice(["peft", "gguf", "safetensors"]), default="peft", show_default=True)
@base_option
@click.option("--force", is_flag=True, help="Replace what is there.")
@as_json
def export(home: Home, which: str, out: Path, form: Form, base: str | None, force: bool, as_json: bool) -> None:
    """Write WHICH (community, personal, trained, release-N, a SHA-256, a file) for another program."""
    from agent.errors import AdapterError
    from agent.federation.kept import choose_adapter
    from agent.llm.adapter_files import export_adapter
    from agent.service import named_base

    chosen = choose_adapter(home, which, base=named_base(home, base) if base else None)
    if chosen.base is None and form == "gguf":
        raise AdapterError(
            f"{which} can become a GGUF only beside its base", advice="Give the base with --base FILE_OR_NAME."
        )
    written = export_adapter(
        chosen.adapter,
        out,
        form,
        base=chosen.base or Path(),
        stem=chosen.name,
        overwrite=force,
    )
    personal = chosen.kept is not None and chosen.kept.kind != "community"
    if personal:
        click.echo(_PERSONAL, err=True)
    if chosen.beneath:
        click.echo("It goes on top of the community's adapter: export and load that one too.", err=True)
    if as_json:
        found = {"path": str(written), "format": form, "rank": chosen.adapter.rank, "alpha": chosen.adapter.alpha}
        print_json({**found, "base_sha256": chosen.adapter.base_sha256, "personal": personal})
    else:
        click.echo(f"{chosen.name} is in {written}.")


@adapter.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@device_home
@base_option
@click.option("--heldout", is_flag=True, help="Also measure both on the text that this device held back.")
@as_json
def compare(home: Home, first: str, second: str, base: str | None, heldout: bool, as_json: bool) -> None:
    """Compare what A and B do to their base, layer by layer; each is a name, a SHA-256 or a file."""
    from agent.federation.kept import choose_adapter
    from agent.llm.comparison import compare_adapters
    from agent.service import named_base

    where = named_base(home, base) if base else None
    a, b = choose_adapter(home, first, base=where), choose_adapter(home, second, base=where)
    found = compare_adapters(a.adapter, b.adapter)
    losses = _losses(home, a, b) if heldout else None
    if as_json:
        print_json({"a": a.name, "b": b.name, **found.as_dict(), "heldout": losses})
        return
    _show_comparison(a, b, found)
    if losses is not None:
        click.echo(
            f"Held-out loss, nats a token: base {losses['base']:.4f}, A {losses['a']:.4f}, B {losses['b']:.4f}"
            f" ({losses['targets']:,.0f} tokens)"
        )


def _losses(home: Home, a: ChosenAdapter, b: ChosenAdapter) -> dict[str, float]:
    import asyncio
    import tempfile

    from agent.cli.bars import bar
    from agent.federation.kept import heldout_losses

    with tempfile.TemporaryDirectory(prefix="bramble-") as room, bar("held-out text") as on_progress:
        result = asyncio.run(
            heldout_losses(
                home,
                {"base": None, "a": a, "b": b},
                room=Path(room),
                on_progress=lambda progress: on_progress(progress.step, progress.steps),
            )
        )
    return {**result.losses, "targets": result.targets}


def _show_comparison(a: ChosenAdapter, b: ChosenAdapter, found: AdapterComparison) -> None:
    from rich.table import Table

    from agent.cli.tables import show_table

    click.echo(f"A  {a.name} (rank {a.adapter.rank}, alpha {a.adapter.alpha:g})")
    click.echo(f"B  {b.name} (rank {b.adapter.rank}, alpha {b.adapter.alpha:g})")
    table = Table(box=None, pad_edge=False, show_footer=True)
    total = _cells(found.total)
    titles = ("‖A‖", "‖B‖", "cosine", "‖B-A‖/‖A‖", "rank A", "rank B", "99 % A", "99 % B")
    table.add_column("layer", footer="all", no_wrap=True)
    for title, cell in zip(titles, total, strict=True):
        table.add_column(title, footer=cell, justify="right", no_wrap=True)
    for name, row in found.layers.items():
        table.add_row(name.removeprefix("model.layers."), *_cells(row))
    show_table(table)


def _cells(row: Comparison) -> tuple[str, ...]:
    return (
        f"{row.a.norm:.4g}",
        f"{row.b.norm:.4g}",
        "-" if row.cosine is None else f"{row.cosine:+.3f}",
        "-" if row.relative_difference is None else f"{row.relative_difference:.3f}",
        f"{row.a.effective_rank:.1f}",
        f"{row.b.effective_rank:.1f}",
        str(row.a.components),
        str(row.b.components),
    )
