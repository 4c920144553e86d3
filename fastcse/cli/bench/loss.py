"""`fastcse bench loss`."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from ..console import Backend, Json, one_sentence_errors, real_option, whole_option
from .options import (  # fmt: skip
    LIST,
    CsvFile,
    Data,
    Device,
    Dtype,
    JsonFile,
    Memory,
    Peers,
    PlotFile,
    Repeat,
    Seed,
    names,
    one_of,
    place,
    sizes,
)
from .run import run_all

if TYPE_CHECKING:
    from ...bench.problem import LossProblem


@one_sentence_errors
def loss(
    n: Annotated[str, typer.Option(metavar="INTS", help=f"Anchors. {LIST}.")] = "512,2048,8192",
    m: Annotated[int | None, whole_option("Candidates; by default as many as anchors.")] = None,
    d: Annotated[str, typer.Option(metavar="INTS", help=f"Width of a row. {LIST}.")] = "768",
    loss: Annotated[str, typer.Option(metavar="NAMES", help=f"infonce, focal, symmetric. {LIST}.")] = "infonce",
    dtype: Dtype = None,
    device: Device = None,
    data: Data = "clustered",
    stage: Annotated[str, typer.Option(metavar="NAMES", help=f"early or late in training. {LIST}.")] = "early",
    mode: Annotated[str, typer.Option(metavar="NAME", help="full (forward and backward) or no-grad-forward.")] = "full",
    temperature: Annotated[float, real_option("Temperature of the loss.")] = 0.05,
    peers: Peers = "all",
    backend: Backend = None,
    repeat: Repeat = 7,
    memory: Memory = True,
    seed: Seed = 0,
    json_file: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Contrastive losses: time, TFLOP/s, memory, and accuracy against float64, taken in turns in one run.

    A provider that is not installed, or does not compute the problem, is listed with the reason.
    """
    from ...bench.peers import PEERS

    problems = _problems(loss=loss, n=n, m=m, d=d, data=data, stage=stage, dtype=dtype, device=device, mode=mode,
                         temperature=temperature, seed=seed, backend=backend)  # fmt: skip
    # eager is the yardstick of the accuracy rule.
    run_all(problems, names(peers, PEERS, ("fastcse", "eager")), repeat=repeat, memory=memory, json_file=json_file,
            csv=csv, plot=plot, as_json=as_json)  # fmt: skip


def _problems(*, loss, n, m, d, data, stage, dtype, device, mode, temperature, seed, backend) -> list[LossProblem]:
    from ...bench.data import KINDS, STAGES
    from ...bench.problem import LOSSES, MODES, LossProblem
    from ...training.options import check_backend

    check_backend(backend)
    device, dtype = place(device, dtype)
    one_of("--mode", mode, MODES)
    if not 0 < temperature < float("inf"):
        raise InputError(f"--temperature must be above 0, got {temperature}")
    losses, kinds, stages = (
        [one_of(option, x, known) for x in text.split(",")]
        for option, text, known in (("--loss", loss, LOSSES), ("--data", data, KINDS), ("--stage", stage, STAGES))
    )
    problems = []
    for which, rows, width, kind, when in product(losses, sizes("--n", n), sizes("--d", d), kinds, stages):
        columns = rows if m is None else m
        try:
            problem = LossProblem(rows, columns, width, which, dtype, device, kind, when, mode, temperature, seed=seed,
                                  backend=backend)  # fmt: skip
        except ValueError as error:
            raise InputError(f"--m is {columns} and --n is {rows}: {error}") from None
        problems.append(problem)
    return problems
