"""`bramble leave`: out of the community, and what that can and cannot take back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from agent.cli.options import as_json, device_home, print_json, yes
from agent.paths import Home

if TYPE_CHECKING:
    from agent.parting import Parted


@click.command()
@device_home
@click.option("--erase", is_flag=True, help="Remove keys, settings, adapters and everything else of the device too.")
@yes
@as_json
def leave(home: Home, erase: bool, yes: bool, as_json: bool) -> None:
    """Leave the community: the hub stops counting on this device and drops what waits to be merged.

    Without --erase this machine keeps what it has, and you can go on talking to it. With --erase it works without the
    broker too: then the hub is told for some seconds, and is not told if it cannot be reached.
    """
    from agent.parting import leave as part
    from agent.service import device_status

    if not yes:
        _ask(home, erase, str(device_status(home)["community"] or ""))
    done = part(home, everything=erase)
    if as_json:
        print_json({key: getattr(done, key) for key in done.__slots__})
        return
    click.echo("\n".join(_words(home, done)))


def _ask(home: Home, erase: bool, community: str) -> None:
    from agent.errors import SettingsError

    if not sys.stdin.isatty():
        raise SettingsError(
            "nobody is there to ask", advice="Run it in a terminal, or with --yes. Nothing was changed."
        )
    if erase:
        click.echo(
            f"This removes the device in {home.root}: its keys, its settings, the community's adapters and your"
            " personal one. To keep an adapter, stop here and use `bramble adapter export`. Your text is not touched.",
            err=True,
        )
    click.confirm(f"Leave {community!r}?" if community else "Remove this device?", abort=True, err=True)


def _words(home: Home, done: Parted) -> list[str]:
    lines = []
    if done.community:
        lines.append(f"You left {done.community!r}." + ("" if done.told else f" The hub was not told: {done.why}."))
    if done.community and not done.told:
        lines.append("To the hub the device is a member that is silent; its operator can put it out.")
    if done.withdrawn:
        lines.append(f"{done.withdrawn} update(s) that were not counted yet are withdrawn.")
    if done.erased:
        lines.append(f"Keys, settings, adapters and the database in {home.root} are gone from this machine.")
        lines.append("A backup of the keys (`bramble key backup`), if you made one, is still where you put it.")
    elif done.community:
        lines.append("What this machine has stays: `bramble chat` still works, `bramble leave --erase` removes it.")
    if done.merged:
        lines.append(
            f"What cannot be taken back: {done.merged} update(s) of this device were counted. Those that were merged"
            " are part of releases that other members have, and nobody can take a part out of a sum."
        )
    if done.community:
        lines.append("The hub keeps this device's id, nickname, and how much it sent when.")
    return lines
