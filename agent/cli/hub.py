"""`bramble hub`: run a community's hub."""

from __future__ import annotations

import sys
from typing import Any

import click

from agent.cli.hub_broker import broker_config, revocation_list
from agent.cli.hub_members import COMMANDS
from agent.cli.options import as_json, events_json, hub_home, print_json, with_parent
from agent.cli.values import DURATION, NAMES
from agent.paths import Home, default_home


@click.group()
def hub() -> None:
    """Run a community's hub."""


@hub.command("init")
@hub_home
@click.option("--name", default="A Bramble community", show_default=True, help="What members will see.")
@click.option("--base", help="GGUF that everybody trains, a file or a name on the shelf; the seedling if not given.")
@click.option(
    "--broker",
    help="URL of your own MQTT broker, or several with commas between, tried in order; an embedded one if not given.",
)
@click.option("--device-broker", help="URL for devices, with an account of theirs, if it is not the hub's.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Of the embedded broker; 0 picks one and keeps it."
)
@click.option("--quorum", type=click.IntRange(1), default=2, show_default=True, help="Updates a round needs at least.")
@click.option(
    "--target",
    type=click.IntRange(1),
    help="Updates that end a round at once. [default: as many as are --wanted, or 3]",
)
@click.option("--collect", type=DURATION, default="1h", show_default=True, help="How long a round collects updates.")
@click.option("--trial", type=DURATION, default="10m", show_default=True, help="How long devices may try a candidate.")
@click.option(
    "--mode",
    type=click.Choice(["synchronous", "asynchronous"]),
    default="synchronous",
    show_default=True,
    help="Rounds for all at once; or devices train whenever they like, and each --buffer updates are merged.",
)
@click.option(
    "--buffer", type=click.IntRange(1), default=10, show_default=True, help="Updates of an asynchronous merge."
)
@click.option("--wanted", type=click.IntRange(1), help="Devices drawn for a round when there are more. [default: all]")
@click.option(
    "--max-staleness", type=click.IntRange(0), default=2, show_default=True, help="Rounds an update may be late."
)
@click.option(
    "--staleness-power",
    type=click.FloatRange(0, 10),
    default=0.5,
    show_default=True,
    help="An update that is late by N releases weighs (1 + N) ^ -this.",
)
@click.option("--keep-releases", type=click.IntRange(1), default=10, show_default=True, help="To go back to.")
@click.option("--rank", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--targets", type=NAMES, help="Layers that are changed, such as q_proj,v_proj. [default: all]")
@click.option("--steps", type=click.IntRange(1), default=40, show_default=True, help="Training steps a round.")
@click.option("--batch-size", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--window", type=click.IntRange(16, 8192), default=256, show_default=True, help="Tokens a window.")
@click.option("--learning-rate", type=float, default=None, help="Highest learning rate.")
@click.option(
    "--merge-rule", help="How updates are merged, by the name of an installed rule. [default: the best measured]"
)
@click.option(
    "--robust",
    type=click.Choice(["clipping", "geometric-median", "multi-krum", "trimmed-mean", "median"]),
    help="What keeps single devices from steering a merge, besides clipping. [default: the best measured]",
)
@click.option("--mixing", is_flag=True, help="Average each update with its nearest neighbours before --robust.")
@click.option(
    "--hostile",
    type=click.FloatRange(0, 0.5, max_open=True),
    help="Share of a merge that may be hostile, for --robust and --mixing.",
)
@click.option(
    "--outer", type=click.Choice(["none", "nesterov", "fedadam"]), help="Outer optimiser of the merged change."
)
@click.option(
    "--compression",
    type=click.Choice(["int8", "int4", "topk", "none"]),
    help="Of updates. topk sends least, at some loss of quality. [default: the best measured]",
)
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the numbers that topk sends; at 0.1, fedavg diverged in bench/quality.py. [default: 0.25]",
)
@click.option("--rounds", type=click.IntRange(1), default=None, help="Close after so many rounds; never if not given.")
@click.option(
    "--heartbeat", type=DURATION, default="60s", show_default=True, help="How often to repeat the announcement."
)
@click.option("--approval", is_flag=True, help="Let a steward approve each newcomer (`bramble hub members`).")
@click.option("--operator", default="", help="Who runs this hub, and how to reach them; newcomers see it.")
@click.option("--allow-plaintext", is_flag=True, help="Use an unencrypted broker on another machine. Think twice.")
@as_json
def init(home: Home, **options: Any) -> None:
    """Create a community: keys, charter, database, release 0."""
    from pydantic import ValidationError

    from agent.cli.plaintext import warn_if_unencrypted
    from agent.errors import SettingsError
    from agent.governance.charter import Charter, OuterOptimiser, RobustRules, RoundRules, TrainingPlan
    from agent.hub.merge.defence import require_fitting
    from agent.hub.merge.rule import load_rule
    from agent.hub.setup import HubPlan, create_hub, describe_base
    from agent.llm.seedling import SEEDLING_PATH
    from agent.service import named_base, shelf_of
    from agent.transport.address import without_credentials

    if options["wanted"] and options["mode"] == "asynchronous":
        raise SettingsError(
            "--wanted draws devices for a round, and in asynchronous mode they train whenever they like",
            advice="Leave one of the two out.",
        )
    device = Home(default_home("device"))
    base = named_base(device, options["base"]) if options["base"] else SEEDLING_PATH
    described = describe_base(base)
    described["base_name"] = shelf_of(device).name_of(base) or described["base_name"]
    if options["targets"]:
        described["target_modules"] = options["targets"]
    plan = {key: options[key] for key in ("steps", "batch_size", "window")}
    if options["learning_rate"] is not None:
        plan["learning_rate"] = options["learning_rate"]
    plan["warmup_steps"] = max(1, options["steps"] // 10)
    chosen = {key: options[key] for key in ("merge_rule", "compression", "density") if options[key] is not None}
    rule = load_rule(options["merge_rule"] or Charter.model_fields["merge_rule"].default)
    plan["moments"] = "kept" if rule.linear else "fresh"  # other rules change what the numbers of a factor mean
    said = {"name": options["robust"], "hostile": options["hostile"], "mixing": options["mixing"] or None}
    chosen["robust"] = robust = RobustRules(**{key: value for key, value in said.items() if value is not None})
    require_fitting(rule, robust)
    if options["outer"]:
        chosen["outer"] = OuterOptimiser(name=options["outer"])
    try:
        charter = Charter(
            name=options["name"],
            rank=options["rank"],
            alpha=2.0 * options["rank"],
            training=TrainingPlan(**plan),
            rounds=RoundRules(
                mode=options["mode"],
                buffer=options["buffer"],
                wanted=options["wanted"],
                max_staleness=options["max_staleness"],
                staleness_power=options["staleness_power"],
                quorum=options["quorum"],
                target=max(options["target"] or options["wanted"] or 3, options["quorum"]),
                collect_seconds=options["collect"],
                trial_seconds=options["trial"],
            ),
            **chosen,
            **described,
        )
    except ValidationError as cause:
        first = cause.errors()[0]
        raise SettingsError(
            f"the charter cannot have {'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}",
            advice="Correct that option; `bramble hub init --help` lists them.",
        ) from cause
    hub_plan = HubPlan(
        name=options["name"],
        base=base,
        broker=options["broker"],
        device_broker=options["device_broker"],
        last_round=options["rounds"],
        charter=charter,
        allow_plaintext=options["allow_plaintext"],
        heartbeat_seconds=options["heartbeat"],
        keep_releases=options["keep_releases"],
        admission="approval" if options["approval"] else "automatic",
        operator=options["operator"],
    )
    config = create_hub(home, hub_plan, port=options["port"])
    for urls in filter(None, (options["broker"], options["device_broker"])):
        warn_if_unencrypted(urls)
    if options["as_json"]:
        broker = without_credentials(config.broker)
        print_json({"community": config.community, "broker": broker, "base_sha256": charter.base_sha256})
        return
    click.echo(f"Community {charter.name!r} was created in {home.root}.")
    click.echo("Next: bramble hub run, and in another terminal: bramble hub invite")


@hub.command("run")
@hub_home
@click.option("--metrics", metavar="HOST:PORT", help="Serve metrics for Prometheus there, such as 127.0.0.1:9464.")
@events_json
@with_parent
def run(home: Home, metrics: str | None, events_json: bool, with_parent: bool) -> None:
    """Run the hub (and the embedded broker, if the community uses it) until stopped."""
    from agent.events import Events
    from agent.hub.process import run_hub_process

    events = Events(stream=sys.stdout if events_json else sys.stderr, as_json=events_json)
    run_hub_process(home, events=events, metrics=metrics, with_parent=with_parent)


@hub.command("status")
@hub_home
@as_json
def status(home: Home, as_json: bool) -> None:
    """Say where the rounds are, who takes part, and what was released."""
    from agent.cli.hub_shown import show_status
    from agent.hub.reporting import hub_status
    from agent.hub.store import open_store
    from agent.paths import in_use

    with open_store(home) as store:
        found = {**hub_status(store), "running": in_use(home)}
    if as_json:
        print_json(found)
    else:
        show_status(found)


@hub.command("round")
@hub_home
@click.argument("number", type=click.IntRange(1))
@as_json
def show_one_round(home: Home, number: int, as_json: bool) -> None:
    """Say who took part in round NUMBER, what they sent, and what the gate made of it."""
    from agent.cli.hub_shown import show_round
    from agent.hub.reporting import round_report
    from agent.hub.store import open_store

    with open_store(home) as store:
        found = round_report(store, number)
    if as_json:
        print_json(found)
    else:
        show_round(found)


@hub.command("rollback")
@hub_home
@click.argument("release", type=click.IntRange(0))
@as_json
def rollback(home: Home, release: int, as_json: bool) -> None:
    """Go back to RELEASE: devices follow, and what was trained from later releases no longer counts.

    The hub may run or not. The round under way ends, and the next one, if there is to be one, starts from RELEASE.
    """
    from agent.hub.going_back import roll_back

    done = roll_back(home, release)
    withdrawn = list(done.withdrawn)
    if as_json:
        said = {"release": release, "sha256": done.release.sha256, "withdrawn": withdrawn, "round": done.round}
        print_json({**said, "phase": done.phase, "next_round": done.next_round})
        return
    click.echo(f"Release {release} stands again; withdrawn: {', '.join(map(str, withdrawn))}.")
    ends = f"Round {done.round} ({done.phase}) ends"
    if done.phase == "closed":
        click.echo("The community is closed: devices go back to it, and no round follows.")
    elif done.next_round is None:
        click.echo(f"{ends}. It was the last: devices go back, and no round follows.")
    else:
        click.echo(f"{ends}, and round {done.next_round} starts from release {release}.")


hub.add_command(broker_config)
hub.add_command(revocation_list)
for _command in COMMANDS:
    hub.add_command(_command)
