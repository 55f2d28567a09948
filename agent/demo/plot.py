"""The demo's picture: held-out loss by round for base, each device alone, and the community."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the losses of a demo's report as a PNG."""
    import matplotlib  # noqa: PLC0415 (heavy, and only needed here)

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after choosing the backend)

    rounds = list(range(len(report["community_by_round"])))
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    axes.plot(rounds, report["community_by_round"], "o-", color="#1b7837", linewidth=2.5, label="community")
    axes.axhline(report["base_loss"], color="#555555", linestyle=":", label="base")
    for index, (device, loss) in enumerate(report["alone_by_device"].items()):
        axes.axhline(
            loss,
            color=f"C{index + 1}",
            linestyle="--",
            linewidth=1,
            label=f"{device} alone ({report['topics'][device]})",
        )
    axes.set_xticks(rounds)
    axes.set_xlabel("round")
    axes.set_ylabel("held-out loss, all devices' text (nats a token)")
    axes.set_title(f"{report['devices']} devices grow one model")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
