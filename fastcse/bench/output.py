"""Results as tables to read, as a figure, and as JSON; and JSON read back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from .. import plots
from ..errors import InputError
from ..files import write_json
from .benchmarks import benchmark_of, case_of
from .case import Measurement, Result


class Document(NamedTuple):
    """The results of one run, the command that made them, and the machine that they are of."""

    command: str
    machine: dict[str, Any]
    results: list[Result]

    def labels(self) -> dict[str, Any]:
        """As a plain object for JSON."""
        return {"command": self.command, "machine": self.machine, "results": [r.labels() for r in self.results]}


def write_results(path: str | Path, document: Document) -> None:
    """Write a document as JSON, whole or not at all."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document.labels())


def read_results(path: str | Path) -> Document:
    """Read what `write_results`, or an older version of it, wrote.

    Raises:
        InputError: the file is missing, or is none of these.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return Document(found["command"], found["machine"], [read_result(one) for one in found["results"]])
    except FileNotFoundError:
        raise InputError(f"{str(path)!r} does not exist: expected results of fastcse bench") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{str(path)!r} holds no results of fastcse bench ({why}): measure again") from None


def read_result(labels: dict[str, Any]) -> Result:
    """The inverse of `Result.labels`."""
    row = benchmark_of(labels).case.row
    return Result(case_of(labels), labels["repeat"], labels["backend"], [row.read(one) for one in labels["rows"]])


def result_table(result: Result) -> Group:
    """One case: who ran, with numbers; below, the fastest configuration of those that have several."""
    case, measured = result.case, result.measured.values()
    chosen = [f"{row.provider} {row.choice}" for row in measured if row.choice is not None]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    table.add_column("provider", no_wrap=True)
    rate = () if case.flops is None else ("TFLOP/s",)
    for name in ("ms", "±", _over_bound(result), *rate, "MiB", *(metric.heading for metric in case.metrics)):
        table.add_column(name, justify="right", no_wrap=True)
    for row in measured:
        table.add_row(*_cells(row, result), style="bold green" if row.provider == case.ours else None)
    caption = [f"[dim]Chosen: {', '.join(chosen)}.[/]"] if chosen else []
    return Group(f"[bold]{case.title}[/]", table, *caption, "")


def legend(results: list[Result]) -> Group:
    """Once below all tables: what the columns mean, what each provider does differently, who did not run and why."""
    case = results[0].case
    bound = case.ours if case.lower_bound_name == case.ours else f"the {case.lower_bound_name}"
    lines = [
        "ms: median; ±: half of what lies between the 20% and the 80% quantile, in percent; "
        f"{_over_bound(results[0])}: to the time of {bound}; "
        f"{'' if case.flops is None else 'TFLOP/s: of those products; '}{case.legend}"
    ]
    lines += [f"[bold]{name}[/]: {escape(found)}" for name, found in notes(results).items()]
    for (status, why), names in left_out(results).items():
        lines.append(f"[bold]{', '.join(names)}[/] {status}: {escape(why)}")
    return Group(*(f"[dim]{line}[/]" for line in lines))


def notes(results: Iterable[Result]) -> dict[str, str]:
    """Provider -> what is said of it, each once, of those that were measured."""
    found: dict[str, dict[str, None]] = {}
    for name, row in (item for result in results for item in result.measured.items()):
        if row.note:
            found.setdefault(name, {})[row.note] = None
    return {name: "; ".join(said) for name, said in found.items()}


def left_out(results: Iterable[Result]) -> dict[tuple[str, str], dict[str, None]]:
    """(status, reason) -> the providers that were not measured for it, each once."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for row in (row for result in results for row in result.rows if row.status != "measured"):
        groups.setdefault((row.status, row.reason), {})[row.provider] = None
    return groups


def _over_bound(result: Result) -> str:
    return f"/ {result.case.lower_bound_name.partition(' ')[0]}"


def _cells(row: Measurement, result: Result) -> Iterable[str]:
    yield row.provider
    yield f"{row.ms:.0f}" if row.ms >= 1000 else f"{row.ms:.4g}" if row.ms >= 1 else f"{row.ms:.3f}"
    yield f"{50 * (row.ms_80 - row.ms_20) / row.ms:.0f}%"
    yield _shown(row.to_products, ".2f")
    if result.case.flops is not None:
        rate = row.tflops
        yield "<0.001" if rate < 5e-4 else f"{rate:.3f}" if rate < 10 else f"{rate:.0f}"
    yield _shown(row.extra_mib, ".0f")
    for metric in result.case.metrics:
        yield _shown(getattr(row, metric.field), metric.form)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def draw(results: list[Result], path: str | Path) -> None:
    """A panel for each metric that was measured; the horizontal axis is N, or another size where only that varies.
    One size is bars: a line of one point would say less."""
    case = results[0].case
    varying = [name for name in case.axes if len({getattr(r.case, name) for r in results}) > 1]
    x = next((name for name in varying if len(name) == 1), "n")
    rest = [name for name in varying if name != x]
    lines: dict[str, list[tuple[int, Measurement]]] = {}
    provider_of: dict[str, str] = {}
    for result in results:
        words = ", ".join(f"{k.upper() if len(k) == 1 else k} {getattr(result.case, k)}" for k in rest)
        for row in result.measured.values():
            label = f"{row.provider} {words}".rstrip()
            provider_of[label] = row.provider
            lines.setdefault(label, []).append((getattr(result.case, x), row))
    panels = case.panels or (
        ("to_products", f"time / time of the {case.lower_bound_name}"),
        ("extra_mib", "MiB beyond inputs and outputs"),
        *((metric.field, metric.drawn) for metric in case.metrics if metric.drawn),
    )
    panels = [one for one in panels if any(getattr(row, one[0]) for line in lines.values() for _, row in line)]
    fixed = {case.lower_bound_name: plots.BOUND, case.ours: plots.OURS}
    of_provider = plots.colors(provider_of.values(), fixed)
    color = {label: of_provider[name] for label, name in provider_of.items()}
    ours = {label for label, name in provider_of.items() if name == case.ours}
    ticks = sorted({getattr(r.case, x) for r in results})
    with plots.page(path, len(panels), size=(4 * len(panels) + 3, 4.6), title=_heading(results)) as axes:
        for panel, (field, label) in zip(axes, panels):
            panel.set_title(label)
            found = {name: [(at, getattr(row, field)) for at, row in line] for name, line in lines.items()}
            if len(ticks) == 1:
                plots.bars(panel, {name: line[0][1] for name, line in found.items() if line[0][1] is not None}, color)
                continue
            found = {name: [point for point in line if point[1]] for name, line in found.items()}
            plots.lines(panel, {name: line for name, line in found.items() if line}, color, ours)
            plots.logarithmic(panel, ticks)
            panel.set_xlabel(x.upper())
        if len(ticks) > 1:
            plots.legend_beside(axes[0])


def _heading(results: list[Result]) -> str:
    """What all results share."""
    case = results[0].case
    if len({r.case.title for r in results}) == 1:
        return case.title
    same = len({r.case.setting for r in results}) == 1
    operations = ", ".join(dict.fromkeys(r.case.operation for r in results))
    return f"{operations}, {case.setting if same else f'{case.dtype} on {case.device}'}"
