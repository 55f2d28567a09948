"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from agent.paths import Home, default_home


def _device_home(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Home:
    return Home(value or default_home("device"))


def _hub_home(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Home:
    return Home(value or default_home("hub"))


_DIRECTORY = click.Path(file_okay=False, path_type=Path)

device_home = click.option(
    "--home", type=_DIRECTORY, callback=_device_home, help="State directory of this device [env: BRAMBLE_HOME]."
)
hub_home = click.option(
    "--home", type=_DIRECTORY, callback=_hub_home, help="State directory of this hub [env: BRAMBLE_HOME]."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
events_json = click.option("--events-json", is_flag=True, help="Print one JSON object an event, on standard output.")
with_parent = click.option("--with-parent", is_flag=True, help="End when standard input ends.")
yes = click.option("--yes", "-y", is_flag=True, help="Answer yes to every question.")


def print_json(value: Any) -> None:
    """Print a result for programs."""
    click.echo(json.dumps(value, indent=2, sort_keys=True, default=str))
