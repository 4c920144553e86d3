"""Results as a table to read, as JSON, and as CSV with Liger-Kernel's columns, which plotting tools exist for."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from .machine import version
from .subject import Entry, Metric, Result
from .subjects import subject_of

LIGER_COLUMNS = (
    "kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit", "x_name", "x_label",
    "x_value", "y_value_50", "y_value_20", "y_value_80", "extra_benchmark_config_str", "gpu_name", "timestamp",
    "liger_version",
)  # fmt: skip


def result_table(result: Result) -> Group:
    """One problem: who ran, with numbers; below, what each of those took that have a choice of chunk, tile or
    spelling."""
    chosen = [f"{row.provider} {row.choice}" for row in result.rows if row.choice is not None and row.ms is not None]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    table.add_column("provider", no_wrap=True)
    subject = subject_of(result.problem)
    rate = () if result.problem.flops is None else ("TFLOP/s",)
    for name in ("ms", "±", subject.over_limit, *rate, "MiB", *(metric.heading for metric in subject.metrics)):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        if row.status == "measured":
            table.add_row(*_cells(row, subject.metrics), style="bold green" if row.provider == subject.ours else None)
    caption = [f"[dim]Chosen: {', '.join(chosen)}.[/]"] if chosen else []
    return Group(f"[bold]{result.problem.title}[/]", table, *caption, "")


def legend(results: list[Result]) -> Group:
    """Once below all tables: what the columns mean, what each provider does differently, who did not run and why."""
    rows = [row for result in results for row in result.rows]
    subject, notes = subject_of(results[0].problem), {}
    for row in rows:
        if row.status == "measured" and row.note:
            notes.setdefault(row.provider, {})[row.note] = None
    lines = [
        "ms: median; ±: half of what lies between the 20% and the 80% quantile, in percent; "
        f"{subject.over_limit}: to the time of {subject.yardstick}; "
        f"{'' if results[0].problem.flops is None else 'TFLOP/s: of those products; '}{subject.legend}"
    ]
    lines += [f"[bold]{name}[/]: {escape('; '.join(found))}" for name, found in notes.items()]
    lines += [f"[bold]{', '.join(names)}[/] {status}: {escape(why)}"
              for (status, why), names in left_out(rows).items()]  # fmt: skip
    return Group(*(f"[dim]{line}[/]" for line in lines))


def left_out(rows: Iterable[Entry]) -> dict[tuple[str, str], list[str]]:
    """(status, reason) -> the providers that were not measured for it, each once."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.status != "measured":
            names = groups.setdefault((row.status, row.reason), [])
            names += [row.provider] * (row.provider not in names)
    return groups


def _cells(row: Entry, metrics: tuple[Metric, ...]) -> list[str]:
    spread = 50 * (row.ms_80 - row.ms_20) / row.ms
    return [
        row.provider, _milliseconds(row.ms), f"{spread:.0f}%", f"{row.to_products:.2f}",
        *(() if row.tflops is None else (_teraflops(row.tflops),)),
        "-" if row.extra_mib is None else f"{row.extra_mib:.0f}",
        *(_shown(getattr(row, metric.field), metric.form) for metric in metrics),
    ]  # fmt: skip


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}" if value >= 1 else f"{value:.3f}"


def _teraflops(value: float) -> str:
    return "<0.001" if value < 5e-4 else f"{value:.3f}" if value < 10 else f"{value:.0f}"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


class Files(NamedTuple):
    """Where one run's numbers go, and where they come from."""

    json_file: Path | None
    csv_file: Path | None
    machine: dict[str, Any]
    command: str

    def document(self, results: list[Result]) -> dict[str, Any]:
        """Everything about the run, for JSON."""
        return {"command": self.command, "machine": self.machine, "results": [result.labels() for result in results]}

    def write(self, results: list[Result]) -> None:
        """Each file whole or not at all."""
        if self.json_file:
            write_json(self.json_file, self.document(results))
        if self.csv_file:
            write_csv(self.csv_file, results, self.machine)

    def remove(self) -> None:
        """Take away what was written."""
        for path in filter(None, (self.json_file, self.csv_file)):
            path.unlink(missing_ok=True)


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    _write_whole(path, lambda file: json.dump(finite(report), file, indent=1, allow_nan=False))


def finite(value: Any) -> Any:
    """NaN and infinity as text: JSON has no word for them, and an error that is not a number is a finding."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not float("-inf") < value < float("inf") else value


def write_csv(path: Path, results: list[Result], machine: dict[str, Any]) -> None:
    """Liger-Kernel's columns, a line for each metric of each provider at each size."""

    def write(file: TextIO) -> None:
        writer = csv.writer(file)
        writer.writerow(LIGER_COLUMNS)
        for result in results:
            for row in result.rows:
                if row.status == "measured":
                    writer.writerows(_liger_lines(result, row, machine))

    _write_whole(path, write)


def _liger_lines(result: Result, row: Entry, machine: dict[str, Any]) -> Iterator[list]:
    p = result.problem
    extra = {**p.labels(), "choice": row.choice, "fastcse": machine["fastcse"], "commit": machine["commit"]}
    tail = [json.dumps(extra), machine.get("gpu", machine["cpu"]), machine["time"], version("liger-kernel") or ""]
    for metric, unit, values in (
        ("speed", "ms", (row.ms, row.ms_20, row.ms_80)),
        ("memory", "MB", (row.extra_mib,) * 3),
        *((metric.name, metric.unit, (getattr(row, metric.field),) * 3) for metric in subject_of(p).metrics),
    ):
        if values[0] is not None:
            yield [p.operation, row.provider, p.mode, metric, unit, "N", p.counted, p.n, *values, *tail]


def _write_whole(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
