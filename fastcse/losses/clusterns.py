"""ClusterNS: InfoNCE with centroids as hard negatives, and pairs of one cluster as false negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..ops import checks
from ..ops.cluster_margin import cluster_margin
from ..ops.dispatch import choose_backend, record
from .contrastive import Batch, CandidateBlock, LossAndStats, LossOptions, as_blocks, contrastive_loss
from .infonce import SCALED
from .quadruplet import check_paired

LABELS = 2**63 - 1  # without centroids any number from 0 names a cluster
REDUCES = ("ref", "active")
FALSE_NEGATIVES = ("margin", "remove", "positive")


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
    r"""ClusterNS's objective, of the clusters that `OnlineKMeans` finds in a batch.

        loss = infonce(anchor, candidate; columns mu_k with weight counts_k) + margin_weight bml
        bml  = sum over i, j of f(d_ij) / N^2      with f(x) = max(0, x + alpha) + max(0, -x - beta)
        d_ij = cos(a_i, c_j) - cos(a_i, c_i) for i, j of one cluster, and 0 for all other pairs

    The centroid that is second nearest to an anchor is a negative of all anchors: K columns with log(counts) added
    equal N columns, one for each anchor's second. Pairs of one cluster are taken for false negatives, whose similarity
    should stay beta to alpha below the positive's.

    Args:
        anchor:        (N, D) float16 | bfloat16 | float32 | float64. Read only, any strides.
        candidate:     (M, D) same dtype and device; M = N, candidate i being anchor i's positive, unless `positive` is
                       given.
        index:         (N,) int64, the cluster of each anchor, -1 for none; None, as before the clustering has started,
                       is InfoNCE alone.
        centroids:     (K, D), constants; None: no hard negatives.
        counts:        (K,) int64, of how many anchors each centroid is the second nearest.
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
        return_stats:  return `LossAndStats(loss, ContrastiveStats)`, with the parts `infonce` and `margin`, the two
                       terms before the weight, and `false_share`, the share of the N (N - 1) pairs of one cluster.
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
    _check(anchor, candidate, positive, index, candidate_index)
    for name, value in (("margin_weight", margin_weight), ("alpha", alpha), ("beta", beta)):
        checks.check_finite(name, value)
    checks.check_choice("margin_reduction", margin_reduction, REDUCES)
    checks.check_choice("false_negatives", false_negatives, FALSE_NEGATIVES)
    checks.check_both("centroids", centroids, "counts", counts)
    blocks = as_blocks(negatives)
    if centroids is not None:
        _check_centroids(centroids, counts, anchor)
        # A centroid that is no anchor's second nearest has log-weight -inf: no column.
        blocks.append(CandidateBlock(centroids.detach().to(anchor.dtype), log_weight=counts.float().log()))
    named = LABELS if centroids is None else centroids.shape[0]
    for name, x in (("index", index), ("candidate_index", candidate_index)):
        checks.check_index(name, x, named, "centroids", none=True)
    batch = Batch(anchor, candidate, positive, blocks)
    candidate_index = index if candidate_index is None else candidate_index
    if index is not None and false_negatives != "margin":
        anchor_id, candidate_id = _cluster_ids(batch, index, candidate_index)
        batch = batch._replace(anchor_id=anchor_id, candidate_id=candidate_id)
    options = LossOptions(SCALED, 0.0, temperature, False, True, "mean", return_stats, max_workspace_bytes, backend)
    made = contrastive_loss(batch, options)
    infonce, stats = made if return_stats else (made, None)
    loss, margin, share = infonce, infonce.detach() * 0, infonce.detach() * 0
    if index is not None and false_negatives == "margin" and (margin_weight != 0 or return_stats):
        bounds = (float(alpha), float(beta))
        margin, share = _margin(batch, index, candidate_index, bounds, margin_reduction, backend)
        loss = infonce + margin_weight * margin
    if batch.anchor_id is not None and false_negatives == "positive":
        loss = infonce + _attraction(batch, temperature)
    if not return_stats:
        return loss
    parts = {"infonce": infonce.detach(), "margin": margin.detach(), "false_share": share.detach()}
    return LossAndStats(loss, stats._replace(parts=parts))


def _positive(batch: Batch) -> Tensor:
    """(N,) the column of each anchor's positive."""
    if batch.positive is not None:
        return batch.positive
    return torch.arange(batch.anchor.shape[0], device=batch.anchor.device)


def _cluster_ids(batch: Batch, index: Tensor, candidate_index: Tensor) -> tuple[Tensor, Tensor]:
    """(N,), (M,) ids that are equal for rows of one cluster only; an anchor without a cluster shares its id with its
    positive alone."""
    alone = -1 - torch.arange(batch.candidate.shape[0], device=batch.anchor.device)
    return (
        torch.where(index >= 0, index, -1 - _positive(batch)),
        torch.where(candidate_index >= 0, candidate_index, alone),
    )


def _attraction(batch: Batch, temperature: float | Tensor) -> Tensor:
    """Mean over the anchors of (own similarity - mean similarity over the candidates of its cluster) / temperature."""
    dtype = torch.promote_types(batch.anchor.dtype, torch.float32)
    a, c = (reference.unit_rows(x.to(dtype)) for x in (batch.anchor, batch.candidate))
    ids = batch.candidate_id
    # A cluster's row of `total` is the first position of its id among the sorted ids: no size depends on their values.
    ordered = ids.sort().values
    row = torch.searchsorted(ordered, ids)
    sizes = torch.zeros_like(ids).index_put((row,), torch.ones_like(ids), accumulate=True)
    total = torch.zeros_like(c).index_put((row,), c, accumulate=True)
    mean = (total / sizes.clamp_min(1)[:, None].to(dtype))[torch.searchsorted(ordered, batch.anchor_id)]
    gain = (a * (c[_positive(batch)] - mean)).sum(1).mean() / temperature
    return gain.reshape(())


def _margin(
    batch: Batch, index: Tensor, candidate_index: Tensor, bounds: tuple[float, float], how: str, backend: str | None
) -> tuple[Tensor, Tensor]:
    """The bidirectional margin loss, and the share of pairs that are of one cluster."""
    rows, (alpha, beta) = batch[:2], bounds
    chosen, n, m = choose_backend(batch.anchor, backend), batch.anchor.shape[0], batch.candidate.shape[0]
    if chosen == "reference":
        record(chosen)
        total, pairs = reference.cluster_margin(*rows, _positive(batch), index, candidate_index, alpha, beta)
    else:
        wanted = [torch.is_grad_enabled() and x.requires_grad for x in rows]
        other = None if batch.positive is None else candidate_index
        with torch.autocast(batch.anchor.device.type, enabled=False):
            total, pairs, *_ = cluster_margin(*rows, batch.positive, index, other, alpha, beta, wanted, chosen)
    share = pairs.to(total.dtype) / max(n * (m - 1), 1)
    if how == "active":
        # These anchors' part of all pairs of the batch, so that the mean over the ranks is the whole batch's.
        return total / (_pairs_of(candidate_index).clamp_min(1).to(total.dtype) * (n / m)), share
    apart = max(alpha, 0.0) + max(-beta, 0.0)
    return (total + (n * m - pairs.to(total.dtype)) * apart) / (n * m), share


def _pairs_of(index: Tensor) -> Tensor:
    """0-dim, the number of pairs (i, j), i != j, of one cluster."""
    ordered = index.sort().values
    first, last = torch.searchsorted(ordered, index), torch.searchsorted(ordered, index, right=True)
    return torch.where(index >= 0, last - first - 1, 0).sum()


def _check(
    anchor: Tensor, candidate: Tensor, positive: Tensor | None, index: Tensor | None, candidate_index: Tensor | None
) -> None:
    checks.check_rows("anchor", anchor)
    if positive is None:
        check_paired("candidate", candidate, anchor)
        if candidate_index is not None:
            raise ValueError("candidate_index needs positive, got positive=None")
    else:
        checks.check_same_kind("candidate", candidate, "anchor", anchor)
        checks.check_positive(positive, anchor, candidate)
        checks.check_both("index", index, "candidate_index", candidate_index)
    if index is not None:
        checks.check_vector("index", index, anchor.shape[0], "anchor", anchor)
    if candidate_index is not None:
        checks.check_vector("candidate_index", candidate_index, candidate.shape[0], "candidate", anchor)


def _check_centroids(centroids: Tensor, counts: Tensor, anchor: Tensor) -> None:
    checks.check_rows("centroids", centroids)
    if centroids.shape[1] != anchor.shape[1]:
        shapes = f"{tuple(centroids.shape)} and {tuple(anchor.shape)}"
        raise ValueError(f"centroids and anchor must have rows of one length, got {shapes}")
    checks.check_vector("counts", counts, centroids.shape[0], "centroids", centroids)
