"""What the demo looks like: a live table while it runs, then a table and a chart of losses."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_PLAIN_SECONDS = 5.0
_COLOURS = {
    "training": "yellow",
    "trained": "yellow",
    "judging": "cyan",
    "adopted": "green",
    "promoted": "green",
    "update-accepted": "green",
    "rejected": "red",
    "update-refused": "red",
    "failed": "red",
}


@dataclass(slots=True)
class Row:
    """The live state of one process."""

    state: str = "starting"
    reason: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tok_s: float | None = None


class Stage:
    """Shows the processes of the demo as they go. On a terminal, a live table; elsewhere, lines.

    Args:
        console: where to show; standard error, so that results can be piped.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._rows: dict[str, Row] = {}
        self._live: Live | None = None
        self._began = time.monotonic()
        self._plain_at: dict[str, float] = {}

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Show while the context lasts."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self.console, refresh_per_second=4) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def headline(self, text: str) -> None:
        """Say what the whole does now."""
        self.console.print(f"[bold]{self._clock()}[/]  {text}", highlight=False)

    def clear(self) -> None:
        """Forget the rows: other processes come now."""
        self._rows.clear()

    def hear(self, who: str, event: str, fields: dict[str, Any]) -> None:
        """Take in an event of a process."""
        row = self._rows.setdefault(who, Row())
        if event == "progress":
            row.step, row.steps = int(fields.get("step", 0)), int(fields.get("steps", 0))
            row.loss, row.tok_s = fields.get("loss"), fields.get("tok_s") or row.tok_s
            row.reason = row.reason or str(fields.get("phase", ""))
            self._plain(who, row)
            return
        text = str(fields.get("text", ""))
        if not text:
            return
        row.state, row.reason, row.step, row.steps = event, text, 0, 0
        if event in _COLOURS and event not in {"training", "judging"}:
            self.console.print(f"{self._clock()}  [{_COLOURS[event]}]{who:<9}[/] {text}", highlight=False)

    def _plain(self, who: str, row: Row) -> None:
        """Without a live table, say now and then how far a process is."""
        now = time.monotonic()
        if self._live is not None or now - self._plain_at.get(who, 0.0) < _PLAIN_SECONDS or not row.steps:
            return
        self._plain_at[who] = now
        loss = f", loss {row.loss:.3f}" if row.loss is not None else ""
        self.console.print(f"{self._clock()}  {who:<9} {row.step} of {row.steps}{loss}", highlight=False)

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._began)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, expand=False)
        for title in ("", "doing", "progress", "loss", "tok/s"):
            table.add_column(title, justify="right" if title in {"loss", "tok/s"} else "left", no_wrap=True)
        for who, row in self._rows.items():
            bar = ProgressBar(total=row.steps, completed=row.step, width=24) if row.steps else Text("")
            table.add_row(
                who,
                Text(row.reason[:60], style=_COLOURS.get(row.state, "")),
                bar,
                "" if row.loss is None else f"{row.loss:.3f}",
                "" if row.tok_s is None else f"{row.tok_s:,.0f}",
            )
        return table


def show_results(console: Console, report: dict[str, Any]) -> None:
    """Print the table of losses and the chart."""
    table = Table(title="Held-out loss, nats a token (llama.cpp; lower is better)", title_justify="left")
    table.add_column("model")
    for device, topic in report["topics"].items():
        table.add_column(f"{device}\n{topic}", justify="right")
    table.add_column("all", justify="right", style="bold")
    for name, row in report["losses_by_device"].items():
        style = "green" if name == report["best"] else ""
        table.add_row(name, *(f"{row[device]:.3f}" for device in report["topics"]), f"{row['all']:.3f}", style=style)
    console.print(table)
    console.print(
        f"community {report['community_loss']:.3f} against base {report['base_loss']:.3f}"
        f" ({report['community_loss'] / report['base_loss'] - 1:+.1%})"
        f" and devices alone {report['alone_mean']:.3f}"
        f" · one update {report['bytes_per_update']:,.0f} bytes, {report['fp32_bytes_per_update']:,} as float32"
        f" · torch and llama.cpp differ by {report['peft_vs_llamacpp_loss_diff']:.4f}",
        highlight=False,
    )
    _chart(console, report)


def _chart(console: Console, report: dict[str, Any]) -> None:
    """Draw held-out loss by round in the terminal."""
    import plotext  # noqa: PLC0415 (only where a chart is drawn)

    rounds = list(range(len(report["community_by_round"])))
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(console.width, 90), 16)
    plotext.plot(rounds, report["community_by_round"], label="community", marker="braille")
    plotext.plot([0, rounds[-1]], [report["base_loss"]] * 2, label="base", marker=".")
    plotext.plot([0, rounds[-1]], [report["alone_mean"]] * 2, label="alone (mean)", marker="-")
    plotext.title("held-out loss by round")
    plotext.xticks(rounds)
    print(plotext.uncolorize(plotext.build()) if console.no_color else plotext.build(), file=sys.stderr)  # noqa: T201
