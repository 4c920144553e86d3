"""Candidates of some queries: search, exclude positives, filter, and widen where too few are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..operands import SHORTEST_NORM
from ..ops.topk_search import TopK
from ..retrieval.arrays import as_rows, check_finite, is_mapped
from ..retrieval.exact import is_excluded
from ..retrieval.index import CorpusIndex
from .options import MiningOptions, count
from .positives import PairLookup, Positives

MOST_WIDENED = 8  # times the first window, where every further candidate costs a pass of the reranker
PAIRS_AT_ONCE = 8192
RERANKED_AT_ONCE = 16384  # many, so that a cross-encoder can put texts of one length together
HALF_STEP = 2.0**-24
SLACK = 1e-6  # of a squared distance, which is rounded before its root is taken

Rerank = Callable[[Tensor, Tensor], Any]


class Corpus:
    """What is searched, with scores of which larger is better.

    Args:
        corpus: (M, D) rows, a CorpusIndex, or an object with `search(query, k)` -> (scores, ids) and a length; where
                scores of positives are needed, also `rows(ids)`. Its scores are taken for `metric`'s.
        metric: of rows and of foreign objects.
    """

    def __init__(self, corpus: Any, metric: str, backend: str | None, query: Tensor):
        self.index, self.device = corpus, query.device
        if isinstance(corpus, Tensor | np.ndarray):
            rows, _ = as_rows("corpus", corpus)
            check_finite("corpus", rows, torch.arange(rows.shape[0], device=rows.device))
            self.index = CorpusIndex(rows, metric=metric, backend=backend, check=False)
        elif not callable(getattr(corpus, "search", None)) or not hasattr(corpus, "__len__"):
            raise ValueError(f"corpus must be rows or an index with search and len, got {type(corpus).__name__}")
        elif backend is not None:
            raise ValueError(f"backend is for a corpus of rows, got backend={backend!r} and {type(corpus).__name__}")
        self.has_bounds = isinstance(self.index, CorpusIndex)
        self.has_rows = callable(getattr(self.index, "rows", None))
        self.metric = self.index.metric if self.has_bounds else metric
        if self.has_bounds and self.index.dim != query.shape[1]:
            raise ValueError(
                f"query and corpus must have rows of one length, got {query.shape[1]} and {self.index.dim}"
            )
        # A memory map is read once for each search: it gets as many queries at once as their results leave room for.
        self.resident = isinstance(corpus, Tensor) or (isinstance(corpus, np.ndarray) and not is_mapped(corpus))

    def __len__(self) -> int:
        return len(self.index)

    def check_ids(self, name: str, ids: Tensor) -> None:
        """A ValueError if an id is known not to be in the corpus."""
        if not self.has_bounds:
            return
        known = self.index.ids.to(ids.device)
        numbered = torch.equal(known, torch.arange(len(self), device=ids.device))
        unknown = ids[ids >= len(self)] if numbered else ids[~torch.isin(ids, known)]
        if unknown.numel():
            raise ValueError(f"{name} must be rows of the {len(self)} of the corpus, got {int(unknown[0])}")

    def search(self, query: Tensor, k: int, low: Tensor | None = None, high: Tensor | None = None) -> TopK:
        """(n, K) float32 scores, best first, and ids, -1 where there is none, K = min(k, M).

        `low` and `high` (n,) float64 are bounds of the score, for a CorpusIndex; a little more is found.
        """
        k = min(k, len(self))
        if not self.has_bounds:
            values, ids = (torch.as_tensor(x, device=self.device) for x in self.index.search(query, k))
            return TopK(values.float().masked_fill(ids < 0, -torch.inf), ids.long())
        if low is not None and query.dtype == torch.float64:  # compared before they are rounded to float32
            low, high = low - low.abs() * HALF_STEP, high + high.abs() * HALF_STEP
        if self.metric == "l2" and low is not None:
            # The score is minus the distance, and the index compares squared distances.
            nearest, farthest = high.clamp_max(0).square(), low.clamp_max(0).square()
            low, high = nearest * (1 - SLACK), farthest * (1 + SLACK)
        found = self.index.search(query, k, min_score=low, max_score=high)
        values = -found.values.sqrt() if self.metric == "l2" else found.values
        return TopK(values.float(), found.indices)

    def pair_scores(self, query: Tensor, number: Tensor, ids: Tensor) -> Tensor:
        """(P,) float32 scores of queries `number` (P,) of `query` and rows `ids` (P,), as exact as those of `topk`."""
        parts = [ids.new_zeros(0, dtype=torch.float32)]
        for some_number, some in zip(number.split(PAIRS_AT_ONCE), ids.split(PAIRS_AT_ONCE)):
            rows = torch.as_tensor(self.index.rows(some)).to(self.device)
            if rows.shape != (len(some), query.shape[1]):
                expected = (len(some), query.shape[1])
                raise ValueError(f"corpus.rows must give rows of shape {expected}, got {tuple(rows.shape)}")
            parts.append(_pair_scores(query[some_number].double(), rows.double(), self.metric).float())
        return torch.cat(parts)


def _pair_scores(a: Tensor, c: Tensor, metric: str) -> Tensor:
    if metric == "l2":
        return -torch.linalg.vector_norm(a - c, dim=1)
    score = (a * c).sum(1)
    if metric == "ip":
        return score
    length = torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(c, dim=1)
    zero = (length[0] < SHORTEST_NORM) | (length[1] < SHORTEST_NORM)
    return torch.where(zero, 0.0, score / (length[0] * length[1]))


class Reranker(NamedTuple):
    """Cross-encoder reranking: calls `rerank(query_numbers (n,), corpus_rows (n,)) -> (n,) scores`.

    Raises:
        ValueError: the scores are not (n,) finite numbers.
    """

    rerank: Rerank
    bar: Any

    def __call__(self, number: Tensor, ids: Tensor) -> Tensor:
        """(n,) float32 scores of pairs."""
        parts = [torch.zeros(0, dtype=torch.float32, device=ids.device)]
        for some_number, some in zip(number.split(RERANKED_AT_ONCE), ids.split(RERANKED_AT_ONCE)):
            if not some.numel():
                continue
            scores = torch.as_tensor(self.rerank(some_number, some)).detach().to(ids.device, torch.float32)
            if scores.shape != some.shape:
                raise ValueError(f"rescore must give {len(some)} scores, one for each pair, got {tuple(scores.shape)}")
            for at in (~torch.isfinite(scores)).nonzero()[:1, 0].tolist():
                pair = f"query {int(some_number[at])} and corpus row {int(some[at])}"
                raise ValueError(f"rescore must give finite scores, got {scores[at].item()} for {pair}")
            parts.append(scores)
            self.bar.update(len(some))
        return torch.cat(parts)

    def candidates(self, number: Tensor, scores: Tensor, ids: Tensor) -> Tensor:
        """(n, K) new scores of candidates; those of -inf stay so, and are not scored."""
        there = scores > -torch.inf
        new = self(number[:, None].expand_as(ids)[there], ids[there])
        return torch.full_like(scores, -torch.inf).masked_scatter(there, new)


class Candidates(NamedTuple):
    """Of the queries `rows` (n,): `scores` and `ids` (n, K) of what is left, -inf and -1 where nothing is."""

    rows: Tensor
    scores: Tensor
    ids: Tensor


@dataclass
class CandidateSearch:
    """The candidates of a run.

    query:           (Q, D).
    exclude:         (Q, E) rows of the corpus that are no candidates, padded by -1.
    positive_scores: (P,), and `least_positive` (Q,) the least of each query.
    end:             the rank before which the window ends.
    """

    query: Tensor
    corpus: Corpus
    positives: Positives
    exclude: Tensor
    options: MiningOptions
    positive_scores: Tensor
    least_positive: Tensor
    end: int
    reranker: Reranker | None

    def __post_init__(self):
        self.counts: dict[str, Tensor] = {}
        self.widened = 0
        self._is_positive = PairLookup(self.positives)
        self.depth = self.end + self.positives.most  # ranks of the first window, excluded rows not counted

    def find(self, rows: Tensor) -> Iterator[Candidates]:
        """The candidates of queries `rows` (n,); then those of queries that had too few, again and wider."""
        scores, ids = self.corpus.search(self.query[rows], self.depth + self.exclude.shape[1])
        last, full = scores[:, -1], ids[:, -1] >= 0
        scores, ids = self._remaining(rows, scores, ids, first=True)
        yield Candidates(rows, scores, ids)
        low, high = self.options.bounds(self.least_positive[rows])
        short = full & self._is_short(scores)
        if self.reranker is None:
            short &= last >= low  # else all that is farther is below the bound
        short = short.nonzero()[:, 0]
        if self.options.range_max is not None or ids.shape[1] >= len(self.corpus) or not short.numel():
            return
        self.widened += short.shape[0]
        if self.corpus.has_bounds and self.reranker is None:
            yield from self._between(rows[short], low[short], high[short])
        else:
            yield from self._further(Candidates(rows[short], scores[short], ids[short]))

    def _is_short(self, scores: Tensor) -> Tensor:
        return (scores > -torch.inf).sum(1) < self.options.enough

    def _remaining(self, rows: Tensor, scores: Tensor, ids: Tensor, first: bool = False) -> tuple[Tensor, Tensor]:
        """Scores, -inf for what is dropped, and ids, -1 for what is excluded; counted in the first window."""
        counts = self.counts if first else {}
        if self.exclude.shape[1]:
            out = is_excluded(ids, self.exclude[rows]) & (ids >= 0)
            if self.options.include_positives:
                out &= ~self._is_positive(rows, ids)
            count(counts, "exclude", out, ids >= 0)
            ids = ids.masked_fill(out, -1)
        if first:
            # Excluded rows must not shorten the window of one query and lengthen that of another.
            ids = ids.masked_fill((ids >= 0).cumsum(1) > self.depth, -1)
        scores = scores.masked_fill(ids < 0, -torch.inf)
        if not self.options.include_positives:
            positive = self._is_positive(rows, ids)
            count(counts, "positive", positive, ids >= 0)
            scores = scores.masked_fill(positive, -torch.inf)
        if self.reranker is not None:
            scores = self.reranker.candidates(rows, scores, ids)
        return self.options.filter(scores, self.least_positive[rows], counts), ids

    def _between(self, rows: Tensor, low: Tensor, high: Tensor) -> Iterator[Candidates]:
        """The best between the bounds: one search, unless some are dropped by rounding at a bound."""
        # To sample, more than will be drawn.
        wanted = self.end if self.options.sampling_strategy == "random" else self.options.enough
        k = wanted + self.exclude.shape[1] + self._positives_between(rows, low, high)
        while rows.numel():
            scores, ids = self.corpus.search(self.query[rows], k, low, high)
            full = ids[:, -1] >= 0
            scores, ids = self._remaining(rows, scores, ids)
            yield Candidates(rows, scores, ids)
            more = full & self._is_short(scores) & (k < len(self.corpus))
            rows, low, high, k = rows[more], low[more], high[more], 2 * k

    def _positives_between(self, rows: Tensor, low: Tensor, high: Tensor) -> int:
        """The most positives that a search of one of the queries may find."""
        if self.options.include_positives:
            return 0
        n = self.query.shape[0]
        lowest, highest = (x.new_full((n,), torch.nan).index_copy(0, rows, x) for x in (low, high))
        number, score = self.positives.queries, self.positive_scores.double()
        between = (score >= lowest[number] - 1e-4) & (score <= highest[number] + 1e-4)
        return int(torch.bincount(number[between], minlength=1).max())

    def _further(self, found: Candidates) -> Iterator[Candidates]:
        """Twice as many candidates each time, the earlier ones kept as they were scored."""
        width = found.ids.shape[1]
        most = len(self.corpus) if self.reranker is None else MOST_WIDENED * width
        while width < min(most, len(self.corpus)):
            rows, width = found.rows, min(2 * width, most)
            scores, ids = self.corpus.search(self.query[rows], width)
            full = ids[:, -1] >= 0
            # By id and not by rank: an approximate index may rank otherwise when more are searched.
            ids = ids.masked_fill(is_excluded(ids, found.ids), -1)
            scores, ids = self._remaining(rows, scores, ids)
            found = Candidates(rows, torch.cat([found.scores, scores], 1), torch.cat([found.ids, ids], 1))
            yield found
            short = full & self._is_short(found.scores)
            found = Candidates(*(x[short] for x in found))
            if not found.rows.numel():
                return
