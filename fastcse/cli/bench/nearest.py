"""`fastcse bench topk`."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from ..console import Backend, Json, one_sentence_errors
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
    from ...bench.nearest.problem import TopkProblem


@one_sentence_errors
def nearest(
    n: Annotated[str, typer.Option(metavar="INTS", help=f"Queries. {LIST}.")] = "2048",
    m: Annotated[str, typer.Option(metavar="INTS", help=f"Rows of the corpus. {LIST}.")] = "50000",
    d: Annotated[str, typer.Option(metavar="INTS", help=f"Width of a row. {LIST}.")] = "384",
    k: Annotated[str, typer.Option(metavar="INTS", help=f"Rows to find for each query. {LIST}.")] = "32",
    metric: Annotated[str, typer.Option(metavar="NAMES", help=f"cosine, ip, l2. {LIST}.")] = "ip",
    dtype: Dtype = None,
    device: Device = None,
    data: Data = "clustered",
    peers: Peers = "all",
    backend: Backend = None,
    repeat: Repeat = 5,
    memory: Memory = True,
    seed: Seed = 0,
    json_file: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Exact nearest rows: time, TFLOP/s, memory, and recall against float64, taken in turns in one run.

    A provider that is not installed, or does not compute the problem, is listed with the reason.
    """
    from ...bench.nearest.subject import SEARCHERS

    problems = _problems(n=n, m=m, d=d, k=k, metric=metric, dtype=dtype, device=device, data=data, seed=seed,
                         backend=backend)  # fmt: skip
    run_all(problems, names(peers, SEARCHERS, ("fastcse",)), repeat=repeat, memory=memory, json_file=json_file,
            csv=csv, plot=plot, as_json=as_json)  # fmt: skip


def _problems(*, n, m, d, k, metric, dtype, device, data, seed, backend) -> list[TopkProblem]:
    from ...bench.data import KINDS
    from ...bench.nearest.problem import METRICS, TopkProblem
    from ...training.options import check_backend

    check_backend(backend)
    device, dtype = place(device, dtype)
    metrics = [one_of("--metric", x, METRICS) for x in metric.split(",")]
    kinds = [one_of("--data", x, KINDS) for x in data.split(",")]
    problems = []
    for kind, which, rows, columns, width, count in product(
        kinds, metrics, sizes("--n", n), sizes("--m", m), sizes("--d", d), sizes("--k", k)
    ):
        if count > columns:
            raise InputError(f"--k is {count} and --m is {columns}: expected at most as many as the corpus has rows")
        problems.append(TopkProblem(rows, columns, width, count, which, dtype, device, kind, seed, backend))
    return problems
