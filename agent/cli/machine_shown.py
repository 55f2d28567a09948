"""A machine and its profile, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.device.llama_build import install_commands

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from agent.device.machine import Machine
    from agent.device.recognition import Verdict
    from agent.device.sensors.watch import Report


def machine_as_dict(machine: Machine) -> dict[str, object]:
    """Give everything for ``--json``."""
    profile, hardware = machine.profile, machine.hardware
    commands = install_commands(profile.llama, system=hardware.system)
    return {
        "hardware": hardware.to_dict(),
        "profile": profile.model_dump(),
        "path": str(machine.origin),
        "reasons": list(machine.recognised.reasons),
        "verdicts": [_verdict_as_dict(verdict, machine) for verdict in machine.recognised.verdicts],
        "training": {
            **profile.training.model_dump(exclude={"cores", "spare_cores", "memory_share"}),
            "threads": machine.budget.threads,
            "memory_mb": machine.budget.memory_mb,
        },
        "answering": {
            "threads": profile.runtime.threads_for(hardware),
            "context": profile.runtime.context,
            "batch": profile.runtime.batch,
            "gpu_layers": profile.runtime.gpu_layers,
        },
        "governor": machine.governor.model_dump(),
        "base": machine.base.model_dump() if machine.base else None,
        "install": {"compile": commands.compile, "wheel": commands.wheel, "note": profile.llama.note},
        "sensors": [
            {
                "name": report.name,
                "values": report.values,
                "absent": list(report.absent),
                "trouble": report.trouble,
                "expected": report.name in profile.sensors.expected,
            }
            for report in machine.sense()
        ],
    }


def _verdict_as_dict(verdict: Verdict, machine: Machine) -> dict[str, object]:
    return {
        "profile": verdict.profile.name,
        "fits": verdict.fits,
        "won": verdict.profile is machine.profile,
        "score": verdict.score,
        "rules": [{"rule": rule.name, "held": rule.held, "reason": rule.reason} for rule in verdict.rules],
    }


def show_machine(machine: Machine) -> None:
    """Print it."""
    from agent.cli.tables import wide_console

    console = wide_console()
    hardware, profile = machine.hardware, machine.profile
    _title(console, f"{hardware.board or hardware.cpu_model or hardware.machine}")
    _rows(console, _what_it_is(machine))
    _title(console, f"{profile.title} ({profile.name})")
    for reason in machine.recognised.reasons:
        console.print(f"  · {reason}", markup=False, highlight=False)
    console.print(f"  from {machine.origin}", style="dim", markup=False, highlight=False, soft_wrap=True)
    _title(console, "What suits it")
    _rows(console, _what_suits(machine))
    _title(console, "llama.cpp for this processor")
    commands = install_commands(profile.llama, system=hardware.system)
    console.print(f"  {commands.compile}", markup=False, highlight=False, soft_wrap=True)
    if commands.wheel:
        console.print("  or, where there is one for your Python, built already:", style="dim")
        console.print(f"  {commands.wheel}", markup=False, highlight=False, soft_wrap=True)
    if profile.llama.note:
        console.print(f"  {profile.llama.note}", style="dim", markup=False, highlight=False, soft_wrap=True)
    _title(console, "What its sensors say")
    _rows(console, (_sensed(report, machine) for report in machine.sense()))
    _title(console, "Every profile, and which of its rules hold")
    _show_verdicts(console, machine)


def _what_it_is(machine: Machine) -> list[tuple[str, str, str]]:
    found = machine.hardware
    cores = f"{found.physical_cores} cores, {found.logical_cores} threads"
    limited = "" if found.usable_cores == found.logical_cores else f"of which this process may use {found.usable_cores}"
    rows = [
        ("system", f"{found.system}, {found.machine}", ""),
        ("processor", found.cpu_model or "unknown", ", ".join(sorted(found.features))),
        ("cores", cores, limited),
        ("memory", f"{found.memory_mb:,} MiB", ""),
        ("graphics", ", ".join(found.gpus) or "none seen", ""),
        ("chassis", found.chassis, "with a battery" if found.battery else ""),
    ]
    named = " ".join(part for part in (found.vendor, found.product) if part)
    return [*rows, ("machine", named, "")] if named else rows


def _what_suits(machine: Machine) -> list[tuple[str, str, str]]:
    plan, runtime, hardware = machine.profile.training, machine.profile.runtime, machine.hardware
    base, heat, busy = machine.base, machine.governor.temperature, machine.governor.busy
    zones = f"of {', '.join(heat.zones)}" if heat.zones else "of the hottest of the processor's sensors"
    suited = (
        (
            "base",
            f"{base.model} {base.quantisation}",
            f"a file of {base.file_mb:,} MiB, training takes up to {base.training_mb:,}: {base.why}",
        )
        if base
        else ("base", "none known", f"for {hardware.memory_mb:,} MiB; the seedling that comes along always works")
    )
    layers = {"all": "every layer on the graphics processor", 0: "on the processor alone"}
    return [
        suited,
        (
            "training",
            f"{machine.budget.threads} threads",
            f"up to {machine.budget.memory_mb:,} MiB of memory",
        ),
        (
            "",
            f"compute {plan.compute}",
            "measured once" if plan.compute == "auto" else "as the profile says",
        ),
        ("", f"rank up to {plan.max_rank}", f"{plan.rank} where nobody says"),
        (
            "",
            f"{plan.micro_batch} windows a pass",
            f"at most; {plan.batch} a step of {plan.window} tokens where nobody says",
        ),
        (
            "answering",
            f"{runtime.threads_for(hardware)} threads",
            layers.get(runtime.gpu_layers, f"{runtime.gpu_layers} layers on the graphics processor"),
        ),
        ("", f"{runtime.context:,} tokens", f"of context, read {runtime.batch} at a time"),
        ("pauses", f"at {heat.stop:g} °C", f"until {heat.resume:g} °C; {zones}"),
        ("", f"at {busy.stop:g} % of others", "of all cores; the other rules are in docs/governor.md"),
    ]


def _sensed(report: Report, machine: Machine) -> tuple[str, str, str]:
    """Give a row about one sensor: its name, what it says, and why it says nothing or not all."""
    said = ", ".join(f"{name.replace('_', ' ')} {_spoken(value)}" for name, value in sorted(report.values.items()))
    missing = " and ".join(name.replace("_", " ") for name in report.absent)
    about = report.trouble or (f"there is no {missing} here" if missing else "")
    expected = report.name in machine.profile.sensors.expected
    return report.name, said or "-", f"expected here! {about}" if expected and not said else about


def _spoken(value: float | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:,.1f}"


def _show_verdicts(console: Console, machine: Machine) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for verdict in machine.recognised.verdicts:
        word = "wins" if verdict.profile is machine.profile else "fits" if verdict.fits else "no"
        lines = Text("\n").join(
            Text(f"{'✓' if rule.held else '✗'} {rule.reason}", style="" if rule.held else "dim")
            for rule in verdict.rules
        )
        name = Text(f"  {verdict.profile.name}", style="bold" if word == "wins" else "" if verdict.fits else "dim")
        table.add_row(name, Text(word, style="green" if verdict.fits else "dim"), lines or Text("it has no rules"))
    console.print(table)


def _title(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold", markup=False, highlight=False)


def _rows(console: Console, rows: Iterable[Sequence[str]]) -> None:
    """Print rows of a name, a value and words about it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, min_width=15)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", style="dim")
    for name, value, about in rows:
        table.add_row(Text(f"  {name}"), Text(value), Text(about))
    console.print(table)
