"""Figures in one style: a page of panels, lines on logarithmic scales, bars with their numbers, a curve with its mean.

matplotlib is imported when a figure is drawn; pyplot never is, so nothing global changes. A panel that none of these
functions draws is drawn on its axes directly, and still has the style.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, PALE, STRONG, ACCENT = "#1f2933", "#8894a3", "#b8c4d3", "#0b7285", "#d9480f"
# fastcse among its peers, the lower bound that all of them are divided by, and two that one writes by hand.
OURS, BOUND, EAGER, COMPILED = "#0b6e4f", "#8d99ae", "#c1666b", "#d4a373"
PALETTE = (
    "#457b9d", "#9d4edd", "#588157", "#bc6c25", "#6d6875", "#4361ee", "#b5838d", "#7f5539", "#2a9d8f",
    "#e76f51", "#264653", "#f4a261", "#8338ec", "#ff006e", "#606c38", "#0077b6", "#9a031e", "#5f0f40",
)  # fmt: skip
STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlepad": 10, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6eaef", "axes.axisbelow": True, "legend.frameon": False,
    "legend.fontsize": 8,
}  # fmt: skip
# Weight of the newest value in a running mean; a short curve takes more of it.
SMOOTHING, SHORT = 0.1, 5


@contextlib.contextmanager
def page(
    path: str | Path, columns: int, rows: int = 1, *, size: tuple[float, float], title: str = ""
) -> Iterator[list[Axes]]:
    """Axes of rows x columns panels, row by row; the file is written when the block ends, whole or not at all.

    Args:
        path:  the file; its ending is its format, PNG without one.
        size:  inches, width and height.
        title: stands above all panels.
    """
    import matplotlib
    from matplotlib.figure import Figure

    path = Path(path)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: figure.savefig(file, format=path.suffix[1:] or "png", dpi=150))


def colors(names: Iterable[str], fixed: Mapping[str, str]) -> dict[str, str]:
    """A color for each name: the fixed ones, and the palette's in turn for the others."""
    others = (name for name in dict.fromkeys(names) if name not in fixed)
    return {**fixed, **{name: PALETTE[i % len(PALETTE)] for i, name in enumerate(others)}}


def lines(
    axes: Axes, series: Mapping[str, Iterable[tuple[float, float]]], color: Mapping[str, str], wide: Container[str] = ()
) -> None:
    """A line with its points for each name; those in `wide` lie above the others."""
    for name, points in series.items():
        style = {"linewidth": 2.6, "zorder": 3} if name in wide else {"linewidth": 1.3}
        axes.plot(*zip(*sorted(points)), "o-", markersize=4, color=color[name], label=name, **style)


def logarithmic(axes: Axes, ticks: Sequence[int]) -> None:
    """Logarithmic scales; `ticks` are the sizes below. Less than a decade of heights has more than one number."""
    from matplotlib.ticker import LogLocator

    axes.set(xscale="log", yscale="log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


def bars(axes: Axes, values: Mapping[str, float], color: Mapping[str, str], form: str = ".3g") -> None:
    """A horizontal bar for each name, the first above, with its number beside it."""
    if not values:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
        return
    drawn = axes.barh(list(values), list(values.values()), color=[color[name] for name in values])
    axes.bar_label(drawn, [format(value, form) for value in values.values()], padding=4, fontsize=8)
    axes.set_xlim(0, 1.2 * max(values.values()) or 0.01)
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
    axes.grid(False, axis="y")


def columns(
    axes: Axes, names: Sequence[str], heights: Mapping[str, Sequence[float]], color: Mapping[str, str],
    labels: Mapping[str, Sequence[str]] | None = None,
) -> None:  # fmt: skip
    """Vertical bars side by side: for each of `names` one of every series, with its label or height above it."""
    width = 0.8 / len(heights)
    for side, (series, values) in enumerate(heights.items()):
        at = [place + width * (side - (len(heights) - 1) / 2) for place in range(len(names))]
        drawn = axes.bar(at, values, width=0.95 * width, color=color[series], label=series)
        axes.bar_label(drawn, [f"{value:.3f}" for value in values] if labels is None else labels[series], padding=3)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1.3 * max(max(values) for values in heights.values()) or 1)
    axes.grid(False, axis="x")


def curve(axes: Axes, steps: Sequence[int], values: Sequence[float], label: str = "each step") -> None:
    """A noisy curve over steps, and its running mean; on a logarithmic scale where it is above 0 throughout."""
    mean, smooth, weight = values[0], [], max(SMOOTHING, SHORT / (SHORT + len(values)))
    for value in values:
        mean += weight * (value - mean)
        smooth.append(mean)
    axes.plot(steps, values, color=PALE, linewidth=1, label=label)
    axes.plot(steps, smooth, color=STRONG, linewidth=2.2, label="running mean")
    axes.set(xlabel="step", yscale="log" if min(values) > 0 else "linear")
    whole_steps(axes)
    axes.legend()


def whole_steps(axes: Axes) -> None:
    """No half steps on the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_beside(axes: Axes) -> None:
    """One legend for all panels, on their right."""
    axes.get_figure().legend(*axes.get_legend_handles_labels(), loc="outside right center")
