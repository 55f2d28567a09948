"""`bramble bench`: what this machine can do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import as_json, device_home, print_json
from agent.cli.values import spoken
from agent.paths import Home

if TYPE_CHECKING:
    from agent.governance.charter import Charter
    from agent.training.speed import RoundSize


@click.command()
@device_home
@click.option("--base", help="A GGUF to measure with: a file or a name on the shelf. [the community's]")
@click.option("--batch", type=click.IntRange(1, 256), help="Windows a step. [the charter's]")
@click.option("--window", type=click.IntRange(16, 8192), help="Tokens a window. [the charter's]")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads to compute on. [this device's]")
@as_json
def bench(
    home: Home, base: str | None, batch: int | None, window: int | None, threads: int | None, **as_: bool
) -> None:
    """Measure this machine: training and generating speed, memory, and the time of a typical round."""
    import tempfile
    from dataclasses import asdict

    from agent.cli.bars import bar
    from agent.device.hardware import detect
    from agent.service import named_base, settings_of
    from agent.training.speed import measure_generating, measure_training, round_seconds

    settings = settings_of(home, threads=threads)
    charter, path = (None, named_base(home, base)) if base else _of_the_community(home)
    size = _round_size(charter, path, judged=settings.max_heldout_windows, batch=batch, window=window)
    with bar("generating"):
        generating = measure_generating(path, threads=settings.threads)
    with tempfile.TemporaryDirectory(prefix="bramble-bench-") as room, bar("training") as on_progress:
        training = asyncio.run(
            measure_training(
                path,
                size,
                threads=settings.threads,
                compute=settings.compute,
                room=Path(room),
                on_progress=lambda progress: on_progress(progress.step, progress.steps),
            )
        )
    seconds = round_seconds(size, training, generating)
    hardware = detect()
    if as_["as_json"]:
        machine = {"cpu": hardware.cpu_model, "memory_mb": hardware.memory_mb, "threads": settings.threads}
        parts = {"training": asdict(training), "generating": asdict(generating), "round": asdict(size)}
        print_json({"machine": machine, "base": path.name, **parts, "round_seconds": round(seconds)})
        return
    click.echo(f"{hardware.cpu_model or hardware.machine}, {settings.threads} threads, {path.name}")
    click.echo(
        f"training     {training.tok_s:,.0f} tokens/s at {size.batch} x {size.window} in {training.compute},"
        f" peak {training.peak_mb:,.0f} MB of {hardware.memory_mb:,} MB"
    )
    click.echo(
        f"generating   {generating.tok_s:,.1f} tokens/s, reading {generating.read_tok_s:,.0f} tokens/s,"
        f" peak {generating.peak_mb:,.0f} MB"
    )
    click.echo(
        f"a round      about {spoken(seconds)}: {size.steps} steps of {size.batch} x {size.window} tokens,"
        f" and judging what comes of it"
    )


def _of_the_community(home: Home) -> tuple[Charter, Path]:
    """Give the charter and the base of the community that this device belongs to."""
    from agent.service import adapters_of

    membership, _adapters = adapters_of(home)
    return membership.charter, membership.base


def _round_size(
    charter: Charter | None, base: Path, *, judged: int, batch: int | None, window: int | None
) -> RoundSize:
    """Give what a round asks for: the charter's, or without one what a new charter would say."""
    from agent.governance.charter import Charter, TrainingPlan
    from agent.llm.gguf_file import linear_names, open_gguf
    from agent.training.speed import RoundSize

    plan = charter.training if charter else TrainingPlan()
    defaults = {name: field.default for name, field in Charter.model_fields.items()}
    return RoundSize(
        steps=plan.steps,
        batch=batch or plan.batch_size,
        window=window or plan.window,
        judged=judged,
        rank=charter.rank if charter else defaults["rank"],
        alpha=charter.alpha if charter else defaults["alpha"],
        target_modules=charter.target_modules if charter else linear_names(open_gguf(base)),
    )
