"""Tables of the losses and of their accuracy, from documents of `fastcse bench loss`."""

from __future__ import annotations

from typing import Any

from fastcse.bench.loss import LossCase

from .files import rows_of, table, where

LIMIT = LossCase.lower_bound_name
OURS, BY_HAND = "fastcse", ("eager", "torch.compile")


def short_table(cpu: dict[str, dict]) -> str:
    """fastcse beside eager, torch.compile and the fastest peer: times as multiples of fastcse's."""
    if not cpu:
        return "Losses on the CPU: not measured (`make loss`)."
    head = ["loss", "N", "D", "fastcse, ms", "/ bare products", "eager", "torch.compile", "fastest peer",
            "MiB, fastcse", "MiB, eager"]  # fmt: skip
    rows = []
    for loss, document in cpu.items():
        for result in document["results"]:
            found = rows_of(result)
            ours = found[OURS]
            memory = [_whole(found.get(name, {}).get("extra_mib")) for name in (OURS, "eager")]
            others = [_times(found.get(name), ours) for name in BY_HAND]
            rows.append([loss, str(result["n"]), str(result["d"]), f"{ours['ms']:.4g}", f"{ours['to_products']:.2f}",
                         *others, _fastest_peer(found), *memory])  # fmt: skip
    what = (
        "Forward + backward in float32. Of eager, torch.compile and the fastest peer: time as a multiple of fastcse's."
    )
    places = dict.fromkeys(where(document).partition("; `")[0] for document in cpu.values())
    return f"{what} {'; '.join(places)}.\n\n" + table(head, rows)


def _times(row: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    return "-" if row is None else f"{row['ms'] / ours['ms']:.2f} x"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _fastest_peer(found: dict[str, dict]) -> str:
    peers = [row for name, row in found.items() if name not in (OURS, LIMIT, *BY_HAND)]
    if not peers:
        return "-"
    best = min(peers, key=lambda row: row["ms"])
    return f"{_times(best, found[OURS])} ({best['provider']})"


def full_table(document: dict[str, Any]) -> str:
    """Every provider of one file, a table for what shares all but its size; and who was left out and why."""
    groups: dict[str, list[dict]] = {}
    for result in document["results"]:
        groups.setdefault(_setting(result), []).append(result)
    parts = [part for setting, results in groups.items() for part in (setting, _sizes_table(results))]
    return "\n\n".join([where(document), *parts, *left_out(document)])


def _setting(result: dict[str, Any]) -> str:
    way = "forward + backward" if result["mode"] == "full" else "forward alone"
    rows = f"{result['data']} rows, {result['stage']}"
    return f"{result['loss']}, {way}, {result['dtype']}, {rows}, temperature {result['temperature']:g}:"


def _sizes_table(results: list[dict]) -> str:
    head = ["provider", "N", "M", "D", "ms", "20% - 80%", "/ bare products", "TFLOP/s", "MiB beyond in- and outputs",
            "loss error", "gradient error"]  # fmt: skip
    rows = []
    for result in results:
        size = [str(result[key]) for key in ("n", "m", "d")]
        for name, row in rows_of(result).items():
            errors = [_small(row[key]) for key in ("loss_error", "gradient_error")]
            rows.append([name if row["choice"] is None else f"{name} ({row['choice']})", *size, f"{row['ms']:.4g}",
                         f"{row['ms_20']:.4g} - {row['ms_80']:.4g}", _ratio(row["to_products"]),
                         f"{row['tflops']:.3g}", _whole(row["extra_mib"]), *errors])  # fmt: skip
    return table(head, rows)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"  # beside a batch of a million the bare products are not timed


def left_out(document: dict[str, Any]) -> list[str]:
    """One line: who was not measured, by reason."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for result in document["results"]:
        for row in result["rows"]:
            if row["status"] != "measured":
                groups.setdefault((row["status"], row["reason"]), {})[row["provider"]] = None
    lines = [f"{', '.join(names)} {status} ({reason})" for (status, reason), names in groups.items()]
    return [f"Not measured: {'; '.join(lines)}."] if lines else []


def accuracy_table(document: dict[str, Any] | None) -> str:
    """Relative gradient error by provider, kind of rows and stage."""
    if document is None:
        return "Accuracy on other kinds of rows: not measured (`make loss`)."
    results = document["results"]
    found = [rows_of(result) for result in results]
    names = [name for name in dict.fromkeys(name for rows in found for name in rows) if name != LIMIT]
    head = ["provider", *(f"{result['data']}, {result['stage']}" for result in results)]
    rows = [[name, *(_small(rows.get(name, {}).get("gradient_error")) for rows in found)] for name in names]
    first = results[0]
    problem = f"{first['loss']}, {first['dtype']}, N = {first['n']}, D = {first['d']}"
    return f"Relative error of the gradients against float64: {problem}. {where(document)}\n\n" + table(head, rows)


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
