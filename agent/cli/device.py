"""`bramble init`, `join`, `run`, `status`: the life of a device."""

from __future__ import annotations

import asyncio
import sys

import click

from agent.cli.options import as_json, device_home, events_json, print_json, with_parent, yes
from agent.paths import Home


@click.command()
@device_home
@click.option("--nickname", default="", help="A name for the hub's operator to see; empty for none.")
@as_json
def init(home: Home, nickname: str, as_json: bool) -> None:
    """Make this machine a device: keys, directories, what it can do."""
    from agent.service import create_device

    device = create_device(home, nickname=nickname)
    if as_json:
        print_json(device.as_dict())
        return
    click.echo(f"This device is {device.short_id} (keys in {home.keys}, readable by you alone).")
    click.echo(f"Its profile is “{device.profile_title}”: {'; '.join(device.reasons)}.")
    click.echo(f"Training will use {device.threads} core(s). Change it in {home.settings}.")
    click.echo("Next: bramble join INVITE")


@click.command()
@click.argument("invite", required=False)
@device_home
@click.option("--base", help="The community's GGUF, a file or a name on the shelf; found by itself where it can be.")
@click.option("--allow-plaintext", is_flag=True, help="Use an unencrypted broker on another machine. Think twice.")
@yes
@as_json
def join(home: Home, invite: str | None, base: str | None, allow_plaintext: bool, yes: bool, as_json: bool) -> None:
    """Join a community with an INVITE from its hub's operator.

    Where a steward approves newcomers, this waits a little. Run it again later, then without an INVITE, to see whether
    there is an answer.
    """
    from agent.cli.charter_shown import show_charter
    from agent.cli.plaintext import warn_if_unencrypted
    from agent.errors import InviteRefusedError
    from agent.federation.enrol import Door
    from agent.federation.invite import parse_invite
    from agent.joining import join_community
    from agent.service import named_base
    from agent.transport.address import without_credentials

    def agree(door: Door) -> bool:
        show_charter(door)
        if not yes and not sys.stdin.isatty():
            raise InviteRefusedError(
                "nobody is there to agree to the charter",
                advice="Read it above, then join in a terminal, or with --yes. Nothing was sent.",
            )
        return yes or click.confirm("Join this community?", default=False, err=True)

    if allow_plaintext and invite is not None:
        warn_if_unencrypted(parse_invite(invite).broker)
    membership = asyncio.run(
        join_community(
            home,
            invite,
            base=named_base(home, base) if base else None,
            agree=agree,
            allow_plaintext=allow_plaintext,
            told_to_wait=lambda seconds: click.echo(
                f"A steward is to approve this device. Waiting {seconds:.0f} seconds for that …", err=True
            ),
        )
    )
    if as_json:
        print_json(
            {
                "community": membership.community,
                "name": membership.charter.name,
                "broker": without_credentials(membership.broker),
                "base": str(membership.base),
            }
        )
        return
    click.echo(f"You are a member of {membership.charter.name!r}.")
    click.echo("Next: bramble data add PATH, then bramble run")


@click.command()
@device_home
@click.option("--threads", type=click.IntRange(1), help="Cores to use, over the settings.")
@events_json
@with_parent
def run(home: Home, threads: int | None, events_json: bool, with_parent: bool) -> None:
    """Take part in the community: train, send, judge, adopt. Runs until stopped."""
    from agent.events import Events
    from agent.service import run_device

    events = Events(stream=sys.stdout if events_json else sys.stderr, as_json=events_json)
    run_device(home, events=events, threads=threads, with_parent=with_parent)


@click.command()
@device_home
@as_json
def status(home: Home, as_json: bool) -> None:
    """Say what this device is doing, and why."""
    from agent.service import device_status

    found = device_status(home)
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        if not isinstance(value, (list, dict)):
            click.echo(f"{key.replace('_', ' '):<16} {value}")
    rounds = found.get("rounds")
    if isinstance(rounds, list) and rounds:
        click.echo("\nround  update      bytes    state     tokens  loss first → last")
        for row in rounds:
            report = row["report"]
            click.echo(
                f"{row['round']:>5}  {row['update_id'][:10]}  {row['wire_bytes']:>7,}  {row['state']:<8}"
                f"  {report.get('tokens', 0):>6,}  {report.get('first_loss', 0):.3f} → {report.get('last_loss', 0):.3f}"
            )
