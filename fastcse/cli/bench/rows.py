"""`fastcse bench rows`."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

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
    from ...bench.rows.problem import RowsProblem

ALL = "quadruplet,normalize,adversarial"


@one_sentence_errors
def rows(
    op: Annotated[str, typer.Option(metavar="NAMES", help=f"quadruplet, normalize, adversarial. {LIST}.")] = ALL,
    n: Annotated[str, typer.Option(metavar="INTS", help=f"Rows. {LIST}.")] = "65536",
    d: Annotated[str, typer.Option(metavar="INTS", help=f"Width of a row. {LIST}.")] = "768",
    dtype: Dtype = None,
    device: Device = None,
    data: Data = "clustered",
    mode: Annotated[
        str, typer.Option(metavar="NAME", help="full (forward and backward) or forward; adversarial has no backward.")
    ] = "full",
    peers: Peers = "all",
    backend: Backend = None,
    repeat: Repeat = 11,
    memory: Memory = True,
    seed: Seed = 0,
    json_file: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Row-wise operations: time and bandwidth beside one copy of the same bytes, memory, accuracy against float64.

    A provider that is not installed, or does not compute the problem, is listed with the reason.
    """
    from ...bench.rows.ways import WAYS

    problems = _problems(op=op, n=n, d=d, dtype=dtype, device=device, data=data, mode=mode, seed=seed,
                         backend=backend)  # fmt: skip
    # eager is the yardstick of the accuracy rule.
    run_all(problems, names(peers, WAYS, ("fastcse", "eager")), repeat=repeat, memory=memory, json_file=json_file,
            csv=csv, plot=plot, as_json=as_json)  # fmt: skip


def _problems(*, op, n, d, dtype, device, data, mode, seed, backend) -> list[RowsProblem]:
    from ...bench.data import KINDS
    from ...bench.rows.problem import MODES, OPS, RowsProblem
    from ...training.options import check_backend

    check_backend(backend)
    device, dtype = place(device, dtype)
    one_of("--mode", mode, MODES)
    ops, kinds = (
        [one_of(option, x, known) for x in text.split(",")]
        for option, text, known in (("--op", op, OPS), ("--data", data, KINDS))
    )
    return [
        RowsProblem(count, width, which, dtype, device, kind, "forward" if which == "adversarial" else mode, seed,
                    backend)
        for which, count, width, kind in product(ops, sizes("--n", n), sizes("--d", d), kinds)
    ]  # fmt: skip
