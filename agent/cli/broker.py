"""`bramble broker run`: the embedded broker as a process of its own; `bramble hub run` starts it by itself."""

from __future__ import annotations

import click

from agent.cli.options import hub_home, with_parent
from agent.paths import Home


@click.group()
def broker() -> None:
    """Run the embedded MQTT broker by itself. It is for one machine and for trying out."""


@broker.command("run")
@hub_home
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on loopback; 0 picks a free one.")
@with_parent
def run(home: Home, port: int, with_parent: bool) -> None:
    """Run the embedded broker of the hub in HOME, on loopback. Prints its URL as JSON."""
    from agent.hub.broker import serve
    from agent.running import run_until_signalled

    run_until_signalled(serve(home, port=port), with_parent=with_parent)
