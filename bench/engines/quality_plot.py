"""The picture of ``bench/quality.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LOWEST = 0.6
"""Share of the gain below which a point is drawn at the edge, with its value beside it."""
BYTES = (15, 30, 60, 150, 300, 600)
"""Ticks, in thousands."""


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw gain against bytes, one point a rule and compression, with its spread over the seeds."""
    import matplotlib  # noqa: PLC0415 (heavy, and only needed here)

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after choosing the backend)

    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    markers = {"none": "o", "int8": "s", "int4": "D", "topk": "^"}
    colours = {"fedavg": "C0", "stack": "C1", "alternate": "C2", "ffa": "C3"}
    labelled: set[str] = set()
    for row in found["summary"]:
        if not row["compression"]:
            continue
        mean = row["gain_fraction"]
        spread = [[mean - row["gain_fraction_min"]], [row["gain_fraction_max"] - mean]]
        if mean < LOWEST:
            axes.annotate(f"{mean:.2f}", (row["bytes_per_update"] / 1000, LOWEST), (8, 0), textcoords="offset points")
            mean, spread = LOWEST, [[0.0], [0.0]]
        axes.errorbar(
            row["bytes_per_update"] / 1000,
            mean,
            yerr=spread,
            color=colours.get(row["rule"], "C9"),
            marker=markers.get(row["compression"], "x"),
            markersize=10 if row["default"] else 6,
            markeredgecolor="black" if row["default"] else "none",
            linestyle="none",
            capsize=2,
            label=None if row["rule"] in labelled else row["rule"],
        )
        labelled.add(row["rule"])
    for row in found["summary"]:
        if row["rule"] in {"centralised", "alone"}:
            axes.axhline(row["gain_fraction"], color="#777777", linestyle=":", linewidth=1)
            axes.annotate(
                row["rule"], (1, row["gain_fraction"]), xycoords=("axes fraction", "data"), ha="right", va="bottom"
            )
    for name, marker in markers.items():
        axes.plot([], [], marker=marker, color="#555555", linestyle="none", label=name)
    axes.set_xscale("log")
    axes.set_xticks(BYTES, [str(each) for each in BYTES])
    axes.minorticks_off()
    axes.set_ylim(bottom=LOWEST - 0.02)
    axes.set_xlabel("thousand bytes an update, sealed")
    axes.set_ylabel("share of the centralised gain")
    devices = found["recipe"]["devices"]
    axes.set_title(f"{devices} devices: what each rule and compression recovers (default: black edge)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, ncols=2)
    figure.savefig(path, dpi=130)
    plt.close(figure)
