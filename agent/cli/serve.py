"""`bramble serve`: offer the models on this device to other programs, as OpenAI's API does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from agent.cli.offered import NamedFile, fixed_models, offered
from agent.cli.options import device_home, events_json
from agent.paths import Home


@click.command()
@device_home
@fixed_models
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; others than loopback need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8077, show_default=True, help="0 picks one.")
@click.option(
    "--api-key", envvar="BRAMBLE_API_KEY", help="Key that every request must bring; better set in BRAMBLE_API_KEY."
)
@click.option("--slots", type=click.IntRange(1, 64), default=2, show_default=True, help="Answers computed at once.")
@click.option("--queue", type=click.IntRange(0, 4096), default=16, show_default=True, help="Requests that may wait.")
@click.option("--context", type=click.IntRange(64), help="Tokens of prompt and answer. [this machine's profile]")
@click.option("--threads", type=click.IntRange(1), help="To compute on. [this machine's profile]")
@click.option("--gpu-layers", type=click.IntRange(0), help="Layers on the graphics processor. [this machine's profile]")
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=5.0,
    show_default=True,
    help="Seconds for answers to end on Ctrl-C.",
)
@events_json
def serve(
    home: Home,
    base: Path | None,
    adapters: Sequence[NamedFile],
    host: str,
    port: int,
    api_key: str | None,
    slots: int,
    queue: int,
    context: int | None,
    threads: int | None,
    gpu_layers: int | None,
    grace: float,
    events_json: bool,
) -> None:
    """Offer base, community and community+personal to programs that speak OpenAI's API.

    With --base, a GGUF without a community is offered, and --adapter NAME=FILE beside it.
    """
    from agent.llm.waiting import wait_politely

    wait_politely()
    from agent.device.machine import this_machine
    from agent.events import Events
    from agent.serving.catalogue import Catalogue
    from agent.serving.engine import Engine
    from agent.serving.server import Address
    from agent.serving.server import serve as run_server

    found = offered(home, base, adapters)
    suited = this_machine(home).answering(threads=threads, context=context, gpu_layers=gpu_layers)
    rename = {} if base is not None else {"personal": "community+personal"}
    catalogue = Catalogue(base=found.base, read=found.read, watch=found.watch, rename=rename)
    run_server(
        address=Address(host=host, port=port, key=api_key or None),
        engine=Engine(
            base=catalogue.base,
            n_ctx=suited.context,
            slots=slots,
            waiting=queue,
            threads=suited.threads,
            batch=suited.batch,
            gpu_layers=suited.gpu_layers,
        ),
        catalogue=catalogue,
        events=Events(stream=sys.stdout if events_json else sys.stderr, as_json=events_json),
        grace=grace,
    )
