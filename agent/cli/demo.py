"""`bramble demo`: the whole product on one machine."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("--devices", type=click.IntRange(1, 32), default=3, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 100), default=4, show_default=True)
@click.option("--text", type=click.Path(path_type=Path, exists=True), multiple=True, help="A folder of text a device.")
@click.option("--broker", help="URL of your own MQTT broker; an embedded one if not given.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the report here.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep everything in this folder.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Training steps a round.")
@click.option("--batch-size", type=click.IntRange(1, 256), default=4, show_default=True)
@click.option("--window", type=click.IntRange(16, 1024), default=256, show_default=True, help="Tokens a window.")
@click.option("--rank", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option("--learning-rate", type=float, default=4e-3, show_default=True)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Where the picture goes.")
def demo(text: tuple[Path, ...], json_path: Path | None, keep: Path | None, plot: Path | None, **plan: object) -> None:
    """Watch a broker, a hub and devices, each its own process, grow one model from real text."""
    import tempfile

    from rich.console import Console

    from agent.demo.plot import draw
    from agent.demo.run import Demo, DemoPlan
    from agent.demo.show import Stage, show_results
    from agent.running import run_until_signalled

    stage = Stage()
    with tempfile.TemporaryDirectory(prefix="bramble-demo-") as temporary:
        directory = (keep or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        work = Demo(plan=DemoPlan(text=text, directory=directory, **plan), stage=stage)  # type: ignore[arg-type]
        report = run_until_signalled(work.run())
        if report is None:
            raise click.Abort
        picture = plot or (keep / "demo.png" if keep else Path("bramble-demo.png"))
        draw(report, picture)
        if json_path:
            json_path.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    console: Console = stage.console
    show_results(console, report)
    console.print(f"\n[bold]{report['prompt']} …[/]")
    for name, answer in report["answers"].items():
        console.print(f"  [bold]{name:<10}[/] … {answer!r}", highlight=False)
    console.print(f"\nPicture: {picture}" + (f" · report: {json_path}" if json_path else ""), highlight=False)
    _what_next(console, keep)


def _what_next(console: object, keep: Path | None) -> None:
    """Say what to try now."""
    from rich.console import Console

    assert isinstance(console, Console)
    lines = ["", "[bold]What to try next[/]"]
    if keep:
        lines.append(f"  bramble chat --home {keep}/device-1      talk to the model that grew here")
        lines.append(f"  bramble hub status --home {keep}/hub     who took part, and what came of it")
    else:
        lines.append(
            "  bramble demo --keep DIR                  keep the devices, then `bramble chat --home DIR/device-1`"
        )
    lines.append("  bramble demo --text DIR --text DIR       let it learn from text of your own")
    lines.append("  bramble hub init, bramble init           start a community for real (README)")
    console.print("\n".join(lines), highlight=False)
