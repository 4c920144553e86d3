"""The picture of a run: its loss, its scores on STS-B dev, and the way of its embeddings between alignment and
uniformity."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

FIGURE_FILE = "summary.png"
INK, MUTED, PALE, STRONG, BEST = "#1f2933", "#8894a3", "#b8c4d3", "#0b7285", "#d9480f"
STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlepad": 10, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6eaef", "axes.axisbelow": True,
}  # fmt: skip
SMOOTHING, SHORT = 0.1, 5  # weight of the newest entry in the drawn mean, and how many entries make it larger


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the report of `train` into a PNG; without scores it is the loss alone."""
    # A score is no number where all embeddings of a model are alike.
    scored = report["dev_best"] is not None and math.isfinite(report["dev_best"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3 if scored else 1, figsize=(13 if scored else 6, 4.2), layout="constrained")
        _loss(axes[0] if scored else axes, report["loss"])
        if scored:
            _scores(axes[1], report)
            _spread(axes[2], report)
        options = report["options"]
        figure.suptitle(
            f"{options['objective']}: {Path(options['model']).name}, {report['steps']} steps of batch "
            f"{options['batch_size']}",
            x=0.01, ha="left", fontsize=12, fontweight="bold",
        )  # fmt: skip
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _loss(axis: Axes, losses: list[tuple[int, float]]) -> None:
    steps, values = zip(*losses)
    mean, smooth, weight = values[0], [], max(SMOOTHING, SHORT / (SHORT + len(values)))
    for value in values:
        mean += weight * (value - mean)
        smooth.append(mean)
    axis.plot(steps, values, color=PALE, linewidth=1, label="each entry of the log")
    axis.plot(steps, smooth, color=STRONG, linewidth=2.2, label="running mean")
    # A contrastive loss falls over orders of magnitude; one that has touched 0 cannot be drawn so.
    axis.set(title="Loss", xlabel="step", yscale="log" if min(values) > 0 else "linear")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False)


def _scores(axis: Axes, report: dict[str, Any]) -> None:
    steps, scores = zip(*[(0, report["dev_before"]), *report["dev"]])
    axis.plot(steps, scores, color=STRONG, linewidth=2.2, marker="o", markersize=4)
    best = (report["best_step"], report["dev_best"])
    axis.plot(*best, color=BEST, marker="o", markersize=8, linestyle="none", label=f"{best[1]:.2f} at step {best[0]}")
    axis.set(title="STS-B dev, Spearman x 100", xlabel="step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False)


def _spread(axis: Axes, report: dict[str, Any]) -> None:
    shown = [one for one in report["spread"] if None not in one]
    axis.set(title="STS-B dev: both are better when smaller", xlabel="uniformity", ylabel="alignment")
    if not shown:  # no pair of the set is scored above 4
        return
    steps, aligned, spread = zip(*shown)
    axis.plot(spread, aligned, color=PALE, linewidth=1.2, zorder=1)
    dots = axis.scatter(spread, aligned, c=steps, cmap="viridis_r", s=36, zorder=2)
    axis.get_figure().colorbar(dots, ax=axis, label="step")
    at = {step: (x, y) for step, y, x in shown}
    if report["best_step"] in at:
        axis.plot(*at[report["best_step"]], color=BEST, marker="o", markersize=12, fillstyle="none", linestyle="none")
