"""The command line: `bramble`. A face: it parses, calls, prints, and holds no logic of its own."""

from __future__ import annotations

import os
import sys

import click

from agent.cli.lazy import LazyGroup
from agent.errors import BrambleError

COMMANDS = {
    "init": ("agent.cli.device:init", "Make this machine a device: keys, directories, what it can do."),
    "join": ("agent.cli.device:join", "Join a community with an invite."),
    "data": ("agent.cli.data:data", "Say which text may be learned from."),
    "train": ("agent.cli.train:train", "Train an adapter on this machine alone; nothing is sent."),
    "run": ("agent.cli.device:run", "Take part: train, send, judge, adopt. Runs until stopped."),
    "leave": ("agent.cli.leave:leave", "Leave the community, and if you like remove everything from here."),
    "status": ("agent.cli.device:status", "What this device is doing, and why."),
    "governor": ("agent.cli.governor:governor", "When training may run here, and why not; replay of a recorded week."),
    "charter": ("agent.cli.charter:charter", "The community's rules: what you agreed to, and what has changed."),
    "chat": ("agent.cli.chat:chat", "Talk to the model on this device."),
    "serve": ("agent.cli.serve:serve", "Offer the models on this device to other programs (OpenAI's API)."),
    "model": ("agent.cli.model:model", "Keep base models: import, pull, quantise, list, remove."),
    "adapter": ("agent.cli.adapter:adapter", "See, export and compare the adapters on this device."),
    "device": ("agent.cli.machine:device", "See what machine this is and what suits it; check a profile of your own."),
    "bench": ("agent.cli.bench:bench", "Measure what this machine can do: speed, memory, time of a round."),
    "key": ("agent.cli.key:key", "Show, protect, back up, restore and change the keys."),
    "hub": ("agent.cli.hub:hub", "Run a community's hub."),
    "broker": ("agent.cli.broker:broker", "Run the embedded MQTT broker by itself."),
    "demo": ("agent.cli.demo:demo", "Watch a broker, a hub and three devices grow one model."),
}
"""Every command: where it lives and what it does, so that `--help` imports none of them."""


@click.group(cls=LazyGroup, commands_by_name=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bramble-agent", prog_name="bramble")
def cli() -> None:
    """On-device federated fine-tuning of language models."""


def main() -> None:
    """Run the command line and explain every error; a traceback only where BRAMBLE_TRACEBACK is set."""
    try:
        status = cli.main(standalone_mode=False)
    except BrambleError as error:
        if os.environ.get("BRAMBLE_TRACEBACK"):
            raise
        click.secho(f"bramble: {error.message}", fg="red", err=True)
        click.echo(f"What to do: {error.advice}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
