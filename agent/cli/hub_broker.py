"""`bramble hub broker-config` and `bramble hub revocation-list`: files for a broker of the community's own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from agent.cli.options import as_json, hub_home, print_json
from agent.cli.values import DURATION
from agent.paths import Home


@click.command("broker-config")
@hub_home
@click.option(
    "--host",
    "hosts",
    multiple=True,
    required=True,
    help="Name or address at which devices reach the broker; give it again for more of them. Invites have the first.",
)
@click.option("--kind", type=click.Choice(["mosquitto", "emqx"]), default="mosquitto", show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Directory. [default: broker, in HOME]")
@click.option(
    "--installed-in",
    type=click.Path(path_type=Path),
    help="Where the files will lie on the broker's machine, if not in --out.",
)
@click.option("--listen", default="", help="Address that the broker listens on. [default: all]")
@click.option("--port", type=click.IntRange(1, 65535), default=8883, show_default=True, help="For members.")
@click.option(
    "--newcomers-port", type=click.IntRange(1, 65535), default=8884, show_default=True, help="For who has an invite."
)
@click.option(
    "--certificate-life",
    type=DURATION,
    default="30d",
    show_default=True,
    help="Of a device's certificate; it is renewed.",
)
@as_json
def broker_config(home: Home, hosts: tuple[str, ...], out: Path | None, **options: Any) -> None:
    """Write the configuration of a broker of your own, with TLS 1.3 and a certificate for each device.

    The hub uses that broker from its next start on, and invites lead to it.
    """
    from agent.hub.broker_files import BrokerPlan, write_broker_files
    from agent.hub.store import open_store
    from agent.paths import in_use
    from agent.transport.address import without_credentials

    with open_store(home) as store:
        before, members = store.config.broker, store.count_devices()
    plan = BrokerPlan(
        hosts=hosts,
        directory=out or home.root / "broker",
        kind=options["kind"],
        installed_in=options["installed_in"],
        listen=options["listen"],
        port=options["port"],
        newcomers_port=options["newcomers_port"],
        certificate_seconds=options["certificate_life"],
    )
    config = write_broker_files(home, plan, now=time.time())
    if options["as_json"]:
        newcomers = without_credentials(config.device_broker)
        print_json({"directory": config.broker_directory, "broker": config.broker, "newcomers": newcomers})
        return
    click.echo(f"The files of a {plan.kind} are in {config.broker_directory}; README.md there says how to start it.")
    click.echo(f"The hub and its members use {config.broker}, newcomers port {plan.newcomers_port}.")
    if in_use(home):
        click.echo("The hub runs: stop it and start it again, so that it uses this broker.")
    if members and before != config.broker:
        click.echo(
            f"{members} device(s) joined over {without_credentials(before)}: they must join again to come along."
        )
    if plan.kind == "mosquitto":
        click.echo(f"Next: mosquitto -c {config.broker_directory}/mosquitto.conf, then bramble hub run")
        if os.name == "posix" and os.geteuid() == 0:
            click.echo("As root, mosquitto gives its rights up and cannot read them there: README.md says what to do.")


@click.command("revocation-list")
@hub_home
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File. [default: standard output]")
def revocation_list(home: Home, out: Path | None) -> None:
    """Sign the list of revoked certificates anew, for a broker on another machine."""
    from agent.hub.issuing import published
    from agent.hub.store import open_store
    from agent.paths import write_atomically

    with open_store(home) as store:
        signed = published(store, now=time.time())
    if out is None:
        click.echo(signed.decode(), nl=False)
        return
    write_atomically(out, signed, mode=0o644)
    click.echo(f"The list is in {out}. The broker reads it when it is reloaded (mosquitto: SIGHUP).")
