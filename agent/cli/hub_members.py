"""`bramble hub invite`, `invites`, `members`, `approve`, `refuse`, `revoke`, `pardon`: who may take part."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any, get_args

import click

from agent.cli.options import as_json, hub_home, print_json
from agent.cli.values import DURATION, GROUP
from agent.paths import Home

QR_BORDER = 2
"""Modules of white around a QR code. The standard wants four; columns of a terminal are few, and readers cope."""


@click.group("invite", invoke_without_command=True)
@hub_home
@click.option("--uses", type=click.IntRange(1, 100_000), default=1, show_default=True, help="Devices it lets in.")
@click.option("--expires", type=DURATION, default="7d", show_default=True, help="How long it is good for.")
@click.option("--group", type=GROUP, default="", help="Put whoever comes in on it into a group, such as pis.")
@click.option("--no-qr", is_flag=True, help="Do not draw a QR code, not even in a terminal.")
@as_json
@click.pass_context
def invite(
    context: click.Context, home: Home, uses: int, expires: float, group: str, no_qr: bool, as_json: bool
) -> None:
    """Give out an invite: one line for `bramble join`, and a QR code of it in a terminal."""
    context.obj = home
    if context.invoked_subcommand is not None:
        return
    from agent.hub.setup import make_invite
    from agent.transport.address import without_credentials

    made = make_invite(home, uses=uses, expires_seconds=expires, group=group)
    line = made.encode()
    if as_json:
        said = {"invite": line, "id": made.invite.hex(), "uses": uses, "expires": made.expires, "group": group}
        print_json({**said, "broker": without_credentials(made.broker)})
        return
    click.echo(line)
    if not no_qr and sys.stdout.isatty() and sys.stderr.isatty():
        _draw(line)
    click.echo(
        f"Good for {uses} device(s), until {_moment(made.expires)}. Pass it on privately: whoever has it can join.\n"
        f"To take it back: bramble hub invite revoke {made.invite.hex()}",
        err=True,
    )


@invite.command("revoke")
@click.argument("invite_id", metavar="ID")
@hub_home
@as_json
@click.pass_context
def revoke_invite(context: click.Context, home: Home, invite_id: str, as_json: bool) -> None:
    """Take the invite ID back: nobody else comes in on it. Who has come in stays."""
    from agent.hub.stewarding import take_back_invite

    done = take_back_invite(_home(context, home), invite_id)
    if as_json:
        print_json(done)
        return
    click.echo(f"Invite {done['invite']} lets nobody else in; {done['used']} of {done['uses']} uses were taken.")


def _home(context: click.Context, home: Home) -> Home:
    """Give the directory that was named before the subcommand, if none was named behind it."""
    given = context.get_parameter_source("home")
    before: Home | None = context.obj
    return home if before is None or given is click.core.ParameterSource.COMMANDLINE else before


def _draw(line: str) -> None:
    """Draw a QR code on the terminal, if it fits."""
    import segno

    code = segno.make(line, error="l", micro=False)
    width, _height = code.symbol_size(border=QR_BORDER)
    if width > shutil.get_terminal_size().columns:
        click.echo(f"(A QR code of it needs {width} columns, and this terminal has fewer.)", err=True)
        return
    code.terminal(sys.stderr, border=QR_BORDER, compact=True)


@click.command("invites")
@hub_home
@as_json
def invites(home: Home, as_json: bool) -> None:
    """List the invites that were given out, and how often each was used."""
    from agent.hub.stewarding import list_invites

    found = list_invites(home)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No invite was given out yet: bramble hub invite")
        return
    from rich.table import Table

    from agent.cli.tables import show_table

    table = Table(box=None, pad_edge=False)
    for name in ("invite", "state", "used", "group", "created", "expires"):
        table.add_column(name)
    for row in found:
        used = f"{row['used']} of {row['uses']}"
        table.add_row(row["invite"], row["state"], used, row["group"], _moment(row["created"]), _moment(row["expires"]))
    show_table(table)


@click.command("members")
@hub_home
@as_json
def members(home: Home, as_json: bool) -> None:
    """List devices: who waits to be approved, who is in or out, what each handed in and what is held against it."""
    from agent.hub.stewarding import list_members

    found = list_members(home)
    if as_json:
        print_json(found)
        return
    how = "whoever holds an invite" if found["admission"] == "automatic" else "whom a steward approves"
    click.echo(f"This hub lets in {how}. To change that: bramble hub admission")
    if not found["devices"]:
        click.echo("No device has asked yet.")
        return
    from rich.table import Table

    from agent.cli.tables import show_table

    table = Table(box=None, pad_edge=False)
    for name in ("device", "nickname", "standing", "group", "since", "updates", "strikes", "set aside until", "reason"):
        table.add_column(name, justify="right" if name in {"updates", "strikes"} else "left")
    for row in found["devices"]:
        note = row["reason"] or row["held_against"] or (f"now {row['successor'][:10]}" if row["successor"] else "")
        until = _moment(row["set_aside_until"]) if row["set_aside_until"] else ""
        who = (row["device"][:10], row["nickname"], row["standing"], row["group"], _moment(row["changed"]))
        table.add_row(*who, str(row["updates"]), str(row["strikes"] or ""), until, note)
    show_table(table)
    if any(row["standing"] == "pending" for row in found["devices"]):
        click.echo("To let one in: bramble hub approve DEVICE; or: bramble hub refuse DEVICE")


def _decision(name: str, help_text: str, said: Callable[[Any], str]) -> click.Command:
    """Give the command of one decision on a device."""

    @click.command(name, help=help_text)
    @click.argument("device")
    @hub_home
    @click.option("--reason", default="", help="In your words.")
    @as_json
    def command(home: Home, device: str, reason: str, as_json: bool) -> None:
        from agent.hub.members import Decision
        from agent.hub.stewarding import decide

        decision: Decision = next(word for word in get_args(Decision) if word == name)
        done = decide(home, device, decision, reason=reason)
        if as_json:
            dropped = {"dropped": len(done.dropped.waiting), "on_trial": done.dropped.on_trial}
            print_json({"device": done.row.device, "standing": done.standing, "was": done.row.standing, **dropped})
            return
        click.echo(f"{done.row.device[:10]} ({done.row.nickname or 'no nickname'}) {said(done)}")

    return command


def _revoked(done: Any) -> str:
    dropped = done.dropped
    words = [f"is out. {len(dropped.waiting)} update(s) that waited for a merge are dropped."]
    words.append("Nothing that it sends is taken, and no release from now on is sealed for it; it keeps what it has.")
    if dropped.on_trial:
        words.append(
            "The candidate on trial holds an update of it: if that is to go too, roll back once it is promoted."
        )
    if dropped.released:
        words.append(f"Releases hold {dropped.released} update(s) of it; `bramble hub rollback` goes back before them.")
    return "\n".join(words)


approve = _decision(
    "approve", "Let DEVICE in, which waits for it. An id's first characters are enough.", lambda _: "is a member now."
)
refuse = _decision(
    "refuse",
    "Do not let DEVICE in, which waits for it.",
    lambda _: "was refused. Approve it later if you change your mind.",
)
revoke = _decision(
    "revoke",
    "Put DEVICE out, for good: it was lost or stolen, or does harm. Its updates that wait are dropped.",
    _revoked,
)


@click.command("admission")
@click.argument("how", type=click.Choice(["automatic", "approval"]), required=False)
@hub_home
@as_json
def admission(home: Home, how: str | None, as_json: bool) -> None:
    """Say, or change, whether newcomers are let in automatically or by a steward's approval."""
    from agent.hub.stewarding import list_members, set_admission

    now = list_members(home)["admission"]
    if how is not None:
        now = set_admission(home, "approval" if how == "approval" else "automatic").admission
    if as_json:
        print_json({"admission": now})
        return
    whom = "Whoever holds an invite is let in." if now == "automatic" else "Newcomers wait until a steward approves."
    click.echo(f"{now}: {whom}")


@click.command()
@click.argument("device")
@hub_home
@as_json
def pardon(device: str, home: Home, as_json: bool) -> None:
    """Forget what is held against DEVICE (its id, or how it begins): it may hand in updates again at once.

    The hub may run or not.
    """
    from agent.hub.stewarding import pardon as forgive

    pardoned = forgive(home, device)
    if as_json:
        print_json({"device": pardoned})
        return
    click.echo(f"Nothing is held against {pardoned[:10]} any more.")


def _moment(seconds: float) -> str:
    from agent.cli.hub_shown import moment

    return moment(seconds)[:16]


COMMANDS = (invite, invites, members, approve, refuse, revoke, pardon, admission)
"""What belongs under `bramble hub`."""
