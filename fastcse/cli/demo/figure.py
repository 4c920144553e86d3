"""The picture of the demo: the loss while training, the scores before and after, and what the loss costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

INK, MUTED, BEFORE, AFTER, EAGER = "#1f2933", "#8894a3", "#b8c4d3", "#0b7285", "#e8a87c"
STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlepad": 10, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": MUTED, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#e6eaef", "axes.axisbelow": True,
}  # fmt: skip
SMOOTHING = 0.2  # weight of the newest step in the drawn mean


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the report of `run_demo` into a PNG."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.14, w_pad=0.12)
        _loss(axes[0, 0], report["training"])
        _retrieval(axes[0, 1], report)
        _geometry(axes[1, 0], report)
        _cost(axes[1, 1], report["cost"])
        options, steps = report["options"], len(report["training"]["step"])
        figure.suptitle(
            f"fastcse demo: {options['model']} on {report['data']['train']:,} docstrings, {steps} steps of "
            f"{options['batch_size']}, backend {report['backend']}",
            x=0.01, ha="left", fontsize=13, fontweight="bold",
        )  # fmt: skip
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _loss(axis: Axes, training: dict[str, list[float]]) -> None:
    mean, smooth = training["loss"][0], []
    for loss in training["loss"]:
        mean += SMOOTHING * (loss - mean)
        smooth.append(mean)
    axis.plot(training["step"], training["loss"], color=BEFORE, linewidth=1, label="each step")
    axis.plot(training["step"], smooth, color=AFTER, linewidth=2.2, label="running mean")
    axis.set(title="Focal-InfoNCE loss on training batches", xlabel="step", ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False)


def _retrieval(axis: Axes, report: dict[str, Any]) -> None:
    names = {"mrr_at_10": "MRR@10", "recall_at_1": "recall@1"}
    for side, (when, color) in enumerate((("before", BEFORE), ("after", AFTER))):
        values = [report[when][name] for name in names]
        bars = axis.bar([i + 0.38 * side for i in range(len(names))], values, width=0.36, color=color, label=when)
        axis.bar_label(bars, fmt="%.3f", padding=3)
    highest = max(report[when][name] for when in ("before", "after") for name in names)
    axis.set(title=f"Held-out retrieval, {report['data']['held_out']:,} candidates", ylim=(0, 1.3 * highest))
    axis.set_xticks([0.19, 1.19], list(names.values()))
    axis.legend(frameon=False, ncols=2, loc="upper right")


def _geometry(axis: Axes, report: dict[str, Any]) -> None:
    before, after = ([report[when][name] for name in ("uniformity", "alignment")] for when in ("before", "after"))
    axis.annotate(
        "", xy=after, xytext=before, arrowprops={"arrowstyle": "-|>", "color": MUTED, "shrinkA": 8, "shrinkB": 8}
    )
    rises = after[1] > before[1]
    for place, color, label, above in ((before, BEFORE, "before", not rises), (after, AFTER, "after", rises)):
        axis.scatter(*place, s=120, color=color, zorder=3)
        # On the far side of the arrow.
        axis.annotate(label, place, xytext=(0, 11 if above else -20), textcoords="offset points", ha="center")
    axis.margins(0.35)
    axis.set(title="Alignment and uniformity (down and left is better)", xlabel="uniformity", ylabel="alignment")
    axis.grid(axis="x")
    axis.tick_params(axis="x", colors=MUTED)


def _cost(axis: Axes, cost: dict[str, Any]) -> None:
    rows = [("time", "ms")] + ([("memory", "mib")] if cost["fused_mib"] is not None else [])
    units = {"ms": "ms", "mib": "MiB"}
    highest = max(1, *(cost[f"fused_{unit}"] / cost[f"eager_{unit}"] for _, unit in rows))
    for place, (_, unit) in enumerate(rows):
        fused, eager = cost[f"fused_{unit}"], cost[f"eager_{unit}"]
        for side, (value, color) in enumerate(((fused, AFTER), (eager, EAGER))):
            # Shares of eager, so that milliseconds and megabytes fit one axis; the labels carry the numbers.
            bar = axis.bar(place + 0.38 * side, value / eager, width=0.36, color=color)
            axis.bar_label(bar, [f"{value:,.0f} {units[unit]}"], padding=3)
    axis.set_title(f"Focal loss, forward and backward, N = {cost['rows']}, D = {cost['width']}")
    axis.set_ylim(0, 1.35 * highest)
    axis.set_xticks([place + 0.19 for place in range(len(rows))], [label for label, _ in rows])
    axis.set_ylabel("share of eager")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (AFTER, EAGER)]
    axis.legend(handles, [f"fused ({cost['backend']})", "eager torch"], frameon=False, ncols=2, loc="upper right")
