"""The picture of ``bench/attacks.py``."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

HIGHEST = 0.12
"""Rise of the loss above which a bar is cut, with its value on it."""
LIMIT = 0.03


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw by how much each attack raised the final loss, a group of bars an attack, a bar a rule."""
    import matplotlib  # noqa: PLC0415 (heavy, and only needed here)

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after choosing the backend)

    rises: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in found["rows"]:
        rises[row["attack"], row["rule"]].append(float("inf") if row["rise"] is None else row["rise"])
    attacks = list(dict.fromkeys(row["attack"] for row in found["rows"] if row["attack"] != "none"))
    rules = list(dict.fromkeys(row["rule"] for row in found["rows"]))
    usual = {row["rule"] for row in found["rows"] if row["default"]}
    figure, axes = plt.subplots(figsize=(9.5, 4.2), layout="constrained")
    width = 0.8 / max(1, len(rules))
    for index, rule in enumerate(rules):
        means = [statistics.fmean(rises.get((attack, rule), [0.0])) for attack in attacks]
        places = [place + (index - (len(rules) - 1) / 2) * width for place in range(len(attacks))]
        axes.bar(
            places,
            [min(mean, HIGHEST) for mean in means],
            width,
            label=f"{rule} (default)" if rule in usual else rule,
            color="#999999" if rule == "plain" else f"C{index}",
            edgecolor="black" if rule in usual else "none",
        )
        for place, mean in zip(places, means, strict=True):
            if mean > HIGHEST:
                words = "no number" if mean == float("inf") else f"+{mean:.0%}"
                axes.annotate(words, (place, HIGHEST), ha="center", va="bottom", fontsize=8, rotation=90)
    axes.axhline(LIMIT, color="#777777", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(attacks)), attacks)
    axes.set_ylim(top=HIGHEST * 1.25)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("rise of the final loss over the clean run")
    recipe = found["recipe"]
    axes.set_title(f"{recipe['hostile']} hostile devices of {recipe['devices']}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
