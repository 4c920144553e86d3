"""ClusterNS: InfoNCE with centroids as hard negatives, and pairs of one cluster as false negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..ops import checks
from ..ops.cluster_margin import cluster_margin
from ..ops.dispatch import choose_backend, record
from .contrastive import Call, CandidateBlock, ContrastiveStats, LossAndStats, contrastive_loss
from .infonce import SCALED

LABELS = 2**63 - 1  # without centroids any number from 0 names a cluster
REDUCES = ("ref", "active")
FALSE_NEGATIVES = ("margin", "remove", "positive")


class ClusterNSStats(NamedTuple):
    """By-products of `clusterns_loss`: the fields of `ContrastiveStats`, and then `infonce` and `margin`, the two parts
    before the weight, and `false_share`, the share of the N (N - 1) pairs that are in one cluster."""

    lse: Tensor
    accuracy: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    masked_share: Tensor
    hardest_similarity: Tensor
    hardest_index: Tensor
    infonce: Tensor
    margin: Tensor
    false_share: Tensor


def clusterns_loss(
    anchor: Tensor,
    candidate: Tensor,
    index: Tensor | None = None,
    centroids: Tensor | None = None,
    counts: Tensor | None = None,
    *,
    positive: Tensor | None = None,
    candidate_index: Tensor | None = None,
    margin_weight: float = 1e-3,
    alpha: float = 0.0,
    beta: float = 0.3,
    margin_reduction: str = "ref",
    false_negatives: str = "margin",
    negatives: Tensor | CandidateBlock | list | None = None,
    temperature: float | Tensor = 0.05,
    return_stats: bool = False,
    max_workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor | LossAndStats:
    r"""ClusterNS's objective, of what `OnlineKMeans` says of a batch.

        loss = infonce(anchor, candidate; columns mu_k with weight counts_k) + margin_weight bml
        bml  = sum over i, j of f(d_ij) / N^2      with f(x) = max(0, x + alpha) + max(0, -x - beta)
        d_ij = cos(a_i, c_j) - cos(a_i, c_i) for i, j of one cluster, and 0 for all other pairs

    The centroid that is second nearest to an anchor is everybody's negative, as often as it is somebody's second: K
    columns with log(counts) added give what N columns of them would. Pairs of one cluster are taken for false
    negatives, whose similarity should stay beta to alpha below the positive's.

    Args:
        anchor:        (N, D) float16 | bfloat16 | float32 | float64. Read only, any strides.
        candidate:     (M, D) same dtype and device; M = N, candidate i being anchor i's positive, unless `positive` is
                       given.
        index:         (N,) int64, the cluster of each anchor, -1 for none; None, as before the clustering has started,
                       is InfoNCE alone.
        centroids:     (K, D), constants; None: no hard negatives.
        counts:        (K,) int64, how often each centroid is somebody's second.
        positive:      (N,) int64, the column of each anchor's positive, where `anchor` is only a part of the batch, as
                       one rank's, and `candidate` belongs to all of it. N^2 above is N M then.
        candidate_index: (M,) int64, the cluster of each candidate's anchor; needed with `positive` and `index`.
        margin_weight: of bml; 0 leaves it out.
        alpha, beta:   margins; similarities between them have gradient 0.
        margin_reduction: "ref" divides by N^2, and a pair of two clusters adds max(0, alpha) + max(0, -beta), as the
                       released code does; "active" divides by the number of pairs of one cluster.
        false_negatives: "margin", as above; "remove" leaves pairs of one cluster out of InfoNCE's sum instead;
                       "positive" does that too, and the mean logit over all of the cluster takes the place of the
                       positive's in front of the sum: + (x_ii - mean_j x_ij) for each anchor.
        negatives, temperature, max_workspace_bytes: of `infonce_loss`.
        return_stats:  return `LossAndStats(loss, ClusterNSStats)`.
        backend:       "triton" | "cpp" | "reference"; None chooses by device and dtype.

    Returns:
        float32 scalar (float64 for float64 input). Differentiable in `anchor`, `candidate`, the blocks and
        `temperature`.

    Raises:
        ValueError: shapes, dtypes or devices disagree, centroids without counts, an option out of range.
        IndexError: on the CPU, a positive out of range, or a cluster that is neither -1 nor one of the centroids.
        RuntimeError: the backend asked for cannot run here; or a second derivative.

    Numerics: those of `infonce_loss`; the margin's sum in float64. On a GPU the sizes of the clusters are read, once a
    call. Relabelling the clusters changes nothing but the order of sums.

    Source: arXiv:2305.09892 and github.com/djz233/ClusterNS; the margin after SNCSE, arXiv:2201.05979.

    Example:
        >>> z = torch.eye(3)
        >>> clusterns_loss(z, z, torch.tensor([0, 0, 1]), torch.eye(2, 3), torch.tensor([1, 2])).item() > 0.0
        True
    """
    _check(anchor, candidate, positive, index, candidate_index, centroids, counts)
    for name, value in (("margin_weight", margin_weight), ("alpha", alpha), ("beta", beta)):
        checks.check_finite(name, value)
    checks.check_choice("margin_reduction", margin_reduction, REDUCES)
    checks.check_choice("false_negatives", false_negatives, FALSE_NEGATIVES)
    blocks = [] if negatives is None else list(negatives) if isinstance(negatives, Sequence) else [negatives]
    if centroids is not None:
        # A centroid that is nobody's second has log-weight -inf: no column.
        blocks = [*blocks, CandidateBlock(centroids.detach().to(anchor.dtype), log_weight=counts.float().log())]
    batch = _Batch(anchor, candidate, positive, index, index if candidate_index is None else candidate_index)
    ids = batch.identities() if index is not None and false_negatives != "margin" else (None, None)
    call = Call(
        SCALED, 0.0, blocks or None, temperature, False, *ids, True, "mean", return_stats, max_workspace_bytes,
        backend,
    )  # fmt: skip
    made = contrastive_loss(anchor, candidate, positive, call)
    infonce, stats = made if return_stats else (made, None)
    loss, margin, share = infonce, infonce.detach() * 0, infonce.detach() * 0
    if index is not None and false_negatives == "margin" and (margin_weight != 0 or return_stats):
        margin, share = _margin(batch, alpha, beta, margin_reduction, backend)
        loss = infonce + margin_weight * margin
    if ids[0] is not None and false_negatives == "positive":
        loss = infonce + _attraction(batch, *ids, temperature)
    return LossAndStats(loss, _stats(stats, infonce, margin, share)) if return_stats else loss


class _Batch(NamedTuple):
    """Anchors (N, D) and candidates (M, D), and the cluster of each."""

    anchor: Tensor
    candidate: Tensor
    positive: Tensor | None
    index: Tensor | None
    candidate_index: Tensor | None

    @property
    def place(self) -> Tensor:
        """(N,) the column of each anchor's positive."""
        if self.positive is not None:
            return self.positive
        return torch.arange(self.anchor.shape[0], device=self.anchor.device)

    def identities(self) -> tuple[Tensor, Tensor]:
        """(N,), (M,) ids that are equal for rows of one cluster, and for no others: without a cluster, one of their
        own, which an anchor shares with its positive."""
        alone = -1 - torch.arange(self.candidate.shape[0], device=self.anchor.device)
        return (
            torch.where(self.index >= 0, self.index, -1 - self.place),
            torch.where(self.candidate_index >= 0, self.candidate_index, alone),
        )


def _attraction(batch: _Batch, ids: Tensor, candidate_ids: Tensor, temperature: float | Tensor) -> Tensor:
    """Mean over the anchors of (own similarity - mean similarity over the candidates of its cluster) / temperature."""
    dtype = torch.promote_types(batch.anchor.dtype, torch.float32)
    a, c = (reference.unit_rows(x.to(dtype)) for x in (batch.anchor, batch.candidate))
    # A cluster's place is where its id comes first among the sorted ones: no size depends on what the ids are.
    ordered = candidate_ids.sort().values
    place = torch.searchsorted(ordered, candidate_ids)
    sizes = torch.zeros_like(candidate_ids).index_put((place,), torch.ones_like(candidate_ids), accumulate=True)
    total = torch.zeros_like(c).index_put((place,), c, accumulate=True)
    mean = (total / sizes.clamp_min(1)[:, None].to(dtype))[torch.searchsorted(ordered, ids)]
    gain = (a * (c[batch.place] - mean)).sum(1).mean() / temperature
    return gain.reshape(())


def _margin(batch: _Batch, alpha: float, beta: float, how: str, backend: str | None) -> tuple[Tensor, Tensor]:
    """The bidirectional margin loss, and the share of pairs that are of one cluster."""
    anchor, candidate, positive, index, candidate_index = batch
    chosen, n, m = choose_backend(anchor, backend), anchor.shape[0], candidate.shape[0]
    if chosen == "reference":
        record(chosen)
        total, pairs = reference.cluster_margin(
            anchor, candidate, batch.place, index, candidate_index, alpha, beta
        )  # fmt: skip
    else:
        wanted = [torch.is_grad_enabled() and x.requires_grad for x in (anchor, candidate)]
        other = None if positive is None else candidate_index
        with torch.autocast(anchor.device.type, enabled=False):
            total, pairs, *_ = cluster_margin(
                anchor, candidate, positive, index, other, alpha, beta, wanted, chosen
            )  # fmt: skip
    share = pairs.to(total.dtype) / max(n * (m - 1), 1)
    if how == "active":
        # Of all pairs of the batch the part that is due to these anchors, so that parts average to the whole.
        return total / (_pairs_of(candidate_index).clamp_min(1).to(total.dtype) * (n / m)), share
    apart = max(alpha, 0.0) + max(-beta, 0.0)
    return (total + (n * m - pairs.to(total.dtype)) * apart) / (n * m), share


def _pairs_of(index: Tensor) -> Tensor:
    """0-dim, how many pairs (i, j), i != j, are of one cluster."""
    ordered = index.sort().values
    first, last = torch.searchsorted(ordered, index), torch.searchsorted(ordered, index, right=True)
    return torch.where(index >= 0, last - first - 1, 0).sum()


def _stats(stats: ContrastiveStats, infonce: Tensor, margin: Tensor, share: Tensor) -> ClusterNSStats:
    return ClusterNSStats(*stats, infonce=infonce.detach(), margin=margin.detach(), false_share=share.detach())


def _check(
    anchor: Tensor, candidate: Tensor, positive: Tensor | None, index: Tensor | None, candidate_index: Tensor | None,
    centroids: Tensor | None, counts: Tensor | None,
) -> None:  # fmt: skip
    checks.check_rows("anchor", anchor)
    checks.check_same_kind("candidate", candidate, "anchor", anchor)
    if positive is not None:
        checks.check_positive(positive, anchor, candidate)
        if (index is None) != (candidate_index is None):
            raise ValueError("with positive, index and candidate_index are both given or both None, got "
                             f"{'index' if candidate_index is None else 'candidate_index'} alone")  # fmt: skip
    elif candidate_index is not None:
        raise ValueError("candidate_index needs positive, got positive=None")
    elif candidate.shape != anchor.shape:
        raise ValueError(f"candidate and anchor must have as many rows, got {candidate.shape[0]} and {anchor.shape[0]}")
    if index is not None:
        checks.check_vector("index", index, anchor.shape[0], "anchor", anchor)
    if candidate_index is not None:
        checks.check_vector("candidate_index", candidate_index, candidate.shape[0], "candidate", anchor)
    if (centroids is None) != (counts is None):
        given, absent = ("counts", "centroids") if centroids is None else ("centroids", "counts")
        raise ValueError(f"{given} needs {absent}, got {absent}=None")
    if centroids is not None:
        checks.check_rows("centroids", centroids)
        if centroids.shape[1] != anchor.shape[1]:
            shapes = f"{tuple(centroids.shape)} and {tuple(anchor.shape)}"
            raise ValueError(f"centroids and anchor must have rows of one length, got {shapes}")
        checks.check_vector("counts", counts, centroids.shape[0], "centroids", centroids)
    for name, x in (("index", index), ("candidate_index", candidate_index)):
        checks.check_index(name, x, LABELS if centroids is None else centroids.shape[0], "centroids", none=True)
