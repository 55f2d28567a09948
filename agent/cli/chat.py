"""`bramble chat`: talk to the base, the community's model, or your own."""

from __future__ import annotations

import sys

import click

from agent.cli.options import device_home
from agent.paths import Home


@click.command()
@device_home
@click.option(
    "--with", "which", type=click.Choice(["base", "community", "personal"]), help="Which model; the best there is."
)
@click.option("--prompt", help="Ask once and leave, instead of a conversation.")
@click.option("--complete", is_flag=True, help="Go on from the prompt as plain text, without the chat template.")
@click.option("--max-tokens", type=click.IntRange(1, 8192), default=200, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 5), default=0.7, show_default=True)
@click.option("--seed", type=int, default=None, help="The same seed gives the same answer.")
@click.option("--threads", type=click.IntRange(1), default=None)
def chat(home: Home, which: str | None, prompt: str | None, **options: object) -> None:
    """Talk to the model on this device. `/base`, `/community`, `/personal` swap adapters; Ctrl-D leaves."""
    from agent.errors import AdapterError
    from agent.llm.conversation import Conversation
    from agent.service import adapters_of

    membership, adapters = adapters_of(home)
    chosen = which or list(adapters)[-1]
    if chosen not in adapters:
        raise AdapterError(
            f"there is no {chosen} adapter on this device yet",
            advice="Take part in a round (`bramble run`). A personal adapter is kept only where it helps.",
        )
    complete = bool(options.pop("complete"))
    with Conversation(base=membership.base, adapters=adapters, **options) as talk:  # type: ignore[arg-type]
        talk.swap(chosen)
        if prompt is not None:
            _print(talk.complete(prompt) if complete else talk.answer(prompt))
            return
        click.echo(f"base {membership.base.name}, {chosen} model. Ctrl-D leaves.", err=True)
        while (line := _ask()) is not None:
            if line.startswith("/") and line[1:] in adapters:
                talk.swap(line[1:])
                click.echo(f"now: {line[1:]}", err=True)
            elif line:
                _print(talk.answer(line))


def _ask() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _print(pieces: object) -> None:
    for piece in pieces:  # type: ignore[attr-defined]
        click.echo(piece, nl=False)
    click.echo()
