"""`fastcse demo`, on the command line."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from ..console import Backend, Json, one_sentence_errors, quiet_stdout, show, shown, whole_option

HIGHER, LOWER = "higher is better", "lower is better"
SCORES = {
    "mrr_at_10": ("MRR@10", HIGHER), "recall_at_1": ("recall@1", HIGHER),
    "alignment": ("alignment", LOWER), "uniformity": ("uniformity", LOWER),
}  # fmt: skip


@one_sentence_errors
def demo(
    output_dir: Annotated[str, typer.Option(metavar="DIR", help="Figure, numbers and model go here.")] = "demo-output",
    model: Annotated[str, typer.Option(metavar="NAME", help="Hub name, local folder, or minilm.")] = "minilm",
    seed: Annotated[int, whole_option("The same seed gives the same numbers.")] = 0,
    max_steps: Annotated[int, whole_option("Optimizer steps.")] = 60,
    batch_size: Annotated[int, whole_option("Pairs in a batch.")] = 64,
    held_out: Annotated[int, whole_option("Pairs that are scored and never trained on.")] = 1000,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Train a real encoder on the docstrings of the installed packages and show what it learned and what it cost."""
    with quiet_stdout():
        from .job import DemoOptions, run_demo

        options = DemoOptions(
            output_dir=output_dir, model=model, seed=seed, max_steps=max_steps, batch_size=batch_size,
            held_out=held_out, backend=backend,
        )  # fmt: skip
        report = run_demo(options, lambda line: print(line, file=sys.stderr))
    show(report, as_json, _tables(report))


def _tables(report: dict[str, Any]) -> Group:
    data = report["data"]
    scores = Table(
        title=f"{data['held_out']:,} held-out docstrings: find the text of a summary line", title_justify="left"
    )
    scores.add_column("")
    for column in ("before", "after", "change"):
        scores.add_column(column, justify="right")
    for name, (label, better) in SCORES.items():
        before, after = report["before"][name], report["after"][name]
        won = (after > before) == (better == HIGHER)
        change = f"[{'green' if won else 'red'}]{after - before:+.4f}[/]"
        scores.add_row(f"{label} [dim]({better})[/]", shown(before, 4), shown(after, 4), change)
    return Group(scores, _cost_table(report["cost"]), _facts(report))


def _cost_table(cost: dict[str, Any]) -> Table:
    title = f"focal loss, forward and backward, N = {cost['rows']}, D = {cost['width']}, float32, {cost['device']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("fused", "eager", "eager / fused"):
        table.add_column(column, justify="right")
    for label, name, unit in (("time", "ms", "ms"), ("memory beyond inputs and gradients", "mib", "MiB")):
        fused, eager = cost[f"fused_{name}"], cost[f"eager_{name}"]
        ratio = f"{eager / fused:.1f} x" if fused and eager else "-"
        table.add_row(label, f"{shown(fused, 1)} {unit}", f"{shown(eager, 1)} {unit}", ratio)
    return table


def _facts(report: dict[str, Any]) -> Table:
    data, training, files = report["data"], report["training"], report["files"]
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("backend", str(report["backend"]))
    table.add_row(
        "trained on", f"{data['train']:,} pairs, {len(training['step'])} steps of {report['options']['batch_size']}"
    )
    table.add_row("loss", f"{training['loss'][0]:.4f} first, {training['loss'][-1]:.4f} last")
    table.add_row("time", f"{report['seconds']:.0f} s")
    table.add_row("written", ", ".join(files.values()))
    return table
