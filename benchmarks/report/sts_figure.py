"""The figure of STS after training: the scores of each objective, and where its embeddings stand."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .sts import in_order, shown

INK, MUTED, BEFORE = "#1f2933", "#8894a3", "#b8c4d3"
STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6eaef", "axes.axisbelow": True,
}  # fmt: skip


def sts_figure(report: dict, path: Path) -> None:
    """Every objective of the file; a run is a dot."""
    names = sorted({run["objective"] for run in report["runs"]}, key=in_order)
    colors = dict(zip(names, plt.get_cmap("tab10").colors * (1 + len(names) // 10)))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 1.6 + 0.55 * max(len(names), 4)), layout="constrained")
        _scores(left, report, names, colors)
        _spread(right, report, names, colors)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _scores(axis: Axes, report: dict, names: list[str], colors: dict) -> None:
    for row, name in enumerate(names):
        runs = [run for run in report["runs"] if run["objective"] == name]
        for key, marker in (("dev", "o"), ("test", "D")):
            values = [run[key] for run in runs]
            axis.plot(values, [row] * len(values), marker, color=colors[name], alpha=0.45, markersize=5)
            axis.plot(statistics.mean(values), row, marker, color=colors[name], markersize=9, markeredgecolor="white")
    before = {run["dev_before"] for run in report["runs"]}
    for value in before:
        axis.axvline(value, color=BEFORE, linewidth=1.5, linestyle="--")
    axis.set_yticks(range(len(names)), map(shown, names))
    axis.set(title="STS-B after training: dev (circle), test (diamond)", xlabel="Spearman x 100; dashed: dev before")
    axis.set_ylim(len(names) - 0.5, -0.5)


def _spread(axis: Axes, report: dict, names: list[str], colors: dict) -> None:
    for name in names:
        runs = [run for run in report["runs"] if run["objective"] == name]
        x, y = [run["uniformity"] for run in runs], [run["alignment"] for run in runs]
        axis.plot(x, y, "o", color=colors[name], alpha=0.45, markersize=5)
        axis.plot(statistics.mean(x), statistics.mean(y), "o", color=colors[name], markersize=9, label=shown(name),
                  markeredgecolor="white")  # fmt: skip
    axis.set(title="STS-B test: both are better when smaller", xlabel="uniformity", ylabel="alignment")
    axis.legend(frameon=False, fontsize=8)
