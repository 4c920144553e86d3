"""fastcse, and what one writes by hand: products in pieces, each followed by torch.topk."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops.topk_search import topk
from ..peers.linear import unit
from .problem import TopkProblem
from .searcher import FLOAT32_TIES, Answer, Search, Searcher


def _fastcse(problem: TopkProblem, query: Tensor, corpus: Tensor) -> Search:
    return lambda: topk(query, corpus, problem.k, metric=problem.metric, backend=problem.backend)


def _by_hand(problem: TopkProblem, query: Tensor, corpus: Tensor, rows: int) -> Search:
    """Some queries at a time against the whole corpus."""

    def run() -> Answer:
        q, c = (unit(x) for x in (query, corpus)) if problem.metric == "cosine" else (query, corpus)
        lengths = c.float().square().sum(-1) if problem.metric == "l2" else None
        parts = [_piece(piece, c, lengths, problem.k) for piece in q.split(rows)]
        return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])

    return run


def _piece(query: Tensor, corpus: Tensor, lengths: Tensor | None, k: int) -> Answer:
    s = query @ corpus.T
    if lengths is None:
        return s.topk(k, 1)
    distance = (s.float().mul_(-2).add_(lengths)).add_(query.float().square().sum(-1)[:, None])
    return distance.topk(k, 1, largest=False)


def ties_of_products(problem: TopkProblem) -> float:
    """Scores that were rounded to the type of the rows."""
    return {"float32": FLOAT32_TIES, "float16": 2e-3, "bfloat16": 1.6e-2}[problem.dtype]


SEARCHERS = (
    Searcher("fastcse", _fastcse),
    Searcher(
        "torch chunked",
        _by_hand,
        note="mm, then torch.topk, some queries at a time; products in the rows' own type",
        choices=(256, 1024, 4096),
        ties=ties_of_products,
    ),
)
