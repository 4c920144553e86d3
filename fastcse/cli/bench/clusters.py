"""`fastcse bench kmeans`."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from ..console import Backend, Json, one_sentence_errors, whole_option
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
    from ...bench.clusters.problem import ClustersProblem

ALL = "assignment,update,iteration"


@one_sentence_errors
def kmeans(
    what: Annotated[str, typer.Option(metavar="NAMES", help=f"assignment, update, iteration. {LIST}.")] = ALL,
    n: Annotated[str, typer.Option(metavar="INTS", help=f"Points. {LIST}.")] = "100000",
    k: Annotated[str, typer.Option(metavar="INTS", help=f"Clusters. {LIST}.")] = "1024",
    d: Annotated[str, typer.Option(metavar="INTS", help=f"Width of a point. {LIST}.")] = "384",
    iterations: Annotated[int, whole_option("Iterations of --what iteration, the same for everyone.")] = 3,
    metric: Annotated[str, typer.Option(metavar="NAMES", help=f"euclidean, cosine. {LIST}.")] = "euclidean",
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
    """K-means over all points from the same start: time, TFLOP/s, memory, inertia and labels against float64.

    iteration makes --iterations of them and then the labels. A provider that is not installed, or does not compute the
    problem, is listed with the reason.
    """
    from ...bench.clusters.subject import PROVIDERS

    problems = _problems(what=what, n=n, k=k, d=d, iterations=iterations, metric=metric, dtype=dtype, device=device,
                         data=data, seed=seed, backend=backend)  # fmt: skip
    run_all(problems, names(peers, PROVIDERS, ("fastcse",)), repeat=repeat, memory=memory, json_file=json_file,
            csv=csv, plot=plot, as_json=as_json)  # fmt: skip


def _problems(*, what, n, k, d, iterations, metric, dtype, device, data, seed, backend) -> list[ClustersProblem]:
    from ...bench.clusters.problem import METRICS, WHATS, ClustersProblem
    from ...bench.data import KINDS
    from ...training.options import check_at_least, check_backend

    check_backend(backend)
    check_at_least("iterations", iterations, 1)
    device, dtype = place(device, dtype)
    whats, metrics, kinds = (
        [one_of(option, x, known) for x in text.split(",")]
        for option, text, known in (("--what", what, WHATS), ("--metric", metric, METRICS), ("--data", data, KINDS))
    )
    problems = []
    for kind, which, rows, clusters, width, part in product(
        kinds, metrics, sizes("--n", n), sizes("--k", k), sizes("--d", d), whats
    ):
        if clusters > rows:
            raise InputError(f"--k is {clusters} and --n is {rows}: expected at most as many clusters as points")
        problems.append(
            ClustersProblem(rows, clusters, width, part, iterations, which, dtype, device, kind, seed, backend)
        )
    return problems
