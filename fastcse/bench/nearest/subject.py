"""The search as what is measured: recall and values against float64, and one product of all rows as the limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import make_rows
from ..subject import Entry, Metric, Result, Subject, WrongAnswer
from . import cuda, libraries, own
from .problem import TopkProblem
from .searcher import Answer, Searcher
from .truth import Truth, exact, misses

SEARCHERS: dict[str, Searcher] = {s.name: s for room in (own, libraries, cuda) for s in room.SEARCHERS}
# Values and indices as they are handed back: float32 and int64.
BYTES_OF_A_HIT = 12
LARGEST_VALUE_ERROR = 1e-5
# Of the product: small enough to stay in a CPU's cache, large enough to fill a GPU.
PANEL_BYTES = {"cpu": 1 << 28, "cuda": 4 << 30}


@dataclass
class TopkRow(Entry):
    """A provider of the search."""

    recall: float | None = None
    recall_tied: float | None = None
    value_error: float | None = None


class WrongNeighbours(WrongAnswer):
    """fastcse did not find the nearest rows."""


def bare_product(problem: TopkProblem) -> Callable[[Tensor, Tensor], None]:
    """All scores, some queries at a time into one panel that is written again and again: the limit."""
    panel_bytes = PANEL_BYTES[torch.device(problem.device).type]
    rows = max(1, min(problem.n, panel_bytes // (problem.m * problem.torch_dtype.itemsize)))
    panel = torch.empty(rows, problem.m, dtype=problem.torch_dtype, device=problem.device)

    def run(query: Tensor, corpus: Tensor) -> None:
        for piece in query.split(rows):
            torch.mm(piece, corpus.T, out=panel[: len(piece)])

    return run


def _prepare(searcher: Searcher, problem: TopkProblem, choice: int | None, rows: tuple[Tensor, Tensor]) -> Callable:
    return searcher.search(problem, choice, *rows)


def _judge(row: TopkRow, searcher: Searcher, answer: Answer, truth: Truth) -> None:
    values, indices = answer
    row.recall, row.recall_tied, row.value_error = misses(values, indices, truth, searcher.ties(truth.problem))


def _check(result: Result) -> None:
    ours = next((row for row in result.rows if row.provider == "fastcse"), None)
    if ours is None or ours.recall_tied is None:
        return
    if not ours.recall_tied == 1:
        raise WrongNeighbours(
            f"fastcse found {ours.recall_tied:.6f} of the nearest rows where all are promised, at "
            f"{result.problem.title}: nothing is reported; run the tests"
        )
    if not ours.value_error <= LARGEST_VALUE_ERROR:
        raise WrongNeighbours(
            f"fastcse's values are off by {ours.value_error:.1e}, more than {LARGEST_VALUE_ERROR:.0e}, at "
            f"{result.problem.title}: nothing is reported; run the tests"
        )


NEAREST = Subject(
    row=TopkRow, peers=SEARCHERS, inputs=make_rows, exact=exact, prepare=_prepare, judge=_judge, check=_check,
    wrong=WrongNeighbours, limit=bare_product, limit_note=lambda problem: "one product in panels, no selection",
    output_bytes=lambda problem, rows: problem.n * problem.k * BYTES_OF_A_HIT,
    metrics=(
        Metric("recall", "recall", "recall", "share", ".5f"),
        Metric("recall_tied", "with\nties", "recall with ties", "share", ".5f"),
        Metric("value_error", "value\nerror", "value error", "relative"),
    ),
    legend="MiB: beyond inputs and result; recall: of the k best by float64, and with what the provider rounds to one "
    "value as a tie; value error: largest, relative to the rows' lengths.",
    axes=("n", "m", "d", "k", "metric", "data"),
)  # fmt: skip
