"""`fastcse demo`: the main job on text that every installation has, the docstrings of its own packages."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Group

from ..ops.dispatch import check_backend
from ..options import build, check, option
from .console import Json, facts_table, quiet_stdout, show, shown, table
from .options import command

HIGHER, LOWER = "higher is better", "lower is better"
SCORES = {
    "mrr_at_10": ("MRR@10", HIGHER), "recall_at_1": ("recall@1", HIGHER),
    "alignment": ("alignment", LOWER), "uniformity": ("uniformity", LOWER),
}  # fmt: skip


@dataclass(frozen=True)
class DemoOptions:
    """The defaults take about five minutes on two cores."""

    output_dir: str = option("demo-output", "Figure, numbers and model go here.", metavar="DIR")
    model: str = option("minilm", "Hub name, local folder, or minilm.", metavar="NAME")
    seed: int = option(0, "The same seed gives the same numbers.", least=0)
    max_steps: int = option(60, "Optimizer steps.", least=1)
    batch_size: int = option(64, "Pairs in a batch.", least=2)
    held_out: int = option(1000, "Pairs that are scored and never trained on.", least=1)
    backend: str | None = option(None, "triton, cpp or reference.", metavar="NAME", shown="the fastest that runs")
    packages: tuple[str, ...] | None = None  # whose docstrings; None: `demo_text.PACKAGES`
    lr: float = 5e-5
    max_length: int = 48
    cost_rows: int = 4096
    cost_repeats: int = 7

    def __post_init__(self):
        check(self)
        check_backend(self.backend)


@command(DemoOptions)
def demo(given: dict[str, Any], as_json: Json = False) -> None:
    """Train a real encoder on the docstrings of the installed packages and show what it learned and what it cost."""
    options = build(DemoOptions, given)
    with quiet_stdout():
        from .demo_job import run_demo

        report = run_demo(options, lambda line: print(line, file=sys.stderr))
    show(report, as_json, _tables(report))


def _tables(report: dict[str, Any]) -> Group:
    data, cost, training = report["data"], report["cost"], report["training"]
    title = f"{data['held_out']:,} held-out docstrings: find the text of a summary line"
    scores = []
    for name, (label, better) in SCORES.items():
        before, after = report["before"][name], report["after"][name]
        colour = "green" if (after > before) == (better == HIGHER) else "red"
        change = f"[{colour}]{after - before:+.4f}[/]"
        scores.append((f"{label} [dim]({better})[/]", shown(before, 4), shown(after, 4), change))
    costs = []
    for label, name, unit in (("time", "ms", "ms"), ("memory beyond inputs and gradients", "mib", "MiB")):
        fused, eager = cost[f"fused_{name}"], cost[f"eager_{name}"]
        ratio = f"{eager / fused:.1f} x" if fused and eager else "-"
        costs.append((label, f"{shown(fused, 1)} {unit}", f"{shown(eager, 1)} {unit}", ratio))
    where = f"N = {cost['rows']}, D = {cost['width']}, float32, {cost['device']}"
    about = {
        "backend": str(report["backend"]),
        "trained on": f"{data['train']:,} pairs, {len(training['step'])} steps of {report['options']['batch_size']}",
        "loss": f"{training['loss'][0]:.4f} first, {training['loss'][-1]:.4f} last",
        "time": f"{report['seconds']:.0f} s",
        "written": ", ".join(report["files"].values()),
    }
    return Group(
        table(title, ("", ">before", ">after", ">change"), scores),
        table(f"focal loss, forward and backward, {where}", ("", ">fused", ">eager", ">eager / fused"), costs),
        facts_table(about),
    )
