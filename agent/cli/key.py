"""`bramble key`: the keys of a device, or with --hub of a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.options import as_json, print_json
from agent.paths import Home, default_home

if TYPE_CHECKING:
    from agent.crypto.identity import Role

_FILE = click.Path(dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.group()
def key() -> None:
    """Show, protect, back up, restore and change the keys of this device, or with --hub of a hub.

    A passphrase is asked for in a terminal. A service takes it from the file that BRAMBLE_PASSPHRASE_FILE names, or
    from the systemd credential bramble-passphrase.
    """


def _whose(command: Any) -> Any:
    """Give a command the options that say whose keys are meant."""
    home = click.option("--home", type=_DIRECTORY, help="State directory [env: BRAMBLE_HOME].")
    hub = click.option("--hub", is_flag=True, help="The keys of the hub, instead of this device's.")
    return home(hub(command))


def _place(home: Path | None, hub: bool) -> tuple[Home, Role]:
    role: Role = "hub" if hub else "device"
    return Home(home or default_home(role)), role


@key.command("show")
@_whose
@as_json
def show(home: Path | None, hub: bool, as_json: bool) -> None:
    """Say whose keys these are, and how they are kept."""
    from agent.keykeeping import show_keys

    found = show_keys(*_place(home, hub))
    if as_json:
        print_json({name: getattr(found, name) for name in found.__slots__})
        return
    kept = {
        "none": "readable by you alone",
        "passphrase": "under a passphrase",  # words for people # nosec B105
        "keyring": "under a key in the keyring",
    }
    click.echo(f"{found.role} {found.id}")
    click.echo(f"fingerprint {found.fingerprint}")
    click.echo(f"{found.path}, {kept[found.protection]}")
    if found.waiting:
        click.echo("New keys wait to take their place: finish it with `bramble key rotate`.")


@key.command("protect")
@_whose
@click.option("--passphrase", "protection", flag_value="passphrase", help="Ask for it whenever the keys are used.")
@click.option("--keyring", "protection", flag_value="keyring", help="Lock them with a key in the system's keyring.")
@click.option("--none", "protection", flag_value="none", help="Keep them in a file that you alone can read.")
def protect(home: Path | None, hub: bool, protection: str | None) -> None:
    """Put the keys under a passphrase, or a key in the operating system's keyring; or take them out again."""
    from agent.keykeeping import protect_keys

    place, role = _place(home, hub)
    if protection == "passphrase":
        protect_keys(place, role, "passphrase")
        click.echo("The keys are under the passphrase now. Without it they are lost: nobody can reset it.")
    elif protection == "keyring":
        protect_keys(place, role, "keyring")
        click.echo("The keys are under a key in the keyring of this account now.")
    elif protection == "none":
        protect_keys(place, role, "none")
        click.echo("The keys are in a file that you alone can read.")
    else:
        raise click.UsageError("Say how: --passphrase, --keyring or --none.")


@key.command("backup")
@click.argument("file", type=_FILE)
@_whose
def backup(file: Path, home: Path | None, hub: bool) -> None:
    """Write the keys, and this device's membership, into FILE, under a passphrase that you choose for it."""
    from agent.keykeeping import back_up

    place, role = _place(home, hub)
    public = back_up(place, role, file)
    click.echo(
        f"The keys of {role} {public.short_id} are in {file}. Keep it elsewhere, and the passphrase elsewhere again."
    )
    if hub:
        click.echo(
            f"Members, rounds and releases are not in it: copy {place.root} for those, while the hub is stopped."
        )


@key.command("restore")
@click.argument("file", type=_FILE)
@_whose
def restore_keys(file: Path, home: Path | None, hub: bool) -> None:
    """Put keys and membership from FILE where there are none yet. Nothing is ever overwritten."""
    from agent.keykeeping import restore

    place, role = _place(home, hub)
    done = restore(place, role, file)
    click.echo(f"{role} {done.public.short_id} is restored in {place.root}.")
    if done.community:
        click.echo(f"It is a member of {done.community!r}. Its text is to be added again: bramble data add PATH")
    if done.base is not None and not done.base.is_file():
        click.echo(f"The base {done.base} is not on this machine: put it there before `bramble run`.", err=True)
    if not hub:
        click.echo("If the old machine still runs, stop it: two with the same keys take each other's place.", err=True)


@key.command("rotate")
@_whose
def rotate(home: Path | None, hub: bool) -> None:
    """Take new keys: the old ones sign them, and are refused from then on.

    A device is to be stopped for it, and its hub has to answer. A hub is to be stopped too; devices follow it by
    themselves when it runs again, and invites that were given out before stay good. For keys that somebody else may
    have, this is not enough: have the device revoked (`bramble hub revoke`) and join with fresh ones.
    """
    from agent.keykeeping import rotate_device, rotate_hub

    place, role = _place(home, hub)
    done = rotate_hub(place) if hub else rotate_device(place)
    click.echo(f"{role} {done.old[:10]} is {done.new[:10]} from now on.")
    click.echo("Backups of the old keys are of no use any more: make a new one with `bramble key backup`.")
