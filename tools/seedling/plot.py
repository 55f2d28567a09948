"""The loss curve for the model card."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure


def plot(log: Path, out: Path) -> None:
    """Draw training and held-out loss over the tokens read, from the trainer's CSV file."""
    with log.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    tokens = [float(row["tokens"]) / 1e6 for row in rows]
    figure = Figure(figsize=(7, 3.6), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    axes.plot(tokens, [float(row["train_loss"]) for row in rows], color="#9db4c0", label="training text")
    axes.plot(tokens, [float(row["held_out_loss"]) for row in rows], color="#2f6f4f", marker=".", label="held-out text")
    axes.set_xlabel("million tokens read")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    minutes = axes.twiny()
    minutes.set_xlim(axes.get_xlim())
    shown = rows[:: max(1, len(rows) // 6)]
    minutes.set_xticks([float(row["tokens"]) / 1e6 for row in shown])
    minutes.set_xticklabels([f"{float(row['seconds']) / 60:.0f}" for row in shown])
    minutes.set_xlabel("minutes")
    axes.legend(frameon=False)
    figure.savefig(out)
