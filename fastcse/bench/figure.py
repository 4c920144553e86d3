"""Time, memory and accuracy against N or D, one line a provider."""

from __future__ import annotations

from pathlib import Path

from .subject import Entry, Result, Subject
from .subjects import subject_of


def draw(results: list[Result], path: Path) -> None:
    """A panel for each metric that was measured; the horizontal axis is N, or D where only D varies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    subject = subject_of(results[0].problem)
    sizes = [name for name in subject.axes if len(name) == 1]
    axis_name = next((name for name in sizes if len({_of(r, name) for r in results}) > 1), "n")
    groups = _lines(results, axis_name, subject.axes)
    measured = [row for line in groups.values() for _, row in line]
    metrics = [(metric, label) for metric, label in _panels(subject) if any(getattr(row, metric) for row in measured)]
    ticks = sorted({_of(r, axis_name) for r in results})
    size = (4 * len(metrics) + 3, 4.6)
    figure, (panels,) = plt.subplots(1, len(metrics), figsize=size, squeeze=False, layout="constrained")
    colours = _colours({name for name, _ in groups}, subject, plt.get_cmap("tab20").colors)
    for panel, (metric, label) in zip(panels, metrics):
        if len(ticks) == 1:
            _bars(panel, label, [(" ".join(filter(None, key)), colours[key[0]], getattr(line[0][1], metric))
                                 for key, line in groups.items()])  # fmt: skip
            continue
        for (name, rest), line in groups.items():
            points = [(x, getattr(row, metric)) for x, row in line if getattr(row, metric)]
            if points:
                style = {"linewidth": 2.5, "zorder": 3} if name == subject.ours else {"linewidth": 1.2}
                legend = " ".join(x for x in (name, rest) if x)
                panel.plot(*zip(*sorted(points)), "o-", markersize=4, color=colours[name], label=legend, **style)
        _dress(panel, label, ticks, axis_name.upper())
    if len(ticks) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(_title(results), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _title(results: list[Result]) -> str:
    """What all results share."""
    p = results[0].problem
    if len({r.problem.title for r in results}) == 1:
        return p.title
    one = len({r.problem.setting for r in results}) == 1
    operations = ", ".join(dict.fromkeys(r.problem.operation for r in results))
    return f"{operations}, {p.setting if one else f'{p.dtype} on {p.device}'}"


def _panels(subject: Subject) -> list[tuple[str, str]]:
    """(field, label) of all that may be drawn."""
    if subject.panels:
        return list(subject.panels)
    return [
        ("to_products", f"time / time of the {subject.limit_name}"),
        ("extra_mib", "MiB beyond inputs and outputs"),
        *((metric.field, metric.drawn) for metric in subject.metrics if metric.drawn),
    ]


def _colours(names: set[str], subject: Subject, palette: list) -> dict[str, object]:
    ordered = sorted(names, key=lambda name: (name != subject.ours, name != subject.limit_name, name))
    return {name: "#0b6e4f" if name == subject.ours else palette[i % len(palette)] for i, name in enumerate(ordered)}


def _bars(panel, label: str, rows: list[tuple[str, object, float | None]]) -> None:
    """One size: a line of one point would say less."""
    names, colours, values = zip(*((name, colour, value) for name, colour, value in rows if value is not None))
    bars = panel.barh(names, values, color=colours)
    panel.bar_label(bars, [f"{value:.3g}" for value in values], padding=4, fontsize=8)
    panel.set(title=label, xlim=(0, 1.2 * max(values) or 0.01))
    panel.tick_params(axis="y", labelsize=8)
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)


def _lines(
    results: list[Result], axis_name: str, axes: tuple[str, ...]
) -> dict[tuple[str, str], list[tuple[int, Entry]]]:
    """(provider, what else varies) -> (x, row) of everything that was measured."""
    varying = [k for k in axes if k != axis_name and len({_of(r, k) for r in results}) > 1]
    lines: dict[tuple[str, str], list[tuple[int, Entry]]] = {}
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
