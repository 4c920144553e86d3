"""Tables from documents of `fastcse bench`: every column is a metric of the operation's own case."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from fastcse.bench.case import Result
from fastcse.bench.output import Document, left_out, notes

OURS, BY_HAND = "fastcse", ("eager", "torch.compile")
NOT_MEASURED = "not measured"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; the first `left` columns are text."""
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def where(machine: dict[str, Any], command: str = "") -> str:
    """Machine, versions, commit, day and command."""
    place = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads, {machine['cpp']}"
    text = f"{place}; torch {machine['versions']['torch']}, commit {machine['commit']}, {machine['time'][:10]}"
    return f"{text}; `{command}`." if command else text


def table(document: Document) -> str:
    """Every provider of one document: a table for all results that differ in their sizes only, the meaning of its
    columns, and who was not measured and why."""
    groups: dict[str, list[Result]] = {}
    for result in document.results:
        groups.setdefault(f"{result.case.operation}, {result.case.setting}:", []).append(result)
    parts = [where(document.machine, document.command)]
    for setting, results in groups.items():
        parts += [setting, _group(results)]
    legends = dict.fromkeys(result.case.legend for result in document.results)
    parts.append(f"ms: median. {' '.join(legends)}")
    if said := [f"{name}: {found}" for name, found in notes(document.results).items()]:
        parts.append(". ".join(said) + ".")
    return "\n\n".join([*parts, *_left_out(document)])


def _group(results: list[Result]) -> str:
    case = results[0].case
    sizes = dict(size for result in results for size in result.case.sizes)
    rate = [] if case.flops is None else ["TFLOP/s"]
    metrics = [metric.heading.replace("\n", " ") for metric in case.metrics]
    head = ["provider", *sizes, "ms", "20% - 80%", f"/ {case.lower_bound_name}", *rate, "MiB", *metrics]
    rows = []
    for result in results:
        size = [str(getattr(result.case, name)) for name in sizes.values()]
        for name, row in result.measured.items():
            cells = [name if row.choice is None else f"{name} ({row.choice})", *size, milliseconds(row.ms)]
            cells += [f"{milliseconds(row.ms_20)} - {milliseconds(row.ms_80)}", number(row.to_products, ".2f")]
            cells += [number(row.tflops, ".3g")] * len(rate) + [number(row.extra_mib, ".0f")]
            rows.append([*cells, *(number(getattr(row, one.field), one.form, "") for one in case.metrics)])
    return markdown(head, rows)


def milliseconds(value: float) -> str:
    """Four digits, without an exponent."""
    return f"{value:.4g}" if value < 1e4 else f"{value:.0f}"


def number(value: float | None, form: str, absent: str = "-") -> str:
    """A number that may not have been measured."""
    return absent if value is None else format(value, form)


def _left_out(document: Document) -> list[str]:
    """One line: who was not measured, by reason."""
    groups = left_out(document.results)
    lines = [f"{', '.join(names)} {status} ({reason})" for (status, reason), names in groups.items()]
    return [f"Not measured: {'; '.join(lines)}."] if lines else []


def short_table(documents: list[Document]) -> str:
    """fastcse beside eager, torch.compile and the fastest peer: times as multiples of fastcse's."""
    if not documents:
        return "Losses on the CPU: not measured (`make loss`)."
    head = ["loss", "N", "D", "fastcse, ms", "/ bare products", *BY_HAND, "fastest peer", "MiB, fastcse", "MiB, eager"]
    rows = []
    for result in (result for document in documents for result in document.results):
        case, found = result.case, result.measured
        ours = found[OURS]
        times = {name: f"{row.ms / ours.ms:.2f} x" for name, row in found.items()}
        peers = [name for name in found if name not in (OURS, case.lower_bound_name, *BY_HAND)]
        best = min(peers, key=lambda name: found[name].ms, default=None)
        memory = [number(found[name].extra_mib if name in found else None, ".0f") for name in (OURS, "eager")]
        rows.append([
            case.loss, str(case.n), str(case.d), milliseconds(ours.ms), f"{ours.to_products:.2f}",
            *(times.get(name, "-") for name in BY_HAND), f"{times[best]} ({best})" if best else "-", *memory,
        ])  # fmt: skip
    what = (
        "Forward + backward in float32. Of eager, torch.compile and the fastest peer: time as a multiple of fastcse's."
    )
    places = dict.fromkeys(where(document.machine) for document in documents)
    return f"{what} {'; '.join(places)}.\n\n{markdown(head, rows)}"


def accuracy_table(document: Document) -> str:
    """Relative gradient error by provider, kind of rows and stage."""
    results = document.results
    names = dict.fromkeys(name for r in results for name in r.measured if name != r.case.lower_bound_name)
    head = ["provider", *(f"{result.case.data}, {result.case.stage}" for result in results)]
    rows = [[name, *(error_of(result, name) for result in results)] for name in names]
    case = results[0].case
    what = f"Relative error of the gradients against float64: {case.loss}, {case.dtype}, {case.size}."
    return "\n\n".join(
        [f"{what} {where(document.machine, document.command)}", markdown(head, rows), *_left_out(document)]
    )


def error_of(result: Result, name: str) -> str:
    """A provider's gradient error."""
    row = result.measured.get(name)
    if row is None:
        return ""
    # Null with a note is a number that JSON has no word for.
    return (
        "nan"
        if row.gradient_error is None and "gradient_error is nan" in row.note
        else number(row.gradient_error, ".1e", "")
    )


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation, or one number where all are equal."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
