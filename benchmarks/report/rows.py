"""Row-wise operations: what is wanted of them, and tables from documents of `fastcse bench rows`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastcse.bench.rowwise import OPS

from .files import rows_of, table, where
from .gpu import DTYPE, NOT_MEASURED, Target, ours, times_ours, worst_of
from .loss import left_out

# Where fewer rows stay in a cache, bandwidth is not the limit.
LARGE = 65536
COPY_SHARE, TIMES_EAGER, TIMES_COPY = 80, 4, 1.5


def _at(op: str) -> Callable[[dict], bool]:
    """Large problems of an operation, with the backward pass where it has one."""
    mode = "forward" if op == "adversarial" else "full"
    return lambda result: (result["op"], result["mode"]) == (op, mode) and result["n"] >= LARGE


def _cpu_targets() -> Iterator[Target]:
    for op in OPS:
        yield Target(f"{op}: time of eager / fastcse", ">=", TIMES_EAGER, "x", _at(op), times_ours("eager"))
        yield Target(f"{op}: time / one copy", "<=", TIMES_COPY, "x", _at(op), ours("to_products"))


CPU_TARGETS = tuple(_cpu_targets())
GPU_TARGETS = tuple(
    Target(f"{op}: of the copy's bandwidth", ">=", COPY_SHARE, "%", _at(op), ours("of_copy", 100)) for op in OPS
)


def row_target_table(cpu: dict[str, Any] | None, gpu: dict[str, dict]) -> str:
    """Every target with what was reached: float32 on the CPU, bfloat16 on each GPU."""
    rows = [[f"CPU, float32, {target.what}", target.text, _on(cpu, "cpu", "float32", target)]
            for target in CPU_TARGETS]  # fmt: skip
    for target in GPU_TARGETS:
        found = [f"{_on(document, 'cuda', DTYPE, target)}, {document['machine'].get('gpu', path)}"
                 for path, document in gpu.items()]  # fmt: skip
        rows.append([f"GPU, {DTYPE}, {target.what}", target.text, "; ".join(found) or NOT_MEASURED])
    return table([f"target, N >= {LARGE}", "wanted", "measured"], rows)


def _on(document: dict[str, Any] | None, device: str, dtype: str, target: Target) -> str:
    """What the target says of a file's results on one kind of device."""
    results = [] if document is None else document["results"]
    return worst_of(target, [r for r in results if r["device"].startswith(device) and r["dtype"] == dtype])


def rows_table(document: dict[str, Any] | None, what: str, command: str) -> str:
    """Every provider of one file, a table for what shares all but its sizes; and who was left out and why."""
    if document is None:
        return f"{what}: not measured (`{command}`)."
    groups: dict[str, list[dict]] = {}
    for result in document["results"]:
        groups.setdefault(_setting(result), []).append(result)
    parts = [part for setting, results in groups.items() for part in (setting, _table(results))]
    return "\n\n".join([where(document), *parts, *_notes(document), *left_out(document)])


def _setting(result: dict[str, Any]) -> str:
    way = "forward + backward" if result["mode"] == "full" else "forward alone"
    return f"{result['op']}, {way}, {result['dtype']}, {result['device']}, {result['data']} rows:"


def _table(results: list[dict]) -> str:
    head = ["provider", "N", "D", "ms", "20% - 80%", "/ copy", "GB/s", "of copy", "MiB beyond in- and outputs",
            "value error", "gradient error"]  # fmt: skip
    rows = []
    for result in results:
        for name, row in rows_of(result).items():
            memory = "-" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"
            errors = ["" if row[key] is None else f"{row[key]:.1e}" for key in ("value_error", "gradient_error")]
            rows.append([name if row["choice"] is None else f"{name} ({row['choice']})", str(result["n"]),
                         str(result["d"]), f"{row['ms']:.4g}", f"{row['ms_20']:.4g} - {row['ms_80']:.4g}",
                         f"{row['to_products']:.2f}", f"{row['gb_s']:.1f}", f"{row['of_copy']:.0%}", memory,
                         *errors])  # fmt: skip
    return table(head, rows)


def _notes(document: dict[str, Any]) -> list[str]:
    """One line: what each provider does, the copy first of all."""
    notes: dict[str, dict[str, None]] = {}
    for result in document["results"]:
        for name, row in rows_of(result).items():
            if row["note"]:
                notes.setdefault(name, {})[row["note"]] = None
    lines = [f"{name}: {'; '.join(found)}" for name, found in notes.items()]
    return [". ".join(lines) + "."] if lines else []
