"""pytorch-metric-learning's NTXentLoss and a miner of hardest negatives, over fastcse's sweeps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as peer
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_pairs
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..losses.contrastive import CandidateBlock
from ..ops import checks
from ..ops.dispatch import last_backend
from ..ops.topk_search import topk
from ..reference import row_similarity
from . import log_partition, warn_once

POSITIVES = ("hardest", "all")
# Pairs whose two rows are copied at once.
AT_ONCE = 2**15


class NTXentLoss(peer.NTXentLoss):
    r"""pytorch-metric-learning's loss of the same name, without the P x N M numbers it spreads P pairs over.

    For every pair (a, p) of one label, with s the similarity of `distance` and the negatives of other labels:

        loss_ap = log(1 + sum_n exp((s_an - s_ap) / temperature))

    The sum over n is one sweep over the anchors, whatever the number of positives, in which the labels are the ids that
    mask; pairs of one label are computed row by row. With `indices_tuple` the sum runs over its negative pairs, however
    often one occurs, and everything is row by row in plain torch ("torch" in `used_backend`).

    The name is the peer's, so that its `SelfSupervisedLoss` and `CrossBatchMemory`, which go by names, wrap this loss.

    Args:
        temperature: > 0.
        backend:     "triton" | "cpp" | "reference"; None lets fastcse choose; `used_backend` is the last one's name.
        kwargs:      `distance`, `reducer`, `embedding_regularizer`, `embedding_reg_weight` of the base class. Another
                     distance than `CosineSimilarity` and `DotProductSimilarity` runs in the peer's own class; that is
                     logged once, and `used_backend` is "pytorch-metric-learning".

    Called as `loss(embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None)`: (N, D) and (M, D)
    floats, (N,) and (M,) int64 labels. The losses are "pos_pair" to the reducer; 0 without a positive pair.

    Raises:
        ValueError: temperature is not above 0; shapes and dtypes as `infonce_loss`.

    Numerics: float32 sums whatever the embeddings are. The peer adds 1e-38 under the logarithm, which bounds its loss
    by 87 and its gradient there by 0, and calls the loss of one positive and one negative pair 0; this class does
    neither.

    Source: Sohn, NeurIPS 2016; Chen et al., arXiv:2002.05709.

    Example:
        >>> loss = NTXentLoss(temperature=0.1)
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1])).item() > 1
        True
    """

    def __init__(self, temperature: float = 0.07, *, backend: str | None = None, **kwargs: Any):
        super().__init__(temperature=temperature, **kwargs)
        checks.check_above_zero("temperature", temperature)
        self.backend = backend
        self.used_backend: str | None = None  # of the last forward

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, dict[str, Any]]:
        """The losses of all positive pairs, for the reducer."""
        if labels is None and indices_tuple is None:
            raise ValueError("labels or indices_tuple must be given, got None for both")
        metric = _similarity_of(self.distance)
        if metric is None:
            warn_once(f"distance={type(self.distance).__name__} runs in pytorch-metric-learning's own NTXentLoss")
            self.used_backend = "pytorch-metric-learning"
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        cosine = metric == "cosine"
        if indices_tuple is None:
            pairs = positive_pairs(labels, ref_labels)
            blocks, options = [CandidateBlock(ref_emb, id=_ids(ref_labels))], {"temperature": self.temperature}
            options |= {"anchor_id": _ids(labels), "normalize": cosine, "backend": self.backend}
            negatives = log_partition(embeddings, blocks, **options)
            self.used_backend = last_backend()
        else:
            *positives, a, n = convert_to_pairs(indices_tuple, labels, ref_labels)
            pairs = Pairs(*positives)
            x = pair_similarity(embeddings, ref_emb, Pairs(a, n), normalize=cosine) / self.temperature
            negatives = log_sum_by_anchor(x, a, len(embeddings))
            self.used_backend = "torch"
        if len(pairs.anchor) == 0:
            return self.zero_losses()
        positive = pair_similarity(embeddings, ref_emb, pairs, normalize=cosine) / self.temperature
        losses = torch.logaddexp(negatives[pairs.anchor] - positive, positive.new_zeros(()))
        return {"loss": {"losses": losses, "indices": tuple(pairs), "reduction_type": "pos_pair"}}


class HardestNegativeMiner(BaseMiner):
    r"""For every anchor its most similar row of another label, exactly, without the (N, M) matrix.

    Triplets (a, p, n) with n = argmax of s_an over rows of other labels, and p the least similar row of a's label
    ("hardest": pytorch-metric-learning's BatchHardMiner) or each of them in turn ("all": the triplets of
    TripletMarginMiner(type_of_triplets="all") of greatest violation for each pair, if its margin lets them through).
    Anchors without a positive or without a negative are in no triplet; ties go to the lowest row.

    Args:
        positives: "hardest" | "all".
        backend:   "triton" | "cpp" | "reference"; None lets fastcse choose; `used_backend` is the last one's name.
        kwargs:    `distance` and `collect_stats` of the base class. The distance may be a CosineSimilarity, a
                   DotProductSimilarity or an LpDistance with p=2, which is the default as in the peer.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`.

    Returns:
        Three (T,) int64: anchors, positives, negatives, by anchor.

    Raises:
        ValueError: unknown `positives`, or another distance.

    Numerics: those of `topk`, the search behind it. A row that is not finite is nobody's negative and has none.

    Source: Hermans, Beyer and Leibe, arXiv:1703.07737.

    Example:
        >>> rows = torch.tensor([[1.0, 0], [0, 1], [0.5, 1], [1, 0.1]])
        >>> HardestNegativeMiner()(rows, torch.tensor([0, 0, 1, 1]))
        (tensor([0, 1, 2, 3]), tensor([1, 0, 3, 2]), tensor([3, 2, 1, 0]))
    """

    def __init__(self, positives: str = "hardest", *, backend: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        checks.check_choice("positives", positives, POSITIVES)
        if _similarity_of(self.distance, lengths=True) is None:
            raise ValueError(
                "distance must be CosineSimilarity, DotProductSimilarity or LpDistance with p=2 and power=1, "
                f"got {self.distance!r}"
            )
        self.positives, self.backend = positives, backend
        self.used_backend: str | None = None  # of the last call

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The triplets."""
        metric = _similarity_of(self.distance, lengths=True)
        ids = {"query_id": _ids(labels), "corpus_id": _ids(ref_labels)}
        found = topk(embeddings, ref_emb, 1, **ids, metric=metric, backend=self.backend)
        self.used_backend = last_backend()
        negative = found.indices[:, 0]
        pairs = positive_pairs(labels, ref_labels)
        if self.positives == "hardest":
            _, hardest = least_by_anchor(_closeness(embeddings, ref_emb, pairs, metric), pairs, len(labels))
            (anchor,) = torch.where(hardest >= 0)
            pairs = Pairs(anchor, hardest[anchor])
        there = negative[pairs.anchor] >= 0
        anchor = pairs.anchor[there]
        return anchor, pairs.other[there], negative[anchor]


def _ids(labels: Tensor) -> Tensor:
    """Labels of any width of integers, as ids."""
    return labels if labels.is_floating_point() else labels.to(torch.int64)


def _similarity_of(distance: Any, *, lengths: bool = False) -> str | None:
    """The metric of `topk` that ranks as `distance` does, for `lengths` also where it is one; None for no such."""
    if distance.power != 1 or distance.p != 2:
        return None
    if type(distance) in (CosineSimilarity, DotProductSimilarity):
        return "cosine" if distance.normalize_embeddings else "ip"
    if lengths and type(distance) is LpDistance:
        return "cosine" if distance.normalize_embeddings else "l2"
    return None


def _closeness(x: Tensor, y: Tensor, pairs: Pairs, metric: str) -> Tensor:
    """(P,) numbers that fall with the distance of a pair."""
    if metric != "l2":
        return pair_similarity(x, y, pairs, normalize=metric == "cosine")
    parts = zip(*(index.split(2**15) for index in pairs))
    return torch.cat([-F.pairwise_distance(x[i].float(), y[j].float()) for i, j in parts] or [x.new_zeros(0)])


class Pairs(NamedTuple):
    """(P,) rows of anchors and (P,) rows of the other side, by anchor, then by the other."""

    anchor: Tensor
    other: Tensor


def positive_pairs(labels: Tensor, ref_labels: Tensor) -> Pairs:
    """All pairs of equal labels, in O(N + M + P); without (i, i) where `ref_labels` is `labels` itself."""
    order = ref_labels.argsort(stable=True)
    ranked = ref_labels[order].contiguous()
    begin = torch.searchsorted(ranked, labels.contiguous())
    count = torch.searchsorted(ranked, labels.contiguous(), right=True) - begin
    anchor = torch.arange(len(labels), device=labels.device).repeat_interleave(count)
    within = torch.arange(len(anchor), device=labels.device) - (count.cumsum(0) - count)[anchor]
    other = order[begin[anchor] + within]
    if ref_labels is labels:
        apart = anchor != other
        anchor, other = anchor[apart], other[apart]
    return Pairs(anchor, other)


def pair_similarity(x: Tensor, y: Tensor, pairs: Pairs, *, normalize: bool = True) -> Tensor:
    """(P,) similarities of x_anchor and y_other; with many pairs their rows are copied again in the backward pass, so
    that memory stays O(P + D)."""

    def some(x: Tensor, y: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return row_similarity(x.index_select(0, left), y.index_select(0, right), normalize)

    if len(pairs.anchor) <= AT_ONCE:
        return some(x, y, *pairs)
    parts = zip(pairs.anchor.split(AT_ONCE), pairs.other.split(AT_ONCE))
    return torch.cat([checkpoint(some, x, y, *part, use_reentrant=False) for part in parts])


def log_sum_by_anchor(values: Tensor, anchor: Tensor, count: int) -> Tensor:
    """(count,) log sum exp of the values of each anchor; -inf for an anchor without any."""
    top = values.new_full((count,), -torch.inf).scatter_reduce(0, anchor, values.detach(), "amax")
    total = values.new_zeros(count).index_add(0, anchor, (values - top[anchor]).exp())
    empty = total == 0
    return (total.masked_fill(empty, 1.0).log() + top).masked_fill(empty, -torch.inf)


def least_by_anchor(values: Tensor, pairs: Pairs, count: int) -> tuple[Tensor, Tensor]:
    """(count,) least value of each anchor and the other side's row, ties to the lowest; inf and -1 for none."""
    least = values.new_full((count,), torch.inf).scatter_reduce(0, pairs.anchor, values, "amin")
    last = torch.iinfo(torch.int64).max
    row = torch.where(values == least[pairs.anchor], pairs.other, last)
    row = torch.full((count,), last, device=values.device).scatter_reduce(0, pairs.anchor, row, "amin")
    return least, row.masked_fill(row == last, -1)
