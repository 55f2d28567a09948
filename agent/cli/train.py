"""`bramble train`: an adapter from text on this machine alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.options import as_json, device_home, yes
from agent.cli.values import MEMORY, NAMES
from agent.paths import Home

if TYPE_CHECKING:
    from agent.cli.training_watch import Watch
    from agent.federation.alone.order import Order
    from agent.federation.alone.record import TrainingRecord
    from agent.federation.alone.room import OutRoom

_INTERRUPTED = 130


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH...]", type=click.Path(path_type=Path))
@click.option("--base", help="GGUF, or a name on the shelf. [default: the community's, else the seedling]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="bramble-adapter",
    show_default=True,
    help="Folder for what comes of it.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Say what it will take, and stop. Nothing is kept.")
@click.option("--memory", "memory_mb", type=MEMORY, help="What it may take: 900MB, 1.5GB. [default: what is free]")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps, instead of --epochs.")
@click.option("--epochs", type=click.FloatRange(0, min_open=True), help="How often all text is seen. [default: 3]")
@click.option("--batch", "batch_size", type=click.IntRange(1), help="Windows a step.")
@click.option("--micro-batch", type=click.IntRange(1), help="Windows a pass. [default: what fits]")
@click.option("--window", type=click.IntRange(16), help="Tokens in a window. [default: the charter's, else 256]")
@click.option("--rank", type=click.IntRange(1, 256), help="Of the adapter. [default: the charter's, else 8]")
@click.option("--alpha", type=click.FloatRange(0, min_open=True), help="Of the adapter. [default: twice the rank]")
@click.option("--rslora", is_flag=True, help="Scale by alpha / sqrt(rank) instead of alpha / rank.")
@click.option("--targets", "target_modules", type=NAMES, help="Layers to change, such as q_proj,v_proj. [default: all]")
@click.option("--last-layers", type=click.IntRange(1), help="Change only so many blocks, the last ones.")
@click.option("--trunk-cache/--no-trunk-cache", default=None, help="Keep what unchanged layers give on disk.")
@click.option("--checkpointing/--no-checkpointing", default=None, help="Less memory for about a third more work.")
@click.option("--compute", type=click.Choice(["auto", "float32", "bfloat16"]), help="Arithmetic of frozen layers.")
@click.option("--lr", "learning_rate", type=click.FloatRange(0, min_open=True), help="Highest learning rate.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--patience", type=click.IntRange(1), default=3, show_default=True, help="Looks without progress.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads to compute on.")
@click.option(
    "--filter/--no-filter", "filter_secrets", default=None, help="Take secrets and personal data out of the text."
)
@device_home
@as_json
@yes
def train(
    home: Home,
    paths: tuple[Path, ...],
    base: str | None,
    out: Path,
    plan_only: bool,
    as_json: bool,
    yes: bool,
    **said: Any,
) -> None:
    """Train an adapter on this machine alone. Nothing is sent.

    PATH is text to learn from; naming it is your consent for this one training. Without PATH, the text that you
    consented to with `bramble data add` is used. Interrupted or killed, the same command goes on where it stopped.
    """
    from agent.federation.alone.order import Wanted, take_order
    from agent.federation.alone.room import OutRoom
    from agent.service import named_base

    if said["steps"] and said["epochs"]:
        raise click.UsageError("Give --steps or --epochs, not both.")
    order = take_order(home, Wanted(sources=paths, base=named_base(home, base) if base else None, **said))
    _say_what_is_read(order)
    if plan_only:
        _plan(order, as_json=as_json)
        return
    room = OutRoom(out)
    _ask_before_losing(room, order, yes=yes)
    record = _train(home, order, room, as_json=as_json)
    if as_json:
        click.echo(record.model_dump_json(indent=2))
        return
    from rich.console import Console

    from agent.cli.training_report import show_curve, show_record

    show_curve(Console(stderr=True), record)
    show_record(Console(highlight=False), record, room.out)


def _say_what_is_read(order: Order) -> None:
    sources = ", ".join(map(str, order.sources))
    click.echo(f"base {order.base_path.name}, text {sources}", err=True)
    if not order.consented:
        click.echo(
            "You named this text on the command line: it is read for this one training, on this machine, and is not"
            " added to what communities learn from.",
            err=True,
        )
    if not order.filter_secrets:
        click.secho("The filter for secrets and personal data is off.", fg="red", err=True)


def _plan(order: Order, *, as_json: bool) -> None:
    """Print the plan; fail where it does not fit."""
    from rich.console import Console

    from agent.cli.training_report import show_plan, show_text
    from agent.cli.training_watch import Watch
    from agent.federation.alone.training import plan_alone
    from agent.federation.planning import require_fit

    with Watch() as watch:
        plan = asyncio.run(
            plan_alone(order, on_progress=watch.hear, on_text=lambda text: show_text(watch.console, text))
        )
    if as_json:
        click.echo(plan.model_dump_json(indent=2, exclude={"kind", "peak_rss_mb"}))
    else:
        show_plan(Console(highlight=False), order, plan)
    require_fit(plan)


def _ask_before_losing(room: OutRoom, order: Order, *, yes: bool) -> None:
    """Ask before what lies in the folder is replaced."""
    from agent.errors import StateError

    questions = {
        "other": f"{room.out} holds an unfinished training of other text or with other options. Throw it away?",
        "done": f"{room.out} holds a finished adapter. Replace it?",
    }
    state = room.state(order)
    if state == "same":
        click.echo(f"Going on with what was begun in {room.out}, with the text as it was then.", err=True)
    question = questions.get(state)
    if question and not (yes or click.confirm(question, default=False, err=True)):
        raise StateError(f"{room.out} is kept as it is", advice="Choose another folder with --out, or say --yes.")


def _train(home: Home, order: Order, room: OutRoom, *, as_json: bool) -> TrainingRecord:
    """Train; where it is interrupted, say how to go on."""
    from agent.cli.training_report import show_plan, show_text
    from agent.cli.training_watch import Watch
    from agent.errors import TrainingPausedError
    from agent.federation.alone.training import train_alone
    from agent.running import run_until_signalled

    record: TrainingRecord | None = None
    with Watch() as watch:
        work = train_alone(
            home,
            order,
            room,
            on_progress=watch.hear,
            on_text=lambda text: show_text(watch.console, text),
            on_plan=lambda plan: None if as_json else show_plan(watch.console, order, plan),
        )
        try:
            record = run_until_signalled(work)
        except TrainingPausedError:
            record = None
    if record is None:
        _say_how_to_go_on(watch, room)
        raise SystemExit(_INTERRUPTED)
    return record


def _say_how_to_go_on(watch: Watch, room: OutRoom) -> None:
    where = f" at step {watch.step} of {watch.steps}" if watch.steps else ""
    click.echo(f"paused{where}. The same command goes on from there; until then {room.work} is kept.", err=True)
