"""Training steps: what is wanted of the loss stage, and tables from documents of `fastcse bench train`."""

from __future__ import annotations

from typing import Any

from fastcse.bench.train_step import OURS

from .files import rows_of, table, where
from .gpu import Target, times_ours, worst_of
from .loss import left_out

STEP, LOSS_STAGE = "training step", "cached loss stage"
THEIRS = "sentence-transformers cached"
LARGE, TIMES_THEIRS = 4096, 3


def _stage(mini_batch: int) -> Target:
    def pick(result: dict) -> bool:
        return (result["operation"], result["mini_batch"]) == (LOSS_STAGE, mini_batch) and result["n"] >= LARGE

    return Target(f"loss stage, mini-batch {mini_batch}: time of {THEIRS} / fastcse", ">=", TIMES_THEIRS, "x", pick,
                  times_ours(THEIRS))  # fmt: skip


CPU_TARGETS = (_stage(64), _stage(32))


def training_target_table(cpu: dict[str, Any] | None) -> str:
    """What is wanted of the loss stage on the CPU, and what was reached."""
    results = [] if cpu is None else [r for r in cpu["results"] if r["device"].startswith("cpu")]
    rows = [[f"CPU, float32, {target.what}", target.text, worst_of(target, results)] for target in CPU_TARGETS]
    return table([f"target, N >= {LARGE}", "wanted", "measured"], rows)


def training_table(document: dict[str, Any] | None, operation: str, what: str, command: str) -> str:
    """Every provider of one file, of one of the two operations; and who was left out and why."""
    results = [] if document is None else [r for r in document["results"] if r["operation"] == operation]
    if not results:
        return f"{what}: not measured (`{command}`)."
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(_setting(result), []).append(result)
    make = _step_table if operation == STEP else _stage_table
    parts = [part for setting, found in groups.items() for part in (setting, make(found))]
    return "\n\n".join([where(document), *parts, *left_out({"results": results})])


def _setting(result: dict[str, Any]) -> str:
    if result["operation"] == LOSS_STAGE:
        return f"InfoNCE, forward + backward, {result['dtype']}, {result['device']}, {result['data']} rows:"
    return (
        f"{result['model']}, a pair is a sentence twice ({result['corpus']}), at most {result['max_length']} tokens, "
        f"{result['dtype']}, {result['device']}:"
    )


def _step_table(results: list[dict]) -> str:
    head = ["provider", "N", "mini-batch", "sentences/s", "seconds a step", "20% - 80%", f"/ {OURS}",
            "MiB of a step at its peak", "loss", "gradient norm"]  # fmt: skip
    rows = []
    for result in results:
        for name, row in rows_of(result).items():
            rows.append([name, str(result["n"]), str(result["mini_batch"]), f"{row['sentences_s']:.1f}",
                         f"{row['ms'] / 1e3:.3g}", f"{row['ms_20'] / 1e3:.3g} - {row['ms_80'] / 1e3:.3g}",
                         f"{row['to_products']:.2f}", _whole(row["extra_mib"]), f"{row['loss']:.6f}",
                         f"{row['gradient_norm']:.5g}"])  # fmt: skip
    return table(head, rows)


def _stage_table(results: list[dict]) -> str:
    head = ["provider", "N", "D", "mini-batch", "ms", "20% - 80%", "/ bare products", "TFLOP/s",
            "MiB beyond in- and outputs", "loss error", "gradient error"]  # fmt: skip
    rows = []
    for result in results:
        for name, row in rows_of(result).items():
            errors = ["" if row[key] is None else f"{row[key]:.1e}" for key in ("loss_error", "gradient_error")]
            rows.append([name, *(str(result[key]) for key in ("n", "d", "mini_batch")), f"{row['ms']:.4g}",
                         f"{row['ms_20']:.4g} - {row['ms_80']:.4g}", f"{row['to_products']:.2f}",
                         f"{row['tflops']:.3g}", _whole(row["extra_mib"]), *errors])  # fmt: skip
    return table(head, rows)


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
