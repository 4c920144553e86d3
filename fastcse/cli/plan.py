"""`fastcse plan`: what a training run will need, before it is started."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from ..options import build
from ..planning.advice import duration, gigabytes, planned
from ..planning.model import Run
from .console import Json, show, table
from .options import command


@command(Run)
def plan(given: dict[str, Any], as_json: Json = False) -> None:
    """Say what a training run will need, before it is started: memory, time, traffic, and what would make it fit.

    Arithmetic on published rates: nothing runs, no GPU is needed. Numbers may be written 1e9, 64k or 4M (1024 x 1024).
    """
    report = planned(build(Run, given))
    show(report, as_json, *pictures(report))


def pictures(report: dict[str, Any]) -> list[Any]:
    """What is printed: the run in a line, four tables at most, the verdict, and the notes."""
    run = report["run"]
    where = f"{run['gpus']:,} x {run['hardware']['name']} in {_hosts(run)}, {run['local_batch']:,} anchors each"
    what = f"{run['objective']}, {run['candidates']:,} candidates, D = {run['dim']:,}, {run['dtype']}"
    shown = [f"[bold]{where}; {what}; {run['encoder']['name']}[/]", _memory(report), _step(report)]
    shown += [_messages(report)] if report["messages"] else []
    shown += [_corpus(run, report["corpus"])] if report["corpus"] else []
    colour = "green" if report["fits"] else "red"
    shown.append(f"[bold {colour}]{escape(report['verdict'])}[/]")
    return [*shown, *(f"[dim]- {escape(note)}[/]" for note in report["notes"])]


def _hosts(run: dict[str, Any]) -> str:
    return "one host" if run["hosts"] == 1 else f"{run['hosts']:,} hosts"


def _memory(report: dict[str, Any]) -> Table:
    rows = [(held["name"], gigabytes(held["bytes"]), held["when"]) for held in report["memory"]]
    total = ("at once, at most", gigabytes(report["peak_bytes"]), f"of {gigabytes(report['usable_bytes'])}")
    return table("memory of one GPU", ("what", ">GB", "held in"), rows, [total])


def _step(report: dict[str, Any]) -> Table:
    total, training = report["step"]["seconds"], report["training"]
    rows = [
        (stage["name"], duration(stage["seconds"]), f"{stage['seconds'] / total:.1%}", stage["bound"])
        for stage in report["step"]["stages"]
    ]
    totals = [("a step", duration(total))]
    if training:
        whole = f"{training['steps']:,} steps, {training['gpu_hours']:,.0f} GPU hours"
        totals.append((whole, duration(training["seconds"])))
    return table("time of a step, estimate", ("stage", ">time", ">share", "bound by"), rows, totals)


def _messages(report: dict[str, Any]) -> Table:
    columns = ("message", ">GB a link", ">in a host", ">between hosts")[: 3 if report["run"]["hosts"] == 1 else 4]
    rows = (
        (one["name"], gigabytes(one["bytes"]), duration(one["inside"]), duration(one["between"]))
        for one in report["messages"]
    )
    return table(f"traffic of a step, {_hosts(report['run'])}", columns, (row[: len(columns)] for row in rows))


def _corpus(run: dict[str, Any], corpus: dict[str, Any]) -> Table:
    title = f"corpus of {run['corpus']:,} in {run['bank_dtype']}, estimate"
    rows = [(stage["name"], duration(stage["seconds"]), stage["bound"]) for stage in corpus["stages"]]
    total = ("index", f"{gigabytes(corpus['index_bytes'])} GB", f"{gigabytes(corpus['index_bytes_per_gpu'])} a GPU")
    return table(title, ("on all GPUs", ">time", "bound by"), rows, [total])
