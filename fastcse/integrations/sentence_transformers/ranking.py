"""Multiple negatives ranking in all its directions, as sweeps of InfoNCE.

Every term is a column of (N,): log sum exp(x_ij - x_i,positive) over one set of columns, and the loss of a row is the
logsumexp of its terms, or with a softmax of its own for each direction their mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...losses.contrastive import CandidateBlock
from ...losses.infonce import infonce_loss
from ..partition import log_partition, row_similarity


class Ranking(NamedTuple):
    """What is ranked, and how. `hardness` is the strength, 0 for none, of what `penalised` names."""

    scale: float
    normalize: bool
    directions: frozenset[str]
    joint: bool
    penalised: str | None
    hardness: float
    backend: str | None

    def rows(self, anchor: Tensor, candidate: Tensor, positive: Tensor | None, reduction: str = "none", **more):
        """InfoNCE at this temperature."""
        return infonce_loss(
            anchor, candidate, positive, temperature=1 / self.scale, normalize=self.normalize, reduction=reduction,
            backend=self.backend, **more,
        )  # fmt: skip

    def sum_of(self, anchor: Tensor, blocks: list[CandidateBlock], own: Tensor, scale: float) -> Tensor:
        """(N,) log sum exp(scale s_ij) over the blocks; rows of the same number are left out where blocks have ids."""
        ids = own if any(b.id is not None for b in blocks) else None
        return log_partition(
            anchor, blocks, temperature=1 / scale, anchor_id=ids, normalize=self.normalize, backend=self.backend
        )


class Columns(NamedTuple):
    """This process's (N, D) queries and positives, and the (M, D) of all processes, where its own start at `first`.
    `documents[0]` holds the positives.
    """

    query: Tensor
    document: Tensor
    queries: Tensor
    documents: list[Tensor]
    first: int

    @property
    def own(self) -> Tensor:
        """(N,) numbers of the own rows among all."""
        return torch.arange(self.first, self.first + len(self.query), device=self.query.device)

    @property
    def positive(self) -> Tensor | None:
        """`own`, or None where it is what a loss assumes."""
        return None if len(self.queries) == len(self.query) else self.own

    @property
    def every(self) -> Tensor:
        """(M,) numbers of all rows."""
        return torch.arange(len(self.queries), device=self.query.device)

    def others(self, columns: list[Tensor]) -> list[CandidateBlock]:
        """Blocks of which a row sees what belongs to other rows."""
        return [CandidateBlock(rows, id=self.every) for rows in columns]


def ranking_loss(c: Columns, r: Ranking) -> Tensor:
    """Scalar: the mean over the rows."""
    to_documents_only = not r.directions & {"doc_to_query", "doc_to_doc"}
    alone = len(c.queries) == len(c.query)
    if not r.hardness and (to_documents_only or (not r.joint and alone)):
        return _query_rows(c, r, c.documents[1:], "mean", symmetric=not to_documents_only)
    terms = _query_terms(c, r)
    if r.joint:
        terms += _document_terms(c, r)
        return torch.stack(terms).logsumexp(0).mean()
    rows = torch.stack(terms).logsumexp(0)
    if not to_documents_only:
        rows = (rows + r.rows(c.document, c.queries, c.positive)) / 2
    return rows.mean()


def _query_rows(c: Columns, r: Ranking, hard: list, reduction: str = "none", symmetric: bool = False) -> Tensor:
    """Each query and its positive among all positives, the blocks in `hard` and, if that is asked for, the queries."""
    blocks = [b if isinstance(b, CandidateBlock) else CandidateBlock(b) for b in hard]
    if "query_to_query" in r.directions:
        blocks += c.others([c.queries])
    ids = c.own if any(b.id is not None for b in blocks) else None
    return r.rows(
        c.query, c.documents[0], c.positive, reduction, negatives=blocks or None, anchor_id=ids, symmetric=symmetric
    )


def _query_terms(c: Columns, r: Ranking) -> list[Tensor]:
    hard = c.documents[1:]
    if not r.hardness or (r.penalised == "hard_negatives" and not hard):
        return [_query_rows(c, r, hard)]
    positive = r.scale * row_similarity(c.query, c.document, normalize=r.normalize)
    own = [row_similarity(c.query, n[c.first : c.first + len(c.query)], normalize=r.normalize) for n in hard]
    if r.penalised == "hard_negatives":
        # A row's own hard negatives are N numbers a column: left out of the sweep, and added with their penalty.
        penalised = [r.scale * s + r.hardness * s.detach() - positive for s in own]
        return [_query_rows(c, r, c.others(hard)), *penalised]
    everyone = r.penalised == "all_negatives"
    blocks = c.others(c.documents[:1]) + ([CandidateBlock(n) for n in hard] if everyone else c.others(hard))
    terms = [torch.zeros_like(positive), _penalised(c, r, blocks) - positive]
    if not everyone:
        terms += [r.scale * s - positive for s in own]
    if "query_to_query" in r.directions:
        terms.append(r.sum_of(c.query, c.others([c.queries]), c.own, r.scale) - positive)
    return terms


def _penalised(c: Columns, r: Ranking, blocks: list[CandidateBlock]) -> Tensor:
    """log sum exp(scale s + hardness s), where s of the second summand has no gradient."""
    total = r.sum_of(c.query, blocks, c.own, r.scale + r.hardness)
    # Every column has the same factor, so a constant share of the whole gradient is the penalty's.
    share = r.scale / (r.scale + r.hardness)
    return share * total + (1 - share) * total.detach()


def _document_terms(c: Columns, r: Ranking) -> list[Tensor]:
    others = c.others(c.documents) if "doc_to_doc" in r.directions else []
    if "doc_to_query" in r.directions:
        # Measured from the same positive, so that the terms of both sides can be added. It is counted on either side.
        ids = c.own if others else None
        return [r.rows(c.document, c.queries, c.positive, negatives=others or None, anchor_id=ids)]
    if not others:
        return []
    positive = r.scale * row_similarity(c.query, c.document, normalize=r.normalize)
    return [r.sum_of(c.document, others, c.own, r.scale) - positive]
