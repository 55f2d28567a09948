"""The picture of a replayed recording: when training ran, and which rules held."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from agent.device.governor import Action
from agent.device.replay import Replayed

_COLOURS = {Action.RUN: "#1b7837", Action.PAUSE: "#f1a340", Action.LEAVE: "#998ec3", None: "#e0e0e0"}
_NAMES = {
    Action.RUN: "training runs",
    Action.PAUSE: "paused, in memory",
    Action.LEAVE: "paused, memory given back",
    None: "machine off",
}
_HELD = "#4575b4"


def draw(replayed: Replayed, path: Path, *, title: str = "") -> None:
    """Draw one row for what training did, and one for each rule that ever held, as a PNG."""
    import matplotlib  # noqa: PLC0415 (heavy, and only needed here)

    matplotlib.use("Agg")
    from matplotlib import dates  # noqa: PLC0415 (after choosing the backend)
    from matplotlib import pyplot as plt  # noqa: PLC0415 (likewise)
    from matplotlib.patches import Patch  # noqa: PLC0415 (likewise)

    codes = list(replayed.by_reason)
    figure, axes = plt.subplots(figsize=(12, 1.6 + 0.28 * (len(codes) + 2)), layout="constrained")
    for stretch in replayed.stretches:
        width = timedelta(seconds=stretch.seconds)
        axes.barh(0, width, left=stretch.begins, height=1.3, color=_COLOURS[stretch.action], linewidth=0)
        for code in stretch.codes:
            axes.barh(2 + codes.index(code), width, left=stretch.begins, height=0.7, color=_HELD, linewidth=0)
    axes.set_yticks([0, *range(2, 2 + len(codes))], ["training", *codes])
    axes.invert_yaxis()
    begins = replayed.stretches[0].begins
    axes.set_xlim(begins, begins + timedelta(seconds=replayed.seconds))
    axes.xaxis.set_major_locator(dates.DayLocator())
    axes.xaxis.set_major_formatter(dates.DateFormatter("%a"))
    axes.xaxis.set_minor_locator(dates.HourLocator(byhour=(6, 12, 18)))
    axes.grid(axis="x", which="major", color="#bbbbbb")
    axes.grid(axis="x", which="minor", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if title:
        axes.set_title(title)
    share = {action: replayed.by_action.get(str(action or "off"), 0.0) / replayed.seconds for action in _NAMES}
    shown = [
        Patch(color=_COLOURS[action], label=f"{name} ({100 * share[action]:.0f} %)")
        for action, name in _NAMES.items()
        if share[action]
    ]
    axes.legend(handles=[*shown, Patch(color=_HELD, label="rule holds")], loc="upper center", ncols=5, frameon=False,
                bbox_to_anchor=(0.5, -0.08), fontsize=9)  # fmt: skip
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    plt.close(figure)
