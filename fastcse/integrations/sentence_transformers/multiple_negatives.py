"""sentence-transformers' MultipleNegativesRankingLoss and its gradient-cached twin, over fastcse's sweeps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer import losses as peer
from sentence_transformers.util import cos_sim, dot_score, similarity_fct_name
from torch import Tensor, nn

from ...ops.dispatch import last_backend
from .. import citations
from ..gathering import first_row, gathered
from .ranking import Columns, Ranking, ranking_loss
from .ranking_options import DIRECTIONS, check_pieces, check_ranking

logger = logging.getLogger(__name__)

# The similarities that a sweep computes itself, and whether it normalises for them.
FUSED = {cos_sim: True, dot_score: False}
_announced: set[str] = set()


class MultipleNegativesRankingLoss(nn.Module):
    r"""sentence-transformers' loss of the same name and arguments, without the (N, M) similarities in memory.

    With s_ij the similarity of query i and document j, over all positives and hard negatives of the batch:

        loss_i = log sum_j exp(scale s_ij) - scale s_ii

    the mean over i; what else stands under the logarithm is said by `directions`. One sweep does the default,
    "query_to_query", and the symmetric loss (both directions, "per_direction") on one process. Other documents'
    directions, and the hardness weighting, take two or three sweeps and the extra time of a backward pass that visits
    the pairs again; the result is the same.

    Args:
        model:          the encoder; the embeddings come from it at each call.
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
        ValueError: an argument is none of its values, or fewer than two columns come.

    Numerics: as `infonce_loss`: float32 sums whatever the embeddings are, float64 in plain torch.

    Source: Henderson et al., arXiv:1705.00652; the directions, Li et al., arXiv:2308.03281; hardness, Lan et al.,
    arXiv:2503.04812. Interface: sentence-transformers 6.2.

    Example:
        >>> loss = MultipleNegativesRankingLoss(model, directions=("query_to_doc", "doc_to_query"))  # doctest: +SKIP
        >>> SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=loss).train()      # doctest: +SKIP
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        gather_across_devices: bool = False,
        directions: tuple[str, ...] = ("query_to_doc",),
        partition_mode: str = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        *,
        backend: str | None = None,
    ):
        super().__init__()
        check_ranking(scale, directions, partition_mode, hardness_mode, hardness_strength)
        self.model, self.scale, self.similarity_fct = model, scale, similarity_fct
        self.gather_across_devices = gather_across_devices
        self.directions, self.partition_mode = tuple(directions), partition_mode
        self.hardness_mode, self.hardness_strength = hardness_mode, hardness_strength
        self.backend = backend
        self.used_backend: str | None = None  # of the last forward

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; `sentence_features` holds one tokenized batch per column, `labels` are not read."""
        return self.compute_loss_from_embeddings(embed_columns(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss of columns that are already embedded: [(N, D) query, (N, D) positive, (N, D) negative ...]."""
        if len(embeddings) < 2:
            raise ValueError(f"expected at least 2 columns of embeddings, query and positive, got {len(embeddings)}")
        if self.similarity_fct not in FUSED:
            return self._by_peer(embeddings)
        query, *documents = embeddings
        everywhere = [gathered(x) for x in embeddings] if self.gather_across_devices else embeddings
        first = first_row(query) if self.gather_across_devices else 0
        columns = Columns(query, documents[0], everywhere[0], everywhere[1:], first)
        loss = ranking_loss(columns, self._ranking())
        self.used_backend = last_backend()
        return loss

    def _ranking(self) -> Ranking:
        return Ranking(
            self.scale, FUSED[self.similarity_fct], frozenset(self.directions), self.partition_mode == "joint",
            self.hardness_mode, 0.0 if self.hardness_mode is None else self.hardness_strength, self.backend,
        )  # fmt: skip

    def _by_peer(self, embeddings: list[Tensor]) -> Tensor:
        name = similarity_fct_name(self.similarity_fct)
        if name not in _announced:
            _announced.add(name)
            logger.warning("similarity_fct=%s runs in sentence-transformers' own loss: no fused sweep has it", name)
        self.used_backend = "sentence-transformers"
        # Embeddings are all that is asked of it: without the model it cannot keep one that was replaced.
        loss = peer.MultipleNegativesRankingLoss(None, **{**self._arguments(), "similarity_fct": self.similarity_fct})
        return loss.compute_loss_from_embeddings(embeddings, None)

    def _arguments(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "similarity_fct": similarity_fct_name(self.similarity_fct),
            "gather_across_devices": self.gather_across_devices,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
        }

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card writes about this loss."""
        return {**self._arguments(), "backend": self.backend}

    @property
    def temperature(self) -> float:
        """1 / scale."""
        return 1.0 / self.scale

    @property
    def citation(self) -> str:
        """BibTeX of the objective that the options make."""
        if set(self.directions) == set(DIRECTIONS) and self.partition_mode == "joint":
            return citations.GTE
        if set(self.directions) == {"query_to_doc", "doc_to_query"} and self.partition_mode == "per_direction":
            return citations.JINA
        return citations.INFONCE


class CachedMultipleNegativesRankingLoss(CachedLossMixin, MultipleNegativesRankingLoss):
    r"""`MultipleNegativesRankingLoss` over batches whose activations do not fit in memory (GradCache).

    The batch is embedded in pieces without gradients, the loss and its gradients by all embeddings are computed at
    once, and the pieces are embedded again to carry those back: a second forward pass for the memory of one piece. The
    loss itself needs no pieces: beside the embeddings and their gradients it holds one chunk of a sweep.

    Args:
        mini_batch_size:       sentences in a piece.
        mini_batch_num_tokens: if given, tokens in a piece, instead of a number of sentences.
        show_progress_bar:     one bar for each column.
        All others are those of `MultipleNegativesRankingLoss`. A `similarity_fct` that runs in sentence-transformers'
        own class holds whole matrices, unlike its cached class.

    Raises:
        ValueError: as there; or the model is a StaticEmbedding, whose input has no pieces; or one column comes.

    Numerics: the gradient is the one of the plain loss, dropout masks included.

    Source: Gao et al., arXiv:2101.06983, through sentence-transformers' `CachedLossMixin`.

    Example:
        >>> loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=64)                 # doctest: +SKIP
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        directions: tuple[str, ...] = ("query_to_doc",),
        partition_mode: str = "joint",
        show_progress_bar: bool = False,
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        *,
        backend: str | None = None,
    ):
        super().__init__(
            model, scale, similarity_fct, gather_across_devices, directions, partition_mode, hardness_mode,
            hardness_strength, backend=backend,
        )  # fmt: skip
        check_pieces(model, mini_batch_size, mini_batch_num_tokens)
        self.mini_batch_size, self.mini_batch_num_tokens = mini_batch_size, mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; its gradient runs through the pieces when `backward` is called."""
        columns = list(sentence_features)
        if len(columns) < 2:
            raise ValueError(f"expected at least 2 columns, query and positive, got {len(columns)}")
        return self.forward_cached(columns, labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of columns in pieces; with `with_backward` the pieces receive their gradients."""
        loss = self.compute_loss_from_embeddings([torch.cat(pieces) for pieces in reps], labels)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card writes about this loss."""
        pieces = {"mini_batch_size": self.mini_batch_size, "mini_batch_num_tokens": self.mini_batch_num_tokens}
        return {**super().get_config_dict(), **pieces}

    @property
    def citation(self) -> str:
        """BibTeX of GradCache."""
        return citations.GRADCACHE
