"""Time, memory and accuracy against N or D, one line a provider."""

from __future__ import annotations

from pathlib import Path

from .measure import Result, Row
from .runs import LIMIT

METRICS = (
    ("to_products", "time / time of the bare products"),
    ("extra_mib", "MiB beyond inputs and gradients"),
    ("gradient_error", "relative error of the gradients"),
)


def draw(results: list[Result], path: Path) -> None:
    """A panel for each metric that was measured; the horizontal axis is N, or D where only D varies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axis_name = "d" if len({r.problem.n for r in results}) == 1 and len({r.problem.d for r in results}) > 1 else "n"
    groups = _lines(results, axis_name)
    measured = [row for line in groups.values() for _, row in line]
    metrics = [(metric, label) for metric, label in METRICS if any(getattr(row, metric) for row in measured)]
    figure, panels = plt.subplots(1, len(metrics), figsize=(4 * len(metrics) + 3, 4.6), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    names = sorted({name for name, _ in groups}, key=lambda name: (name != "fastcse", name != LIMIT, name))
    for panel, (metric, label) in zip(panels, metrics):
        for (name, rest), line in groups.items():
            points = [(x, getattr(row, metric)) for x, row in line if getattr(row, metric)]
            if points:
                style = {"linewidth": 2.5, "zorder": 3} if name == "fastcse" else {"linewidth": 1.2}
                colour = "#0b6e4f" if name == "fastcse" else colours[names.index(name) % len(colours)]
                legend = " ".join(x for x in (name, rest) if x)
                panel.plot(*zip(*sorted(points)), "o-", markersize=4, color=colour, label=legend, **style)
        _dress(panel, label, sorted({getattr(r.problem, axis_name) for r in results}), axis_name.upper())
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    p = results[0].problem
    figure.suptitle(f"{p.loss}, {p.dtype}, {p.device}, {p.data} rows, {p.stage} in training", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _lines(results: list[Result], axis_name: str) -> dict[tuple[str, str], list[tuple[int, Row]]]:
    """(provider, what else varies) -> (x, row) of everything that was measured."""
    varying = [k for k in ("n", "d", "data", "stage") if k != axis_name and len({_of(r, k) for r in results}) > 1]
    lines: dict[tuple[str, str], list[tuple[int, Row]]] = {}
    for result in results:
        rest = ", ".join(f"{k.upper() if len(k) == 1 else k} {_of(result, k)}" for k in varying)
        for row in result.rows:
            if row.status == "measured":
                lines.setdefault((row.provider, rest), []).append((_of(result, axis_name), row))
    return lines


def _of(result: Result, name: str):
    return getattr(result.problem, name)


def _dress(panel, label: str, ticks: list[int], name: str) -> None:
    from matplotlib.ticker import LogLocator

    panel.set(xscale="log", yscale="log", xlabel=name, title=label)
    panel.set_xticks(ticks, [str(x) for x in ticks])
    panel.xaxis.minorticks_off()
    # Less than a decade would otherwise stand there with one number.
    lowest, highest = panel.get_ylim()
    few = highest < 30 * lowest
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.minorticks_off()
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
