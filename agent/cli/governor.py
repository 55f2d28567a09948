"""`bramble governor`: when training may run on this machine, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import as_json, device_home, print_json
from agent.cli.values import DURATION, spoken
from agent.paths import Home

if TYPE_CHECKING:
    from agent.device.governor import Decision, RuleState
    from agent.device.readings import Readings
    from agent.device.sensors.watch import Report, Watch
    from agent.thresholds import GovernorSettings

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)
_LOOK_SECONDS = 1.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def governor() -> None:
    """When training may run on this machine, and why not (docs/governor.md)."""


@governor.command()
@device_home
@as_json
def explain(home: Home, as_json: bool) -> None:
    """Read every sensor now, and say what a governor that started now would decide and how each rule stands.

    A training that is under way counts as another program here; the daemon that started it knows better.
    """
    import time
    from datetime import datetime

    from agent.device.governor import Governor

    settings = _settings(home)
    with _watch(home, settings) as watch:
        watch.read()
        time.sleep(_LOOK_SECONDS)  # what other programs use is measured between two looks
        readings = watch.refreshed()
        reports = watch.reports
    found = Governor(settings)
    decision = found.update(readings, monotonic=0.0, wall=datetime.now().astimezone().replace(tzinfo=None))
    if as_json:
        print_json(_explained(decision, found.states, readings, reports))
    else:
        _show(decision, found.states, readings, reports)


@governor.command()
@click.argument("file", type=_NEW_FILE)
@device_home
@click.option("--every", type=DURATION, default=60.0, show_default="60s", help="How often to write a line.")
@click.option("--for", "length", type=DURATION, default=7 * 86_400.0, show_default="7d", help="How long to record.")
def record(file: Path, home: Home, every: float, length: float) -> None:
    """Write what the sensors say to FILE, a line of JSON each time, for `replay`. A file that is there gets longer.

    A line holds numbers such as idle seconds and temperatures, and nothing of what anybody types or runs.
    """
    import time
    from datetime import datetime

    from agent.device.readings import Recorded

    with _watch(home, _settings(home)) as watch, file.open("a", encoding="utf-8") as lines:
        words = f"Writing a line to {file} every {spoken(every)}, for {spoken(length)}. Ctrl-C ends it earlier."
        click.echo(f"{words} What is written can be replayed at any time: bramble governor replay {file}", err=True)
        end = time.monotonic() + length
        while True:
            now = datetime.now().astimezone()
            lines.write(Recorded(at=now, readings=watch.read()).to_line() + "\n")
            lines.flush()
            if time.monotonic() + every > end:
                return
            time.sleep(every)


@governor.command()
@click.argument("file", type=_FILE)
@device_home
@click.option("--plot", type=_NEW_FILE, help="Draw it as a PNG.")
@click.option("--title", default="", help="What the drawing is called.")
@as_json
def replay(file: Path, home: Home, plot: Path | None, title: str, as_json: bool) -> None:
    """Say what would have run when, and why not, had this device's settings governed the recording in FILE."""
    from agent.device.readings import read_recording
    from agent.device.replay import replay as replay_recording

    with file.open(encoding="utf-8", errors="replace") as lines:
        replayed = replay_recording(read_recording(lines, name=str(file)), _settings(home))
    if plot is not None:
        from agent.device.replay_plot import draw

        draw(replayed, plot, title=title)
    if as_json:
        print_json(replayed.as_dict())
        return
    for stretch in replayed.stretches:
        click.echo(f"{stretch.begins:%a %d %b %H:%M:%S}  {spoken(stretch.seconds):>10}  {stretch.sentence}")
    whole = max(replayed.seconds, 1.0)
    click.echo(f"\nOf {spoken(whole)}:")
    for name, seconds in replayed.by_action.items():
        click.echo(f"  {name:<12} {100 * seconds / whole:5.1f} %  {spoken(seconds)}")
    click.echo(f"Training began or went on {replayed.starts} times. How long each rule held:")
    for name, seconds in replayed.by_reason.items():
        click.echo(f"  {name:<12} {100 * seconds / whole:5.1f} %  {spoken(seconds)}")
    for name, share in replayed.unknown.items():
        click.echo(f"  {name} was not known {100 * share:.0f} % of the time")


def _settings(home: Home) -> GovernorSettings:
    from agent.service import settings_of

    return settings_of(home).governor


def _watch(home: Home, settings: GovernorSettings) -> Watch:
    from agent.device.sensors.sensor import Place
    from agent.device.sensors.watch import Watch, sensors_of

    zones, space = tuple(settings.temperature.zones), settings.limits.disk_mb is not None
    return Watch(sensors_of(Place(home=home.root, zones=zones, space=space)))


def _explained(
    decision: Decision, states: tuple[RuleState, ...], readings: Readings, reports: tuple[Report, ...]
) -> dict[str, object]:
    from dataclasses import asdict

    from agent.device.readings import QUANTITIES

    return {
        "decision": decision.as_dict(),
        "rules": [asdict(state) for state in states],
        "readings": {name: getattr(readings, name) for name in QUANTITIES},
        "absent": sorted(readings.absent),
        "sensors": [asdict(report) for report in reports],
    }


def _show(decision: Decision, states: tuple[RuleState, ...], readings: Readings, reports: tuple[Report, ...]) -> None:
    from rich.table import Table

    from agent.cli.tables import show_table
    from agent.device.readings import QUANTITIES

    click.echo(f"{decision.sentence}\n")
    rules = Table("rule", "forbids", "holds", "its reading says", box=None)
    for state in states:
        forbids = "transfers" if state.effect == "transfers" else "training"
        rules.add_row(state.code, forbids, "yes" if state.holds else "no", str(state.signal))
    show_table(rules)
    sensors = Table("sensor", "asked every", "took", "says", box=None)
    for report in reports:
        said = ", ".join(f"{name} {_value(value)}" for name, value in report.values.items())
        absent = ", ".join(f"no {name}" for name in report.absent)
        trouble = f"FAILED: {report.trouble}" if report.failed else report.trouble
        says = "; ".join(part for part in (said, absent, trouble) if part)
        sensors.add_row(report.name, f"{report.period:g} s", f"{1e3 * report.cost:.1f} ms", says)
    click.echo()
    show_table(sensors)
    nobody = [name for name in QUANTITIES if getattr(readings, name) is None and name not in readings.absent]
    click.echo(f"\nNot known: {', '.join(nobody) or 'nothing'}. What is not known forbids nothing.")


def _value(value: float | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.1f}"
