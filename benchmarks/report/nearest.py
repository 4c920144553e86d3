"""Tables of the search and of mining, from documents of `fastcse bench topk` and `fastcse bench mining`."""

from __future__ import annotations

from typing import Any

from .files import rows_of, table, where
from .loss import left_out

SIZES = {"n": "N", "m": "M", "d": "D", "k": "k", "negatives": "negatives"}
# field -> heading, format
ACCURACY = {"recall": ("recall", ".5f"), "recall_tied": ("with ties", ".5f"), "value_error": ("value error", ".1e"),
            "same": ("same triplets", ".5f")}  # fmt: skip


def search_table(document: dict[str, Any] | None, what: str, command: str) -> str:
    """Every provider of one file, a table for what shares all but its sizes; and who was left out and why."""
    if document is None:
        return f"{what}: not measured (`{command}`)."
    groups: dict[str, list[dict]] = {}
    for result in document["results"]:
        groups.setdefault(_setting(result), []).append(result)
    parts = [part for setting, results in groups.items() for part in (setting, _table(results))]
    return "\n\n".join([where(document), *parts, *left_out(document)])


def _setting(result: dict[str, Any]) -> str:
    kept = ("metric", "dtype", "device", "data", "filters")
    return f"{result['operation']}, {', '.join(str(result[key]) for key in kept if result.get(key))}:"


def _table(results: list[dict]) -> str:
    sizes = {key: label for key, label in SIZES.items() if key in results[0]}
    accuracy = {key: label for key, label in ACCURACY.items() if key in results[0]["rows"][0]}
    head = ["provider", *sizes.values(), "ms", "20% - 80%", "/ bare product", "TFLOP/s", "MiB beyond in- and outputs",
            *(heading for heading, _ in accuracy.values())]  # fmt: skip
    rows = []
    for result in results:
        for name, row in rows_of(result).items():
            memory = "-" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"
            found = ["" if row[key] is None else format(float(row[key]), form) for key, (_, form) in accuracy.items()]
            rows.append([name if row["choice"] is None else f"{name} ({row['choice']})",
                         *(str(result[key]) for key in sizes), f"{row['ms']:.4g}",
                         f"{row['ms_20']:.4g} - {row['ms_80']:.4g}", f"{row['to_products']:.2f}",
                         f"{row['tflops']:.3g}", memory, *found])  # fmt: skip
    return table(head, rows)
