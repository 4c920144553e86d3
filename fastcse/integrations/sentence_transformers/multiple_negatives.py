"""sentence-transformers' MultipleNegativesRankingLoss and its gradient-cached twin, over fastcse's sweeps.

Every term is a column of (N,): log sum exp(x_ij - x_i,positive) over one set of columns, and the loss of a row is the
logsumexp of its terms, or with a softmax of its own for each direction their mean.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from sentence_transformers.sentence_transformer import losses as peer
from sentence_transformers.util import cos_sim, dot_score, similarity_fct_name
from torch import Tensor

from ...distributed import gather_equal_rows
from ...losses.contrastive import CandidateBlock
from ...losses.infonce import infonce_loss
from ...ops import checks
from ...ops.dispatch import last_backend
from ...reference import row_similarity
from .. import log_partition, warn_once

# The similarities that a sweep computes itself, and whether it normalises for them.
FUSED = {cos_sim: True, dot_score: False}


class MultipleNegativesRankingLoss(peer.MultipleNegativesRankingLoss):
    r"""sentence-transformers' loss of the same name and arguments, without the (N, M) similarities in memory.

    With s_ij the similarity of query i and document j, over all positives and hard negatives of the batch:

        loss_i = log sum_j exp(scale s_ij) - scale s_ii

    the mean over i; `directions` adds terms under the logarithm. One sweep does the default, "query_to_query", and the
    symmetric loss (both directions, "per_direction") on one process. Other documents' directions, and the hardness
    weighting, take two or three sweeps and a backward pass that computes the similarities again; the result is the
    same.

    Args:
        model:          the encoder; the embeddings are computed by it at each call.
        scale:          > 0, the inverse of the temperature.
        similarity_fct: `cos_sim` or `dot_score`. Any other runs in sentence-transformers' own class, with its memory;
                        that is logged once, and `used_backend` is "sentence-transformers".
        gather_across_devices: this process's rows against the rows of all, which must hold equally many.
        directions:     of "query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"; the first is required.
        partition_mode: "joint", one softmax, or "per_direction", one for each and their mean.
        hardness_mode:  None | "in_batch_negatives" | "hard_negatives" | "all_negatives": whose logits get
                        hardness_strength * s_ij more, as a constant.
        hardness_strength: >= 0.
        backend:        "triton" | "cpp" | "reference"; None lets fastcse choose. `used_backend` is the last one's name.

    Raises:
        ValueError: an argument is none of its values, or fewer than two columns are given.

    Numerics: as `infonce_loss`: float32 sums whatever the embeddings are, float64 in plain torch.

    Source: Henderson et al., arXiv:1705.00652; the directions, Li et al., arXiv:2308.03281; hardness, Lan et al.,
    arXiv:2503.04812. Interface: sentence-transformers 6.2.

    Example:
        >>> loss = MultipleNegativesRankingLoss(model, directions=("query_to_doc", "doc_to_query"))  # doctest: +SKIP
        >>> SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=loss).train()      # doctest: +SKIP
    """

    def __init__(self, *arguments: Any, backend: str | None = None, **options: Any):
        super().__init__(*arguments, **options)
        checks.check_above_zero("scale", self.scale)
        checks.check_finite("hardness_strength", self.hardness_strength)
        self.backend = backend
        self.used_backend: str | None = None  # of the last forward

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; `sentence_features` holds one tokenized batch per column, `labels` are not read."""
        return super().forward(sentence_features, labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss of columns that are already embedded: [(N, D) query, (N, D) positive, (N, D) negative ...]."""
        if len(embeddings) < 2:
            raise ValueError(f"expected at least 2 columns of embeddings, query and positive, got {len(embeddings)}")
        if self.similarity_fct not in FUSED:
            name = similarity_fct_name(self.similarity_fct)
            warn_once(f"similarity_fct={name} runs in sentence-transformers' own loss: no fused sweep has it")
            self.used_backend = "sentence-transformers"
            return super().compute_loss_from_embeddings(embeddings, labels)
        everyone, first = list(embeddings), 0
        if self.gather_across_devices:
            everyone, (first, *_) = zip(*map(gather_equal_rows, embeddings))
        columns = Columns(embeddings[0], embeddings[1], everyone[0], list(everyone[1:]), first)
        ranking = Ranking(
            self.scale,
            FUSED[self.similarity_fct],
            frozenset(self.directions),
            self.partition_mode == "joint",
            self.hardness_mode,
            0.0 if self.hardness_mode is None else self.hardness_strength,
            self.backend,
        )
        loss = ranking_loss(columns, ranking)
        self.used_backend = last_backend()
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """The options, for the model card."""
        return {**super().get_config_dict(), "backend": self.backend}


class CachedMultipleNegativesRankingLoss(peer.CachedMultipleNegativesRankingLoss):
    r"""`MultipleNegativesRankingLoss` over batches whose activations do not fit in memory (GradCache).

    The batch is embedded in pieces without gradients, the loss and its gradients by all embeddings are computed at
    once, and the pieces are embedded again to carry those back: a second forward pass for the memory of one piece. The
    loss itself needs no pieces: beside the embeddings and their gradients it holds one chunk of a sweep.

    Args:
        mini_batch_size:       sentences in a piece.
        mini_batch_num_tokens: if given, tokens in a piece, instead of a number of sentences.
        show_progress_bar:     one bar for each column.
        All others are those of `MultipleNegativesRankingLoss`, in the order of sentence-transformers' class. A
        `similarity_fct` that runs in sentence-transformers' own class holds whole matrices, unlike its cached class.

    Raises:
        ValueError: as there; or the model is a StaticEmbedding, whose input has no pieces; or one column is given.

    Numerics: the gradient is the one of the plain loss, dropout masks included.

    Source: Gao et al., arXiv:2101.06983, through sentence-transformers' `CachedLossMixin`.

    Example:
        >>> loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=64)                 # doctest: +SKIP
    """

    def __init__(self, *arguments: Any, backend: str | None = None, **options: Any):
        super().__init__(*arguments, **options)
        checks.check_count("mini_batch_size", self.mini_batch_size)
        shared = inspect.signature(peer.MultipleNegativesRankingLoss).parameters
        self.loss = MultipleNegativesRankingLoss(**{name: getattr(self, name) for name in shared}, backend=backend)

    @property
    def used_backend(self) -> str | None:
        """The backend of the last forward."""
        return self.loss.used_backend

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; its gradient runs through the pieces when `backward` is called."""
        return super().forward(sentence_features, labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of columns in pieces; with `with_backward` the pieces receive their gradients."""
        loss = self.loss.compute_loss_from_embeddings([torch.cat(pieces) for pieces in reps], labels)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """The options, for the model card."""
        return {**super().get_config_dict(), "backend": self.loss.backend}


class Ranking(NamedTuple):
    """The options of a ranking loss. `hardness` is the strength, 0 for none, of the penalty on `penalised`."""

    scale: float
    normalize: bool
    directions: frozenset[str]
    joint: bool
    penalised: str | None
    hardness: float
    backend: str | None

    def rows(self, anchor: Tensor, candidate: Tensor, positive: Tensor | None, reduction: str = "none", **more):
        """InfoNCE at this temperature."""
        more |= {"temperature": 1 / self.scale, "normalize": self.normalize, "backend": self.backend}
        return infonce_loss(anchor, candidate, positive, reduction=reduction, **more)

    def log_sum(self, anchor: Tensor, blocks: list[CandidateBlock], own: Tensor, scale: float) -> Tensor:
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
        """Blocks whose own rows are masked: row i has id i."""
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
    """Each query and its positive among all positives, the blocks in `hard` and, by `directions`, the queries."""
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
    positive = r.scale * row_similarity(c.query, c.document, r.normalize)
    own = [row_similarity(c.query, n[c.first : c.first + len(c.query)], r.normalize) for n in hard]
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
        terms.append(r.log_sum(c.query, c.others([c.queries]), c.own, r.scale) - positive)
    return terms


def _penalised(c: Columns, r: Ranking, blocks: list[CandidateBlock]) -> Tensor:
    """log sum exp(scale s + hardness s), where s of the second summand has no gradient."""
    total = r.log_sum(c.query, blocks, c.own, r.scale + r.hardness)
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
    positive = r.scale * row_similarity(c.query, c.document, r.normalize)
    return [r.log_sum(c.document, others, c.own, r.scale) - positive]
