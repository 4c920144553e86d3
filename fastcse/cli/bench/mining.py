"""`fastcse bench mining`."""

from __future__ import annotations

from itertools import product
from typing import Annotated

import typer

from ...errors import InputError
from ..console import Json, one_sentence_errors, quiet_stdout, real_option, whole_option
from .options import LIST, CsvFile, JsonFile, Memory, Peers, PlotFile, Repeat, Seed, names, sizes
from .run import run_all


@one_sentence_errors
def mining(
    n: Annotated[str, typer.Option(metavar="INTS", help=f"Pairs of a query and its positive. {LIST}.")] = "20000",
    d: Annotated[str, typer.Option(metavar="INTS", help=f"Width of a row. {LIST}.")] = "384",
    negatives: Annotated[int, whole_option("Negatives for each pair.")] = 3,
    range_min: Annotated[int, whole_option("Ranks that are passed over.")] = 0,
    range_max: Annotated[int | None, whole_option("Ranks that are looked at; by default 10 a negative, and 1.")] = None,
    relative_margin: Annotated[
        float, real_option("Least distance from the positive's score, as a share of it.")
    ] = 0.05,
    peers: Peers = "all",
    repeat: Repeat = 3,
    memory: Memory = True,
    seed: Seed = 0,
    json_file: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFile = None,
    as_json: Json = False,
) -> None:
    """Mining hard negatives: time and memory beside sentence-transformers' miner, with the triplets compared.

    The embeddings come from a table, so that nothing but mining is measured.
    """
    from ...bench.mining import MINERS, MiningProblem
    from ...training.options import check_at_least

    for name, value, lowest in (("negatives", negatives, 1), ("range_min", range_min, 0)):
        check_at_least(name, value, lowest)
    if range_max is not None and range_max < range_min + negatives:
        raise InputError(f"--range-max is {range_max}: expected at least --range-min {range_min} + --negatives "
                         f"{negatives}")  # fmt: skip
    problems = [
        MiningProblem(rows, width, negatives, range_min, range_max, relative_margin, seed=seed)
        for rows, width in product(sizes("--n", n), sizes("--d", d))
    ]
    if (fewest := min(problem.n for problem in problems)) <= range_min + negatives:
        raise InputError(f"--n is {fewest}: expected more than --range-min {range_min} + --negatives {negatives}")
    run_all(problems, names(peers, MINERS, ("fastcse",)), repeat=repeat, memory=memory, json_file=json_file, csv=csv,
            plot=plot, as_json=as_json, quiet=quiet_stdout)  # fmt: skip
