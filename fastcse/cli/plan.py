"""`fastcse plan`: what a training run will need, before it is started."""

from __future__ import annotations

import dataclasses
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import InputError
from ..planning.encoder import ENCODERS, Encoder, of_parameters, usual_encoder
from ..planning.hardware import BYTES, GPUS, Hardware
from ..planning.report import planned
from ..planning.request import BANKS, OBJECTIVES, Run, check_known
from ..planning.units import duration, gigabytes
from .console import Json, one_sentence_errors, real_option, show, whole_option

BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MACHINE = {"rich_help_panel": "Machines"}
MODEL = {"rich_help_panel": "Model and loss"}
CORPUS = {"rich_help_panel": "Corpus"}


def count(text: str | int) -> int:
    """A whole number: 65536, 1e9, 2.5e6, or with k, M, G in powers of 1024, as batches are counted."""
    text = str(text)  # some versions of typer send defaults through here too
    unit = BINARY.get(text[-1:].lower(), 1)
    try:
        value = Decimal(text[:-1] if unit > 1 else text) * unit
        if value == value.to_integral_value():
            return int(value)
    except (InvalidOperation, OverflowError, ValueError):
        pass
    raise typer.BadParameter(f"{text!r} is not a whole number, such as 65536, 64k or 1e9")


def count_option(help: str, **more: Any) -> Any:
    return typer.Option(parser=count, metavar="COUNT", help=help, **more)


@one_sentence_errors
def plan(
    batch: Annotated[int, count_option("Anchors of a step over all GPUs: 4M is 4194304.", show_default=False)],
    gpus: Annotated[int, count_option("How many; one process each.", **MACHINE)] = 1,
    gpu: Annotated[str, typer.Option(metavar="|".join(GPUS), help="Which kind.", **MACHINE)] = "h100",
    gpus_per_host: Annotated[int, whole_option("Of one machine.", **MACHINE)] = 8,
    network: Annotated[float, real_option("GB/s in and out of a machine.", **MACHINE)] = 50.0,
    memory: Annotated[float | None, real_option("GB of one, if not as in the table.", **MACHINE)] = None,
    tflops: Annotated[float | None, real_option("Attained by products, if not as in the table.", **MACHINE)] = None,
    dim: Annotated[int | None, whole_option("Of an embedding. (default: the model's)", **MODEL)] = None,
    model: Annotated[str | None, typer.Option(metavar="|".join(ENCODERS), help="Encoder. (default: the one of --dim)",
                                              **MODEL)] = None,
    parameters: Annotated[int | None, count_option("Of another encoder, as wide as --dim.", **MODEL)] = None,
    mini_batch: Annotated[int, count_option("Texts that a GPU encodes at once (GradCache).", **MODEL)] = 1024,
    max_length: Annotated[int, whole_option("Tokens of a text.", **MODEL)] = 32,
    objective: Annotated[str, typer.Option(metavar="|".join(OBJECTIVES), help="The loss.", **MODEL)] = "infonce",
    negatives: Annotated[int, whole_option("Hard negatives of each anchor.", **MODEL)] = 0,
    dtype: Annotated[str, typer.Option(metavar="|".join(BYTES), help="Of embeddings and products.", **MODEL)] = "bf16",
    chunked: Annotated[bool, typer.Option("--chunked", help="Candidates travel in chunks; else every GPU gathers all.",
                                          **MODEL)] = False,
    workspace: Annotated[float | None, real_option("GB, at most, of the loss. (default: the backend's)",
                                                   **MODEL)] = None,
    steps: Annotated[int | None, count_option("Of the training.", **MODEL)] = None,
    epochs: Annotated[float | None, real_option("The same, in passes over --corpus.", **MODEL)] = None,
    corpus: Annotated[int | None, count_option("Rows of a corpus index, to mine and to cluster.", **CORPUS)] = None,
    bank: Annotated[str, typer.Option(metavar="|".join(BANKS), help="Where it is: spread over the GPUs, or a memory "
                                      "map.", **CORPUS)] = "gpu",
    bank_dtype: Annotated[str, typer.Option(metavar="fp16|bf16|fp32", help="Of its rows.", **CORPUS)] = "fp16",
    clusters: Annotated[int | None, count_option("K of k-means over it.", **CORPUS)] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Say what a training run will need, before it is started: memory, time, traffic, and what would make it fit.

    Arithmetic on published rates: nothing runs, no GPU is needed. Numbers may be written 1e9, 64k or 4M (1024 x 1024).
    """
    hardware, encoder = _hardware(gpu, memory, tflops), _encoder(model, parameters, dim)
    run = Run(
        batch=batch, dim=encoder.hidden if dim is None else dim, gpus=gpus, hardware=hardware, encoder=encoder,
        mini_batch=mini_batch, max_length=max_length, negatives=negatives, objective=objective, dtype=dtype,
        gpus_per_host=gpus_per_host, network=1e9 * network, chunked=chunked, corpus=corpus, bank=bank,
        bank_dtype=bank_dtype, clusters=clusters, workspace=None if workspace is None else 1e9 * workspace,
    )  # fmt: skip
    report = planned(run, steps=steps, epochs=epochs)
    show(report, as_json, *pictures(report))


def _hardware(gpu: str, memory: float | None, tflops: float | None) -> Hardware:
    """The table's row, with what the caller knows better."""
    check_known("--gpu", gpu, GPUS)
    own = {}
    for name, value in (("--memory", memory), ("--tflops", tflops)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} is {value}: expected a finite number above 0")
    if memory is not None:
        own["memory"] = 1e9 * memory
    if tflops is not None:
        own |= dict.fromkeys(("half", "tf32", "single"), 1e12 * tflops)
    return dataclasses.replace(GPUS[gpu], **own)


def _encoder(model: str | None, parameters: int | None, dim: int | None) -> Encoder:
    if model is not None and parameters is not None:
        raise InputError(f"--model {model} and --parameters {parameters} are both given: expected one of them")
    if parameters is not None:
        for name, value in (("--parameters", parameters), ("--dim", dim)):
            if value is None or value < 1:
                raise InputError(f"{name} is {value}: --parameters needs both, each at least 1")
        return of_parameters(parameters, dim)
    if model is not None:
        check_known("--model", model, ENCODERS)
        return ENCODERS[model]
    return usual_encoder(dim)


def pictures(report: dict[str, Any]) -> list[Any]:
    """What is printed: the run in a line, four tables at most, the verdict, and the notes."""
    shown = [_headline(report), _memory(report), _step(report)]
    if report["messages"]:
        shown.append(_messages(report))
    if report["corpus"]:
        shown.append(_corpus(report))
    colour = "green" if report["fits"] else "red"
    shown.append(f"[bold {colour}]{escape(report['verdict'])}[/]")
    return [*shown, *(f"[dim]- {escape(note)}[/]" for note in report["notes"])]


def _headline(report: dict[str, Any]) -> str:
    run = report["run"]
    where = f"{run['gpus']:,} x {run['hardware']['name']} in {_hosts(run)}, {run['local_batch']:,} anchors each"
    what = f"{run['objective']}, {run['candidates']:,} candidates, D = {run['dim']:,}, {run['dtype']}"
    return f"[bold]{where}; {what}; {run['encoder']['name']}[/]"


def _hosts(run: dict[str, Any]) -> str:
    return "one host" if run["hosts"] == 1 else f"{run['hosts']:,} hosts"


def _table(title: str, columns: dict[str, str]) -> Table:
    """A table with these columns, left or right."""
    table = Table(title=title, title_justify="left")
    for name, side in columns.items():
        table.add_column(name, justify=side, overflow="fold")
    return table


def _memory(report: dict[str, Any]) -> Table:
    table = _table("memory of one GPU", {"what": "left", "GB": "right", "held in": "left"})
    for held in report["memory"]:
        table.add_row(held["name"], gigabytes(held["bytes"]), held["when"])
    table.add_section()
    table.add_row("at once, at most", gigabytes(report["peak_bytes"]), f"of {gigabytes(report['usable_bytes'])}")
    return table


def _step(report: dict[str, Any]) -> Table:
    sides = {"stage": "left", "time": "right", "share": "right", "bound by": "left"}
    table, total = _table("time of a step, estimate", sides), report["step"]["seconds"]
    for stage in report["step"]["stages"]:
        table.add_row(stage["name"], duration(stage["seconds"]), f"{stage['seconds'] / total:.1%}", stage["bound"])
    table.add_section()
    table.add_row("a step", duration(total))
    training = report["training"]
    if training:
        hours = f"{training['gpu_hours']:,.0f} GPU hours"
        table.add_row(f"{training['steps']:,} steps, {hours}", duration(training["seconds"]))
    return table


def _messages(report: dict[str, Any]) -> Table:
    run = report["run"]
    sides = {"message": "left", "GB a link": "right", "in a host": "right", "between hosts": "right"}
    table = _table(f"traffic of a step, {_hosts(run)}", sides)
    for message in report["messages"]:
        between = duration(message["between"]) if run["hosts"] > 1 else "-"
        table.add_row(message["name"], gigabytes(message["bytes"]), duration(message["inside"]), between)
    return table


def _corpus(report: dict[str, Any]) -> Table:
    run, corpus = report["run"], report["corpus"]
    title = f"corpus of {run['corpus']:,} in {run['bank_dtype']}, estimate"
    table = _table(title, {"on all GPUs": "left", "time": "right", "bound by": "left"})
    for stage in corpus["stages"]:
        table.add_row(stage["name"], duration(stage["seconds"]), stage["bound"])
    table.add_section()
    table.add_row(
        "index", f"{gigabytes(corpus['index_bytes'])} GB", f"{gigabytes(corpus['index_bytes_per_gpu'])} a GPU"
    )
    return table
