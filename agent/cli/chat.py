"""`bramble chat`: talk to the base, the community's model, or your own."""

from __future__ import annotations

import contextlib
import re
import select
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.offered import NamedFile, fixed_models, offered
from agent.cli.options import device_home
from agent.paths import Home

if TYPE_CHECKING:
    from agent.llm.conversation import Conversation

_HELP = """\
/{models}  go on as another model
/new   forget what was said
/help  this list
Paste as many lines as you like, or write them between two lines of \"\"\".
Ctrl-C stops an answer; Ctrl-D leaves."""

_COMMAND = re.compile(r"/([A-Za-z0-9][A-Za-z0-9._+:-]*)")
_PASTE_SECONDS = 0.05
"""Lines that come as soon after one another as this were pasted, not typed."""


@click.command()
@device_home
@fixed_models
@click.option("--with", "which", metavar="NAME", help="Which model: base, community, personal; the best there is.")
@click.option("--prompt", help="Ask once and leave, instead of a conversation.")
@click.option("--complete", is_flag=True, help="Go on from the prompt as plain text, without the chat template.")
@click.option("--max-tokens", type=click.IntRange(1, 8192), default=200, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 5), default=0.7, show_default=True)
@click.option("--seed", type=int, default=None, help="The same seed gives the same answer.")
@click.option("--context", type=click.IntRange(128), help="Tokens of a conversation that are held.")
@click.option("--threads", type=click.IntRange(1), help="To compute on.")
@click.option("--gpu-layers", type=click.IntRange(0), help="Layers on the graphics processor.")
@click.option("--stats", is_flag=True, help="Say how long each answer took.")
def chat(
    home: Home,
    base: Path | None,
    adapters: Sequence[NamedFile],
    which: str | None,
    prompt: str | None,
    complete: bool,
    stats: bool,
    context: int | None,
    threads: int | None,
    gpu_layers: int | None,
    **options: object,
) -> None:
    """Talk to the model on this device, or to a GGUF with --base. `/help` says what else can be typed.

    Context, threads and layers on the graphics processor are as this machine's profile says (`bramble device show`).
    """
    from agent.llm.waiting import wait_politely

    wait_politely()
    from dataclasses import asdict

    from agent.device.machine import this_machine
    from agent.errors import AdapterError
    from agent.llm.conversation import Conversation

    found = offered(home, base, adapters)
    models = found.read()
    chosen = which or list(models)[-1]
    if chosen not in models:
        raise AdapterError(
            f"there is no {chosen} adapter on this device yet" if base is None else f"no --adapter is named {chosen}",
            advice="Take part in a round (`bramble run`). A personal adapter is kept only where it helps."
            if base is None
            else f"Use one of {', '.join(models)}, or name it: --adapter {chosen}=FILE.",
        )
    suited = asdict(this_machine(home).answering(threads=threads, context=context, gpu_layers=gpu_layers))
    with Conversation(base=found.base, adapters=models, **suited, **options) as talk:  # type: ignore[arg-type]
        talk.swap(chosen)
        if prompt is not None:
            _print(talk.complete(prompt) if complete else talk.answer(prompt))
            _print_stats(talk, wanted=stats)
            return
        click.echo(f"base {found.base.name}, {chosen} model. /help helps, Ctrl-D leaves.", err=True)
        _talk(talk, models, stats=stats)


def _talk(talk: Conversation, models: Mapping[str, object], *, stats: bool) -> None:
    """Answer until the owner leaves."""
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (input() edits and remembers lines once this is there)
    while True:
        try:
            text = _ask(interactive=interactive)
        except KeyboardInterrupt:
            if not interactive:
                raise
            click.echo("\n(Ctrl-D leaves)", err=True)
            continue
        if text is None:
            return
        command = _COMMAND.fullmatch(text)
        if command:
            _obey(command[1], talk, models)
        elif text:
            try:
                _print(talk.answer(text))
            except KeyboardInterrupt:
                click.echo("\n(stopped)", err=True)
            _print_stats(talk, wanted=stats)


def _obey(word: str, talk: Conversation, models: Mapping[str, object]) -> None:
    """Do what was typed after a slash."""
    if word in models:
        talk.swap(word)
        click.echo(f"now: {word}", err=True)
    elif word == "new":
        talk.forget()
        click.echo("what was said is forgotten", err=True)
    else:
        if word != "help":
            click.echo(f"there is no /{word}", err=True)
        click.echo(_HELP.format(models=", /".join(models)), err=True)


def _ask(*, interactive: bool) -> str | None:
    """Give what is typed or pasted next; None at the end."""
    try:
        lines = [input("> " if interactive else "")]
        if lines[0].strip() == '"""':
            lines = []
            while (line := input("… " if interactive else "")).strip() != '"""':
                lines.append(line)
        else:
            while interactive and _more_is_there():
                lines.append(input())
    except EOFError:
        return None
    return "\n".join(lines).strip()


def _more_is_there() -> bool:
    """Say whether another line came together with the last one."""
    if sys.platform == "win32":  # select() knows sockets only
        return False
    return bool(select.select([sys.stdin], [], [], _PASTE_SECONDS)[0])


def _print(pieces: Generator[str, None, None]) -> None:
    with contextlib.closing(pieces):
        for piece in pieces:
            click.echo(piece, nl=False)
    click.echo()


def _print_stats(talk: Conversation, *, wanted: bool) -> None:
    found = talk.stats
    if wanted and found is not None:
        click.echo(
            f"{found.tokens} tokens, {found.tokens_per_second:.1f} tokens/s, first after"
            f" {found.first_seconds * 1e3:.0f} ms ({found.prompt_tokens} read, {found.reused_tokens} of them known)",
            err=True,
        )
