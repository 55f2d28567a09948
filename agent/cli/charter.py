"""`bramble charter`: the rules that the owner agreed to, and what the hub would have changed."""

from __future__ import annotations

import click

from agent.cli.options import as_json, device_home, print_json, yes
from agent.paths import Home


@click.command()
@device_home
@click.option("--accept", is_flag=True, help="Agree to what has changed. The agent must not run.")
@yes
@as_json
def charter(home: Home, accept: bool, yes: bool, as_json: bool) -> None:
    """Show the community's rules: what you agreed to, and what has changed since. Nothing changes without you."""
    from agent.federation.agreed import differences
    from agent.service import accept_charter, charter_review

    agreed, offered = charter_review(home)
    changes = [] if offered is None else differences(agreed, offered)
    if as_json and not accept:
        shown = [{"field": name, "agreed": before, "now": after} for name, before, after in changes]
        print_json({"agreed": agreed.model_dump(mode="json"), "changes": shown})
        return
    for name, before, after in changes:
        click.echo(f"  {name:<28} {before} → {after}", err=True)
    if not accept:
        click.echo(f"You agreed to the charter of {agreed.name!r} ({agreed.licence}, {agreed.base_name}).")
        if changes:
            click.echo("The hub shows another one now. Your device waits: bramble charter --accept, or leave it so.")
        return
    if changes and not yes and not click.confirm("Agree to these changes?", default=False, err=True):
        click.echo("Nothing was changed.")
        return
    membership = accept_charter(home)
    if as_json:
        print_json({"accepted": membership.charter.model_dump(mode="json")})
        return
    click.echo("Agreed. Next: bramble run")
