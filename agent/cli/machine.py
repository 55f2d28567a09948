"""`bramble device`: what machine this is, what suits it, and profiles of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.options import as_json, device_home, print_json
from agent.paths import Home


@click.group()
def device() -> None:
    """See what machine this is and what suits it; check a profile of your own."""


@device.command()
@device_home
@as_json
def show(home: Home, as_json: bool) -> None:
    """Show which profile fits this machine and why, what that means here, and what its sensors say."""
    from agent.cli.machine_shown import machine_as_dict, show_machine
    from agent.device.machine import this_machine

    found = this_machine(home)
    if as_json:
        print_json(machine_as_dict(found))
    else:
        show_machine(found)


@device.group()
def profile() -> None:
    """Profiles: one TOML file for each kind of machine."""


@profile.command("list")
@device_home
@as_json
def list_(home: Home, as_json: bool) -> None:
    """List every profile there is, and the file that it is from."""
    from agent.device.machine import profile_folders
    from agent.device.profile_files import load_profiles, origin_of

    folders = profile_folders(home)
    rows = [
        {"name": known.name, "title": known.title, "path": str(origin_of(known.name, extra=folders))}
        for known in load_profiles(extra=folders)
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['name']:<22} {row['title']:<52} {row['path']}")
    click.echo(f"Yours go into {home.profiles}. Next: bramble device profile check FILE", err=True)


@profile.command()
@click.argument("file", type=click.Path(path_type=Path))
@device_home
@as_json
def check(file: Path, home: Home, as_json: bool) -> None:
    """Check the profile in FILE, and say whether it would be this machine's."""
    from agent.device.hardware import detect
    from agent.device.machine import profile_folders
    from agent.device.profile_files import load_profiles, read_profile
    from agent.device.recognition import recognise

    folders = profile_folders(home)
    found = read_profile(file, extra=folders)
    others = [known for known in load_profiles(extra=folders) if known.name != found.name]
    recognised = recognise(detect(), [*others, found])
    verdict = next(verdict for verdict in recognised.verdicts if verdict.profile is found)
    wins = recognised.profile is found
    if as_json:
        rules = [{"rule": rule.name, "held": rule.held, "reason": rule.reason} for rule in verdict.rules]
        print_json({"name": found.name, "fits": verdict.fits, "wins": wins, "rules": rules})
        return
    click.echo(f"{file} is a profile that can be used: “{found.title}”.")
    if wins:
        click.echo("It fits this machine, and would be its profile.")
    elif verdict.fits:
        click.echo(f"It fits this machine, but {recognised.profile.name} tells more about it and would win.")
        click.echo(f'To come before that one, build on it: extends = "{recognised.profile.name}"')
    else:
        missed = "; ".join(rule.reason for rule in verdict.rules if not rule.held)
        click.echo(f"It does not fit this machine: {missed}.")
    if file.resolve().parent != home.profiles.resolve():
        click.echo(f"To use it, put it into {home.profiles}", err=True)


@profile.command()
def schema() -> None:
    """Print the JSON Schema of a profile, for editors that check TOML."""
    from agent.device.profile_files import schema_text

    click.echo(schema_text(), nl=False)
