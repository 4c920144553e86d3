"""Hard negatives of queries among the rows of a corpus: arrays in, arrays out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..encoding import progress_bar
from ..ops import checks
from ..pairs import METRICS
from ..retrieval.arrays import as_ids, as_rows, check_finite
from .candidates import Finder
from .filters import Filters
from .options import MiningOptions
from .positives import Positives, as_positives
from .rescoring import Rescore, Rescorer
from .source import Source

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


@torch.no_grad()
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
    rescore: Rescore | None = None,
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
        exclude:   (Q,) or (Q, E) int64, further rows that are no candidates, padded by -1: a row with the query's own
                   text, say.
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
    options = MiningOptions(
        range_min, range_max, max_score, min_score, absolute_margin, relative_margin, num_negatives, sampling_strategy,
        seed, include_positives,
    )  # fmt: skip
    checks.check_choice("metric", metric, METRICS)
    query, _ = as_rows("query", query)
    check_finite("query", query, torch.arange(query.shape[0], device=query.device))
    source = Source(corpus, metric, backend, query)
    positives = as_positives(positives, query.shape[0]).to(query.device)
    exclude = _as_excluded(exclude, query)
    with progress_bar("rescore", None, "pairs", progress and rescore is not None) as bar:
        rescorer = None if rescore is None else Rescorer(rescore, bar)
        scores, least = _score_positives(query, source, positives, rescorer, options.filters)
        window = options.window(int(positives.counts.max()), rescore is not None)
        finder = Finder(
            query, source, positives, exclude, options.filters, window, least, scores, rescorer, include_positives
        )
        return _mine(finder, seed, progress)


def _as_excluded(exclude: Tensor | np.ndarray | None, query: Tensor) -> Tensor:
    """(Q, E) rows to leave out."""
    n = query.shape[0]
    if exclude is None:
        return torch.zeros(n, 0, dtype=torch.int64, device=query.device)
    rows = as_ids("exclude", exclude, query.device)
    if rows.dim() not in (1, 2) or rows.shape[0] != n:
        raise ValueError(f"exclude must have shape ({n},) or ({n}, E), one row for each query, got {tuple(rows.shape)}")
    rows = rows[:, None] if rows.dim() == 1 else rows
    return rows if bool((rows >= 0).any()) else rows[:, :0]


def _score_positives(
    query: Tensor, source: Source, positives: Positives, rescorer: Rescorer | None, filters: Filters
) -> tuple[Tensor, Tensor]:
    """(P,) scores of positives, NaN if nobody can tell, and (Q,) the least of each query, +inf without one."""
    number = positives.queries
    source.check_ids("positives", positives.columns)
    if rescorer is not None:
        scores = rescorer(number, positives.columns)
    elif source.has_rows:
        scores = source.pair_scores(query, number, positives.columns)
    elif filters.need_positives:
        raise ValueError(
            f"absolute_margin and relative_margin need the scores of positives: expected a corpus with rows(ids), got "
            f"{source.name}"
        )
    else:
        scores = torch.full(number.shape, torch.nan, device=query.device)
    least = torch.full((query.shape[0],), torch.inf, device=query.device)
    return scores, least.scatter_reduce(0, number, scores, "amin")


def _mine(finder: Finder, seed: int, progress: bool) -> MinedNegatives:
    n, window = finder.query.shape[0], finder.window
    shape, device = (n, window.num_negatives), finder.query.device
    scores, ids = torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.int64, device=device)
    generator = torch.Generator("cpu").manual_seed(seed)
    with progress_bar("search", n, "queries", progress) as bar:
        for some in torch.arange(n, device=device).split(_queries_at_once(finder, n)):
            for rows, candidate_scores, candidate_ids in finder.find(some):
                scores[rows], ids[rows] = window.select(candidate_scores, candidate_ids, generator)
            bar.update(some.shape[0])
    host = torch.device("cpu")
    return MinedNegatives(
        ids.to(host), scores.to(host), finder.positives.to(host), finder.positive_scores.to(host), finder.tally.read(),
        (window.range_min, window.range_max), finder.widened,
    )  # fmt: skip


def _queries_at_once(finder: Finder, n: int) -> int:
    most = max(1, MOST_CANDIDATES // finder.depth)
    steps = min(STEPS, max(1, n // FEWEST_QUERIES))
    return min(most, -(-n // steps)) if finder.source.resident else most
