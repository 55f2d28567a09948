"""What a training will take, and what came of it, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cli.values import spoken

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from agent.federation.alone.order import Order
    from agent.federation.alone.record import Comparison, TrainingRecord
    from agent.training.job import PlanResult, PrepareResult

_CHART_WIDTH, _CHART_HEIGHT = 90, 16
_SMOOTHED = 24


def show_plan(console: Console, order: Order, plan: PlanResult) -> None:
    """Print what a training will take, and why it is as it is."""
    limit = "allowed" if order.memory_mb else "free now"
    passes = f"{plan.micro_batch} x {plan.accumulation}"
    accumulated = "windows a pass x passes a step" if plan.accumulation > 1 else "windows a pass, one pass a step"
    targets = ", ".join(order.target_modules)
    layers = f" of the last {order.last_layers} layers" if order.last_layers else ""
    rows = [
        ("tokens", f"{plan.tokens:,}", f"{plan.windows:,} windows, {plan.epochs:.3g} times"),
        ("steps", f"{plan.steps:,}", f"of {plan.batch_size} windows; held-out text may stop it earlier"),
        ("batch", passes, accumulated),
        ("sequence", f"{plan.window:,}", "tokens in a window"),
        ("time", spoken(plan.seconds), f"at {plan.tok_s:,.0f} tokens/s"),
        ("memory", f"{plan.peak_mb:,.0f} MiB", f"at its peak, of {plan.memory_mb:,.0f} MiB {limit}"),
        ("disk", f"{plan.disk_mb:,.0f} MiB", "while it trains"),
        ("compute", plan.compute, ""),
        ("checkpointing", "yes" if plan.checkpointing else "no", "keeps less and computes it again"),
        ("trunk cache", "yes" if plan.trunk_cache else "no", "keeps what unchanged layers give on disk"),
        ("adapter", f"{plan.parameters:,}", f"numbers: rank {order.rank} on {targets}{layers}"),
    ]
    _print_rows(console, rows)
    for reason in plan.reasons:
        console.print(f"  · {reason}", markup=False, style="dim", soft_wrap=True)
    if not plan.fits:
        console.print("This does not fit.", style="red")


def show_text(console: Console, text: PrepareResult) -> None:
    """Say what the text became."""
    console.print(
        f"{text.documents:,} documents, {text.conversations:,} of them conversations, became {text.train_windows:,}"
        f" windows to train on and {text.heldout_windows:,} to judge by; {text.repeats:,} passages repeat others",
        soft_wrap=True,
    )
    if text.cut:
        console.print(
            f"{text.cut:,} conversations are longer than a window and were cut: a longer one (--window) keeps more",
            soft_wrap=True,
        )
    if text.skipped_count:
        console.print(
            f"{text.skipped_count:,} files or lines were not used: `bramble data preview` says which", soft_wrap=True
        )


def show_record(console: Console, record: TrainingRecord, out: Path) -> None:
    """Print what came of a training, beside what was planned."""
    found, memory, seconds = record.heldout, record.memory_mb, record.seconds
    early = ", and stopped: held-out loss fell no more" if record.stopped_early else ""
    since = f", since step {record.resumed_from}" if record.resumed_from else ""
    judged = f"{found.adapter / found.base - 1:+.1%}, nats a token; llama.cpp, {found.targets:,} tokens"
    of = f"of {record.plan.steps:,}{early}; the adapter is that of step {record.best_step}"
    rows = [
        ("held-out loss", f"{found.base:.3f} -> {found.adapter:.3f}", judged),
        ("steps", f"{record.steps:,}", of),
        ("memory", f"{memory.measured:,.0f} MiB", _planned(memory, f"{memory.planned:,.0f} MiB")),
        ("time", spoken(seconds.measured), _planned(seconds, spoken(seconds.planned)) + since),
    ]
    _print_rows(console, rows)
    if found.adapter >= found.base:
        console.print("The adapter is no better than the base on text that it did not see.", style="red")
    console.print(f"\nIn {out}: adapter.safetensors, adapter.gguf, peft/, training.json", markup=False, soft_wrap=True)
    console.print("It learned from your text and may give parts of it away; whom you give it is for you to decide.")
    console.print("Use it:")
    for command in record.use:
        console.print(f"  {command}", markup=False, soft_wrap=True)


def show_curve(console: Console, record: TrainingRecord) -> None:
    """Draw the losses by step in the terminal."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(console.width, _CHART_WIDTH), _CHART_HEIGHT)
    steps, losses = _smooth(record.losses)
    plotext.plot(steps, losses, label="training", marker="braille")
    looked, heldout = zip(*record.heldout_curve, strict=True)
    plotext.plot(looked, heldout, label="held out", marker="●")
    plotext.xticks(sorted({len(record.losses) * part // 4 for part in range(5)}))
    plotext.title("loss by step, nats a token")
    plain = console.no_color or not console.is_terminal
    console.file.write((plotext.uncolorize(plotext.build()) if plain else plotext.build()) + "\n")


def _smooth(losses: Sequence[float]) -> tuple[list[int], list[float]]:
    """Give the means of neighbouring steps, and their last steps: a curve that a terminal can show."""
    size = max(1, len(losses) // _SMOOTHED)
    groups = [losses[first : first + size] for first in range(0, len(losses), size)]
    ends = [min(len(losses), first + size) for first in range(0, len(losses), size)]
    return ends, [sum(group) / len(group) for group in groups]


def _planned(numbers: Comparison, words: str) -> str:
    return f"planned {words} ({numbers.error:+.0%})"


def _print_rows(console: Console, rows: Sequence[tuple[str, str, str]]) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
