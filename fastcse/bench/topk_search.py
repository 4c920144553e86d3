"""Exact nearest rows: recall and values against float64, and one product of all rows as the lower bound of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from ..options import option
from .case import ArrayCase, Measurement, Metric, Result
from .provider import Provider

METRICS = ("cosine", "ip", "l2")
# (N, k) values, and rows of the corpus; of l2 the values are squared distances.
Answer = tuple[Tensor, Tensor]
# Values and indices as they are returned: float32 and int64.
BYTES_OF_A_HIT = 12
LARGEST_VALUE_ERROR = 1e-5
# What two scores may differ by and still be a tie, relative to the lengths of the rows: added up in float32, or rounded
# to the type of the rows.
FLOAT32_TIES = 2e-6
ROUNDED_TIES = {"float32": FLOAT32_TIES, "float16": 2e-3, "bfloat16": 1.6e-2}
# Two ways of adding up one float64 product differ by less than this, relative to the lengths of the rows.
ROUNDING = 1e-12
# Of the product: small enough to stay in a CPU's cache, large enough to fill a GPU. Of float64 scores.
PANEL_BYTES, PIECE_BYTES = {"cpu": 1 << 28, "cuda": 4 << 30}, 1 << 28
SAMPLED = 64


@dataclass
class TopkMeasurement(Measurement):
    """A provider of the search. `recall`: the share of the k best rows that was found, where only rows of exactly the
    k-th score may stand for one another; `recall_tied`: the same with the provider's tolerance for ties. `value_error`:
    the largest difference of a value from the row's exact one, relative to the lengths of query and row."""

    recall: float | None = None
    recall_tied: float | None = None
    value_error: float | None = None


class Exact(NamedTuple):
    """`sampled` (S,) queries, and the score of the k-th best row of each, `kth` (S,), larger being better."""

    query: Tensor
    corpus: Tensor
    sampled: Tensor
    kth: Tensor


@dataclass(frozen=True)
class TopkCase(ArrayCase):
    """The k best of M rows for each of N queries of width D; query i has a row of the corpus that belongs to it.

    `backend` forces one of fastcse's.
    """

    n: int = option(2048, "Queries.", least=1, several=True)
    m: int = option(50_000, "Rows of the corpus.", least=1, several=True)
    d: int = option(384, "Width of a row.", least=1, several=True)
    k: int = option(32, "Rows to find for each query.", least=1, several=True)
    metric: str = option("ip", "Score.", choices=METRICS, several=True)

    row = TopkMeasurement
    metrics = (
        Metric("recall", "recall", ".5f"),
        Metric("recall_tied", "with\nties", ".5f"),
        Metric("value_error", "value\nerror"),
    )
    legend = (
        "MiB: beyond inputs and result; recall: of the k best by float64, and with what the provider rounds to one "
        "value as a tie; value error: largest, relative to the rows' lengths."
    )
    axes = ("n", "m", "d", "k", "metric", "data")
    operations = ("topk",)
    operation = "topk"
    sizes = (("N", "n"), ("M", "m"), ("D", "d"), ("k", "k"))
    lower_bound_note = "one product in panels, no selection"

    def __post_init__(self):
        super().__post_init__()
        if self.k > self.m:
            raise OptionError("k", f" is {self.k}: expected at most the rows of the corpus, ", "m", f" = {self.m}")

    @property
    def variant(self) -> str:
        return self.metric

    @property
    def flops(self) -> float:
        """Of the one product that everybody needs."""
        return 2.0 * self.n * self.m * self.d

    @property
    def setting(self) -> str:
        return f"{self.metric}, {self.where}, {self.data} rows"

    def exact(self, query: Tensor, corpus: Tensor) -> Exact:
        """The k-th best score of some queries, from the whole corpus in float64, some rows at a time."""
        sampled = torch.linspace(0, self.n - 1, min(SAMPLED, self.n), device=query.device).long()
        q = query[sampled].double()
        best = q.new_empty(len(q), 0)
        for piece in corpus.split(max(1, PIECE_BYTES // (8 * max(self.d, len(q))))):
            s = torch.cat([best, scores(self.metric, q, piece.double())], 1)
            best = s.topk(min(self.k, s.shape[1]), 1).values
        return Exact(query, corpus, sampled, best[:, -1])

    def score(self, row: TopkMeasurement, provider: Provider, outcome: Answer, exact: Exact) -> None:
        """Hold an answer, (N, k) values and rows of the corpus, against the exact scores; each row counts once."""
        values, indices = outcome
        q, device = exact.query[exact.sampled].double(), exact.query.device
        index = indices[exact.sampled.to(indices.device)].long().to(device)
        value = values[exact.sampled.to(values.device)].double().to(device)
        real = (index >= 0) & (index < self.m)
        c = exact.corpus[index.clamp(0, self.m - 1)].double()
        score = torch.stack([scores(self.metric, q[i : i + 1], c[i])[0] for i in range(len(q))])
        # The rounding error of a score is relative to the lengths of the rows.
        size = torch.ones_like(score) if self.metric == "cosine" else q.norm(dim=-1)[:, None] * c.norm(dim=-1)
        once = real & ~_repeated(index)

        def found(within: float) -> float:
            return (once & (score >= exact.kth[:, None] - within * size)).double().mean().item()

        row.recall = found(ROUNDING)
        row.recall_tied = found(ROUNDED_TIES[self.dtype] if provider.rounded else FLOAT32_TIES)
        # A value that is no number is an error that is none.
        error = ((value if self.metric != "l2" else -value) - score).abs() / torch.where(size == 0, 1.0, size)
        row.value_error = error[real].amax().item() if real.any() else float("nan")

    def fault(self, ours: TopkMeasurement, result: Result) -> str | None:
        if ours.recall_tied != 1:
            return f"fastcse found {ours.recall_tied:.6f} of the nearest rows where all are promised"
        if not ours.value_error <= LARGEST_VALUE_ERROR:
            return f"fastcse's values are off by {ours.value_error:.1e}, more than {LARGEST_VALUE_ERROR:.0e}"
        return None

    def lower_bound(self) -> Callable[[Tensor, Tensor], None]:
        return bare_product(self)

    def output_bytes(self, inputs: tuple) -> int:
        return self.n * self.k * BYTES_OF_A_HIT


def scores(metric: str, query: Tensor, corpus: Tensor) -> Tensor:
    """(S, R) scores, larger being better: cosine, product, or minus the squared distance."""
    if metric == "cosine":
        return F.normalize(query, dim=-1) @ F.normalize(corpus, dim=-1).T
    product = query @ corpus.T
    if metric == "ip":
        return product
    return 2 * product - query.square().sum(-1)[:, None] - corpus.square().sum(-1)


def _repeated(index: Tensor) -> Tensor:
    """(S, k) where a row has stood before in the same answer."""
    order = index.argsort(dim=1, stable=True)
    ordered = index.gather(1, order)
    again = torch.zeros_like(index, dtype=torch.bool)
    return again.scatter(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])


def bare_product(case: ArrayCase) -> Callable[[Tensor, Tensor], None]:
    """All N x M products, some queries at a time into one panel that is written again and again."""
    panel_bytes = PANEL_BYTES[torch.device(case.device).type]
    rows = max(1, min(case.n, panel_bytes // (case.m * case.torch_dtype.itemsize)))
    panel = torch.empty(rows, case.m, dtype=case.torch_dtype, device=case.device)

    def run(query: Tensor, corpus: Tensor) -> None:
        for piece in query.split(rows):
            torch.mm(piece, corpus.T, out=panel[: len(piece)])

    return run
