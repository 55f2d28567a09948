"""Draw the losses of a training as a picture: ``python tools/loss_curve.py OUT/training.json PICTURE.png --title T``.

``docs/gsm8k.png`` comes from it. The held-out curve is the trainer's own, on the windows that it looks at; the two
marks are llama.cpp's, on twice as many.
"""

# ruff: noqa: INP001 (a script by itself)
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SMOOTHED = 10
"""Steps whose mean is one point of the training curve."""


def draw(record: dict[str, Any], path: Path, *, title: str) -> None:
    """Draw losses by step, nats a token that counts."""
    losses = record["losses"]
    means = [sum(losses[i : i + SMOOTHED]) / len(losses[i : i + SMOOTHED]) for i in range(0, len(losses), SMOOTHED)]
    ends = [min(len(losses), first + SMOOTHED) for first in range(0, len(losses), SMOOTHED)]
    looked, heldout = zip(*record["heldout_curve"], strict=True)
    judged = record["heldout"]
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    axes.plot(ends, means, color="#9ecae1", linewidth=1.5, label=f"training (mean of {SMOOTHED} steps)")
    axes.plot(looked, heldout, "o-", color="#1b7837", linewidth=2.5, markersize=4, label="held out")
    axes.plot(
        [0, record["best_step"]],
        [judged["base"], judged["adapter"]],
        "x",
        color="#b2182b",
        markersize=9,
        markeredgewidth=2,
        label=f"held out, by llama.cpp: {judged['base']:.2f} → {judged['adapter']:.2f}",
    )
    axes.set_xlabel("step")
    axes.set_ylabel("loss of the answers (nats a token)")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="training.json of a finished `bramble train`")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--title", default="Loss by step")
    given = parser.parse_args()
    draw(json.loads(given.record.read_text()), given.picture, title=given.title)


if __name__ == "__main__":
    main()
