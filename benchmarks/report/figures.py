"""The figures of the README and of benchmarks/RESULTS.md."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from fastcse import plots
from fastcse.bench.case import Result
from fastcse.bench.output import Document

from .studies import NEGATIVES, by_method, by_objective, shown
from .tables import BY_HAND, NOT_MEASURED, OURS

LIMIT = "bare products"
FIXED = {OURS: plots.OURS, LIMIT: plots.BOUND, "eager": plots.EAGER, "torch.compile": plots.COMPILED}


def loss_figure(documents: list[Document], path: Path) -> None:
    """Time over that of the bare products against N, a panel for each loss; memory at the largest N."""
    by_loss = {document.results[0].case.loss: document for document in documents}
    losses = [loss for loss in ("focal", "infonce") if loss in by_loss] or list(by_loss)
    color = plots.colors((name for loss in losses for r in by_loss[loss].results for name in r.measured), FIXED)
    facts = by_loss[losses[0]].machine
    title = f"Contrastive losses on the CPU, float32, forward + backward ({facts['cpu']}, {facts['threads']} threads)"
    size = (4.7 * (len(losses) + 1), 4.8)
    with plots.page(path, len(losses) + 1, size=size, title=title) as panels:
        for axes, loss in zip(panels, losses):
            _times(axes, by_loss[loss].results, color)
        largest = max(by_loss[losses[-1]].results, key=lambda result: result.case.n)
        # The buffers of the bare products hold the whole matrix, or panels of it: that is no lower bound.
        memory = {name: row.extra_mib for name, row in largest.measured.items() if row.extra_mib and name != LIMIT}
        ordered = dict(sorted(memory.items(), key=lambda item: (item[0] != OURS, item[1])))
        plots.bars(panels[-1], ordered, color, form=".0f")
        panels[-1].set_title(f"MiB extra, {largest.case.loss}, N = {largest.case.n}")
        handles = {name: line for axes in panels for line, name in zip(*axes.get_legend_handles_labels())}
        panels[0].get_figure().legend(handles.values(), handles, loc="outside lower left", ncols=len(handles))


def _times(axes: Axes, results: list[Result], color: dict[str, str]) -> None:
    """The bound, fastcse, what one writes by hand, and at most the three fastest peers at the largest size."""
    found = max(results, key=lambda result: result.case.n).measured
    peers = sorted((name for name in found if name not in FIXED), key=lambda name: found[name].ms)
    chosen = [name for name in (LIMIT, OURS, *BY_HAND) if name in found] + peers[:3]
    points = {
        name: [(r.case.n, r.measured[name].to_products) for r in results if name in r.measured] for name in chosen
    }
    plots.lines(axes, points, color, wide=(OURS,))
    plots.logarithmic(axes, sorted({result.case.n for result in results}))
    axes.yaxis.set_major_locator(FixedLocator([1, 1.2, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100]))
    axes.set(xlabel="batch N", ylabel="time / time of the bare products")
    axes.set_title(f"{results[0].case.loss}, D = {results[0].case.d}")


def accuracy_figure(document: Document, path: Path) -> None:
    """Gradient error of every provider on each kind of rows."""
    results, case = document.results, document.results[0].case
    names = list(dict.fromkeys(name for result in results for name in result.measured if name != LIMIT))
    color = plots.colors(names, FIXED)
    title = f"Relative gradient error: {case.loss}, {case.dtype}, N = {case.n}, D = {case.d}"
    with plots.page(path, 1, size=(9.5, 4.4), title=title) as (axes,):
        for place, name in enumerate(names):
            # Side by side: equal errors would hide one another.
            aside = 0.1 * (place - (len(names) - 1) / 2)
            rows = [result.measured.get(name) for result in results]
            errors = [(i + aside, row.gradient_error) for i, row in enumerate(rows) if row and row.gradient_error]
            points = [(x, error) for x, error in errors if math.isfinite(error)]
            size = 70 if name == OURS else 36
            axes.scatter(*zip(*points), s=size, color=color[name], label=name, zorder=3)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks(range(len(results)), [f"{r.case.data}\n{r.case.stage}" for r in results])
        for place in range(1, len(results)):
            axes.axvline(place - 0.5, color=plots.PALE, linewidth=0.8)
        axes.grid(False, axis="x")
        plots.legend_beside(axes)


def mining_figure(report: dict[str, Any], path: Path) -> None:
    """nDCG@10 after training, each seed a point; and what the filters leave against how much of it is false."""
    with plots.page(path, 2, size=(12, 4.6)) as (left, right):
        left.set_title("SciFact: nDCG@10 on the 300 test claims")
        right.set_title("Vaswani: what the filters let through")
        for axes, found, draw in ((left, report.get("scifact"), _scores), (right, report.get("vaswani"), _filters)):
            if found is None:
                axes.text(0.5, 0.5, NOT_MEASURED, ha="center", va="center", transform=axes.transAxes)
            else:
                draw(axes, found)


def _scores(axes: Axes, found: dict[str, Any]) -> None:
    before = found["before"]["ndcg_at_10"]
    axes.axhline(before, color=plots.MUTED, linestyle="--")
    axes.annotate(f"untrained {before:.3f}", (-0.55, before), (0, 4), textcoords="offset points", fontsize=8)
    groups = by_method(found["runs"])
    for place, (method, runs) in enumerate(groups.items()):
        scores = [run["ndcg_at_10"] for run in runs]
        color = plots.OURS if method == "mined" else plots.PALETTE[place]
        axes.scatter([place] * len(scores), scores, color=color, s=28, zorder=3)
        mean = statistics.mean(scores)
        axes.hlines(mean, place - 0.25, place + 0.25, color=color, linewidth=2.6)
        axes.annotate(f"{mean:.3f}", (place + 0.27, mean), va="center", fontsize=8)
    axes.set_xticks(range(len(groups)), [NEGATIVES[method] for method in groups])
    axes.set_xlim(-0.6, max(len(groups), 1) - 0.4)
    axes.grid(False, axis="x")


def _filters(axes: Axes, found: dict[str, Any]) -> None:
    kinds: dict[str, list[tuple[float, float, str]]] = {}
    for row in found["rows"]:
        if row["negatives"]:
            name, _, value = row["filters"].rpartition(" ")
            kind = "several" if "," in row["filters"] else name or "none"
            point = (100 * row["negatives"] / row["wanted"], 100 * row["false"] / row["negatives"], value)
            kinds.setdefault(kind, []).append(point)
    for number, (kind, points) in enumerate(kinds.items()):
        x, y, values = zip(*points)
        style = "o" if kind == "several" else "o-"
        axes.plot(x, y, style, color=plots.PALETTE[number], markersize=4, label=kind)
        for place, text in zip(zip(x, y), values):
            named = "" if kind in ("none", "several") else text
            axes.annotate(named, place, (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="negatives found, % of those wanted", ylabel="of them relevant in truth, %", ylim=(0, None))
    axes.legend()


def sts_figure(report: dict[str, Any], path: Path) -> None:
    """The scores of each objective, and alignment against uniformity; a run is a dot, their mean a large one."""
    groups = by_objective(report)
    color = plots.colors(groups, {})
    with plots.page(path, 2, size=(12.5, 1.8 + 0.5 * max(len(groups), 4))) as (left, right):
        for row, (name, runs) in enumerate(groups.items()):
            for key, marker in (("dev", "o"), ("test", "D")):
                _runs(left, [run[key] for run in runs], [row] * len(runs), color[name], marker)
            uniformity, alignment = ([run[key] for run in runs] for key in ("uniformity", "alignment"))
            _runs(right, uniformity, alignment, color[name], "o", label=shown(name))
        for value in {run["dev_before"] for run in report["runs"]}:
            left.axvline(value, color=plots.PALE, linewidth=1.5, linestyle="--")
        left.set_yticks(range(len(groups)), map(shown, groups))
        left.set(title="STS-B after training: dev (circle), test (diamond)", ylim=(len(groups) - 0.5, -0.5))
        left.set_xlabel("Spearman x 100; dashed: dev before")
        right.set(title="STS-B test: both are better when smaller", xlabel="uniformity", ylabel="alignment")
        plots.legend_beside(right)


def _runs(axes: Axes, x: list[float], y: list[float], color: str, marker: str, label: str = "") -> None:
    axes.plot(x, y, marker, color=color, alpha=0.45, markersize=5)
    mean = statistics.mean(x), statistics.mean(y)
    axes.plot(*mean, marker, color=color, markersize=9, markeredgecolor="white", label=label or None)
