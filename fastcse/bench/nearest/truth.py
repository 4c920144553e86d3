"""The nearest rows of some queries in float64, and how far an answer is from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import TopkProblem

SAMPLED = 64
PIECE_BYTES = 1 << 28
# Two ways of adding up one float64 product differ by less than this, relative to the lengths of the rows.
ROUNDING = 1e-12


class Truth(NamedTuple):
    """`sampled` (S,) queries, and the score of the k-th best row of each, `kth` (S,), larger being better."""

    problem: TopkProblem
    query: Tensor
    corpus: Tensor
    sampled: Tensor
    kth: Tensor


class Misses(NamedTuple):
    """How far an answer is from the truth.

    `recall`: the share of the k best rows that was found, where only rows of exactly the k-th score may stand for one
    another. `recall_tied`: the same with the provider's tolerance for ties. `value_error`: the largest difference of a
    value from the row's exact one, relative to the lengths of query and row.
    """

    recall: float
    recall_tied: float
    value_error: float


def exact(problem: TopkProblem, query: Tensor, corpus: Tensor) -> Truth:
    """The k-th best score of some queries, from the whole corpus in float64, some rows at a time."""
    sampled = torch.linspace(0, problem.n - 1, min(SAMPLED, problem.n), device=query.device).long()
    q = query[sampled].double()
    best = q.new_empty(len(q), 0)
    for piece in corpus.split(max(1, PIECE_BYTES // (8 * max(problem.d, len(q))))):
        s = torch.cat([best, scores(problem.metric, q, piece.double())], 1)
        best = s.topk(min(problem.k, s.shape[1]), 1).values
    return Truth(problem, query, corpus, sampled, best[:, -1])


def scores(metric: str, query: Tensor, corpus: Tensor) -> Tensor:
    """(S, R) scores, larger being better: cosine, product, or minus the squared distance."""
    if metric == "cosine":
        return F.normalize(query, dim=-1) @ F.normalize(corpus, dim=-1).T
    product = query @ corpus.T
    if metric == "ip":
        return product
    return 2 * product - query.square().sum(-1)[:, None] - corpus.square().sum(-1)


def misses(values: Tensor, indices: Tensor, truth: Truth, tolerance: float) -> Misses:
    """What an answer, (N, k) values and rows of the corpus, misses; each row counts once."""
    metric = truth.problem.metric
    index = indices[truth.sampled.to(indices.device)].long().to(truth.query.device)
    value = values[truth.sampled.to(values.device)].double().to(truth.query.device)
    real = (index >= 0) & (index < truth.problem.m)
    q, c = truth.query[truth.sampled].double(), truth.corpus[index.clamp(0, truth.problem.m - 1)].double()
    score = torch.stack([scores(metric, q[i : i + 1], c[i])[0] for i in range(len(q))])
    # What rounding may move a score by grows with the lengths of the rows.
    size = (q.norm(dim=-1)[:, None] * c.norm(dim=-1)) if metric != "cosine" else torch.ones_like(score)
    once = real & ~_repeated(index)

    def found(within: float) -> float:
        return (once & (score >= truth.kth[:, None] - within * size)).double().mean().item()

    # A value that is no number is an error that is none.
    error = ((value if metric != "l2" else -value) - score).abs() / torch.where(size == 0, 1.0, size)
    return Misses(found(ROUNDING), found(tolerance), error[real].amax().item() if real.any() else float("nan"))


def _repeated(index: Tensor) -> Tensor:
    """(S, k) where a row has stood before in the same answer."""
    order = index.argsort(dim=1, stable=True)
    ordered = index.gather(1, order)
    again = torch.zeros_like(index, dtype=torch.bool)
    return again.scatter(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
