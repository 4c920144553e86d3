"""Hard negatives of queries among the rows of a corpus: arrays in, arrays out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..encoding import progress_bar
from ..operands import METRICS
from ..ops import checks
from ..retrieval.arguments import as_excluded
from ..retrieval.arrays import as_rows, check_finite
from .candidates import CandidateSearch, Corpus, Rerank, Reranker
from .options import MiningOptions
from .positives import Positives, as_positives

STEPS = 16  # movements of the bar, but not for fewer queries than this: every search begins with a pass over the corpus
FEWEST_QUERIES = 16384
MOST_CANDIDATES = 1 << 23  # held at once


class MinedNegatives(NamedTuple):
    """What `mine_negatives` found, on the CPU, whatever it searched on.

    indices:         (Q, num_negatives) int64 rows of the corpus, best first, -1 where there is none.
    scores:          (Q, num_negatives) float32, -inf where there is none.
    positives:       the positives, and
    positive_scores: (P,) float32, their scores.
    counts:          for each filter (dropped, of how many that reached it) in the first window, in their order.
    window:          (range_min, range_max) that was used first.
    widened:         how many queries had too few candidates in it and were searched further.

    Example:
        >>> mined = mine_negatives(torch.eye(3), torch.eye(3), torch.arange(3), num_negatives=2, max_score=0.5)
        >>> mined.indices[0], mined.counts, mined.window
        (tensor([1, 2]), {'positive': (3, 9), 'max_score': (0, 6)}, (0, 21))
    """

    indices: Tensor
    scores: Tensor
    positives: Positives
    positive_scores: Tensor
    counts: dict[str, tuple[int, int]]
    window: tuple[int, int]
    widened: int


def mine_negatives(
    query: Tensor | np.ndarray,
    corpus: Any,
    positives: Positives | Tensor | np.ndarray,
    *,
    exclude: Tensor | np.ndarray | None = None,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    num_negatives: int = 3,
    sampling_strategy: str = "top",
    seed: int = 0,
    include_positives: bool = False,
    rescore: Rerank | None = None,
    metric: str = "cosine",
    backend: str | None = None,
    progress: bool = False,
) -> MinedNegatives:
    r"""Near rows of the corpus that are no positives of a query, for embeddings of any model.

    Of the nearest rows of a query its positives and what `exclude` names are left out. A candidate of score s is
    dropped, where p is the score of the query's weakest positive,

        by absolute_margin where s + absolute_margin > p
        by relative_margin where s > p - |p| relative_margin
        by max_score       where s > max_score
        by min_score       where s < min_score

    Of what is left, ranks range_min <= r < range_max make a window; its best (or random) `num_negatives` are taken.

    Args:
        query:     (Q, D) float16 | bfloat16 | float32 | float64, tensor or array.
        corpus:    (M, D), also an `np.memmap`; or a `CorpusIndex`, whose ids and metric count then; or an object with
                   `search(query, k) -> (scores, ids)`, larger being better, `rows(ids)` and a length.
        positives: `Positives`, or (Q,) one row of the corpus for each query, -1 for none.
        exclude:   (Q,) or (Q, E) int64, further rows that are no candidates, padded by -1: for example a row
                   with the query's own text.
        range_min: ranks to skip, after the filters.
        range_max: rank to stop before. The range_max + P nearest rows are looked at, P being the most positives that a
                   query has. None: range_min + num_negatives + P, or with a filter by margin or by max_score, or with
                   `rescore`, range_min + 10 num_negatives + P; and then the window widens by itself. Where fewer than
                   range_min + num_negatives candidates are left to a query, the rows within its bounds are searched,
                   or, with `rescore` or a foreign object, twice as many rows, again and again: until there are enough,
                   until the corpus ends, or with `rescore` at 8 times the first window. A number never widens.
        max_score, min_score, absolute_margin, relative_margin: as above; None does nothing.
        sampling_strategy: "top", or "random": without replacement, the same for the same seed and input.
        include_positives: keep positives among the candidates; filters apply to them too.
        rescore:   (query_numbers (n,), corpus_rows (n,)) -> (n,) scores of another model, which then stand for those of
                   the search: called with many pairs at once, for candidates and positives. It decides filters and
                   order among what the search found.
        metric:    "cosine" | "ip" | "l2", of which the score is minus the distance.
        backend:   of the search, as in `topk`; an index has its own.
        progress:  show bars on stderr.

    Returns:
        MinedNegatives, whose tensors are on the CPU.

    Raises:
        ValueError: a number outside its range (num_negatives < 1, range_min < 0, range_min >= range_max, more negatives
            than the window holds, a margin that is NaN), shapes disagree, a row that is NaN or infinite, a positive
            that is no row of the corpus.

    Numerics:
        Scores are those of `topk`, float32, and filters compare in float32; ties go to the lower row. A zero row has
        cosine 0.

    Example:
        >>> corpus = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
        >>> mine_negatives(corpus[:1], corpus, torch.tensor([0]), num_negatives=2, max_score=0.9).indices
        tensor([[2, 3]])
    """
    options = MiningOptions.among(locals())
    return mine(
        query, corpus, positives, options, exclude, rerank=rescore, metric=metric, backend=backend, progress=progress
    )


@torch.no_grad()
def mine(
    query: Tensor | np.ndarray,
    corpus: Any,
    positives: Positives | Tensor | np.ndarray,
    options: MiningOptions,
    exclude: Tensor | np.ndarray | None = None,
    *,
    rerank: Rerank | None = None,
    metric: str = "cosine",
    backend: str | None = None,
    progress: bool = False,
) -> MinedNegatives:
    """`mine_negatives`, with options that are built and checked."""
    checks.check_choice("metric", metric, METRICS)
    query, _ = as_rows("query", query)
    check_finite("query", query, torch.arange(query.shape[0], device=query.device))
    corpus = Corpus(corpus, metric, backend, query)
    positives = as_positives(positives, query.shape[0]).to(query.device)
    n, device = query.shape[0], query.device
    exclude = query.new_zeros(n, 0).long() if exclude is None else as_excluded("exclude", exclude, n, device)
    exclude = exclude if bool((exclude >= 0).any()) else exclude[:, :0]
    with progress_bar("rescore", None, "pairs", progress and rerank is not None) as bar:
        reranker = None if rerank is None else Reranker(rerank, bar)
        scores, least = _score_positives(query, corpus, positives, reranker, options)
        end = options.end(positives.most, reranker is not None)
        search = CandidateSearch(query, corpus, positives, exclude, options, scores, least, end, reranker)
        return _mine(search, progress)


def _score_positives(
    query: Tensor, corpus: Corpus, positives: Positives, reranker: Reranker | None, options: MiningOptions
) -> tuple[Tensor, Tensor]:
    """(P,) scores of positives, NaN if the corpus has no row lookup, and (Q,) the least of each query, +inf without
    one."""
    number = positives.queries
    corpus.check_ids("positives", positives.indices)
    if reranker is not None:
        scores = reranker(number, positives.indices)
    elif corpus.has_rows:
        scores = corpus.pair_scores(query, number, positives.indices)
    elif options.needs_positive_scores:
        raise ValueError(
            f"absolute_margin and relative_margin need the scores of positives: expected a corpus with rows(ids), got "
            f"{type(corpus.index).__name__}"
        )
    else:
        scores = torch.full(number.shape, torch.nan, dtype=torch.float32, device=query.device)
    least = torch.full((query.shape[0],), torch.inf, dtype=torch.float32, device=query.device)
    return scores, least.scatter_reduce(0, number, scores, "amin")


def _mine(search: CandidateSearch, progress: bool) -> MinedNegatives:
    n, options, device = search.query.shape[0], search.options, search.query.device
    shape = (n, options.num_negatives)
    scores = torch.zeros(shape, dtype=torch.float32, device=device)
    ids = torch.zeros(shape, dtype=torch.int64, device=device)
    generator = torch.Generator("cpu").manual_seed(options.seed)
    with progress_bar("search", n, "queries", progress) as bar:
        for some in torch.arange(n, device=device).split(_queries_at_once(search, n)):
            for rows, candidate_scores, candidate_ids in search.find(some):
                scores[rows], ids[rows] = options.select(candidate_scores, candidate_ids, search.end, generator)
            bar.update(some.shape[0])
    return MinedNegatives(
        ids.cpu(),
        scores.cpu(),
        search.positives.to(torch.device("cpu")),
        search.positive_scores.cpu(),
        {name: tuple(pair.tolist()) for name, pair in search.counts.items()},
        (options.range_min, search.end),
        search.widened,
    )


def _queries_at_once(search: CandidateSearch, n: int) -> int:
    most = max(1, MOST_CANDIDATES // search.depth)
    steps = min(STEPS, max(1, n // FEWEST_QUERIES))
    return min(most, -(-n // steps)) if search.corpus.resident else most
