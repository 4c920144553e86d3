"""The README's figure and that of the accuracy, from documents of `fastcse bench loss`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from .files import rows_of
from .loss import BY_HAND, LIMIT, OURS

COLOURS = {OURS: "#0b6e4f", LIMIT: "#8d99ae", "eager": "#c1666b", "torch.compile": "#d4a373"}
OTHERS = ("#457b9d", "#9d4edd", "#588157", "#bc6c25", "#6d6875", "#4361ee", "#b5838d", "#7f5539", "#2a9d8f")


def loss_figure(cpu: dict[str, dict], path: Path) -> None:
    """Time as a multiple of the bare products' against N, a panel for each loss; memory at the largest N."""
    losses = [loss for loss in ("focal", "infonce") if loss in cpu] or list(cpu)
    figure, panels = plt.subplots(1, len(losses) + 1, figsize=(4.6 * (len(losses) + 1), 4.2), layout="constrained")
    colours = _colours([result for loss in losses for result in cpu[loss]["results"]])
    for panel, loss in zip(panels, losses):
        _time_panel(panel, loss, cpu[loss]["results"], colours)
    largest = max(cpu[losses[-1]]["results"], key=lambda result: result["n"])
    _memory_panel(panels[-1], largest, colours)
    facts = cpu[losses[0]]["machine"]
    figure.suptitle(f"Contrastive losses on the CPU, float32, forward + backward ({facts['cpu']}, "
                    f"{facts['threads']} threads)", fontsize=11)  # fmt: skip
    save(figure, path)


def _colours(results: list[dict]) -> dict[str, str]:
    names = dict.fromkeys(name for result in results for name in rows_of(result))
    others = [name for name in names if name not in COLOURS]
    return {**COLOURS, **{name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}}


def _shown(results: list[dict]) -> list[str]:
    """The limit, fastcse, what one writes by hand, and at most the three fastest peers at the largest size."""
    found = rows_of(max(results, key=lambda result: result["n"]))
    peers = sorted((name for name in found if name not in COLOURS), key=lambda name: found[name]["ms"])
    return [name for name in (LIMIT, OURS, *BY_HAND) if name in found] + peers[:3]


def _time_panel(panel: Any, loss: str, results: list[dict], colours: dict[str, str]) -> None:
    for name in _shown(results):
        line = [(r["n"], rows_of(r)[name]["to_products"]) for r in results if name in rows_of(r)]
        wide = {"linewidth": 2.6, "zorder": 3} if name == OURS else {"linewidth": 1.4}
        panel.plot(*zip(*sorted(line)), "o-", markersize=4, color=colours[name], label=name, **wide)
    panel.set(xscale="log", yscale="log", xlabel="batch N", ylabel="time / time of the bare products")
    panel.set_title(f"{loss}, D = {results[0]['d']}", fontsize=10)
    sizes = sorted({result["n"] for result in results})
    panel.set_xticks(sizes, [str(n) for n in sizes])
    panel.yaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100]))
    panel.yaxis.set_major_formatter("{x:g}")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
    panel.legend(frameon=False, fontsize=8)
    plain(panel, "both")


def _memory_panel(panel: Any, result: dict, colours: dict[str, str]) -> None:
    rows = rows_of(result)
    # The buffers of the bare products hold the whole matrix, or panels of it: that is no limit.
    weighed = {name: row["extra_mib"] for name, row in rows.items() if row["extra_mib"] is not None and name != LIMIT}
    names = sorted(weighed, key=lambda name: (name != OURS, weighed[name]))
    panel.set_title(f"MiB extra, {result['loss']}, N = {result['n']}", fontsize=10)
    if not names:
        panel.text(0.5, 0.5, "not measured", ha="center", va="center", transform=panel.transAxes)
        return
    bars = panel.barh(names, [weighed[name] for name in names], color=[colours[name] for name in names])
    panel.bar_label(bars, [f"{weighed[name]:.0f}" for name in names], padding=4, fontsize=8)
    panel.set(xlim=(0, 1.2 * max(*weighed.values(), 1)))
    panel.tick_params(axis="y", labelsize=8)
    panel.invert_yaxis()
    plain(panel, "x")


def accuracy_figure(document: dict[str, Any], path: Path) -> None:
    """Gradient error of every provider on each kind of rows."""
    results = document["results"]
    colours = _colours(results)
    figure, panel = plt.subplots(figsize=(9, 4.2), layout="constrained")
    names = [name for name in dict.fromkeys(n for r in results for n in rows_of(r)) if name != LIMIT]
    for number, name in enumerate(names):
        # Side by side: equal errors would hide one another.
        aside = 0.08 * (number - (len(names) - 1) / 2)
        errors = [rows_of(result).get(name, {}).get("gradient_error") for result in results]
        points = [(i + aside, e) for i, e in enumerate(errors) if e is not None and math.isfinite(e) and e > 0]
        size = 70 if name == OURS else 36
        panel.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            s=size,
            color=colours[name],
            label=name,
            zorder=3 if name == OURS else 2,
        )
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:.0e}")
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_xticks(range(len(results)), [f"{r['data']}\n{r['stage']}" for r in results])
    first = results[0]
    panel.set_title(f"Relative gradient error: {first['loss']}, {first['dtype']}, N = {first['n']}, D = {first['d']}",
                    fontsize=10)  # fmt: skip
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    plain(panel, "both")
    save(figure, path)


def plain(panel: Any, grid: str) -> None:
    """A grid behind what is drawn, and no frame above and to the right."""
    panel.set_axisbelow(True)
    panel.grid(alpha=0.3, axis=grid)
    panel.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write a figure and let it go."""
    figure.savefig(path, dpi=130)
    plt.close(figure)
