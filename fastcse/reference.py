"""Every op in plain torch: the specification, and the backend for float64. Exact, slow, and holds the (N, M) matrix.

Gradients come from autograd, never from a formula typed here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .operands import SHORTEST_NORM, Quadruplets, TopKQuery
from .transforms import LogitTransform


def unit_rows(x: Tensor) -> Tensor:
    """x / |x| by rows; a row shorter than 1e-8 becomes 0 and has gradient 0."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (N, 1)
    return torch.where(norm < SHORTEST_NORM, 0.0, x / norm.clamp_min(SHORTEST_NORM))


def similarity(anchor: Tensor, candidate: Tensor, normalize: bool = True) -> Tensor:
    """(N, M) dot products in at least float32, of unit rows if `normalize`."""
    dtype = torch.promote_types(anchor.dtype, torch.float32)
    a, c = anchor.to(dtype), candidate.to(dtype)
    # Outside autocast: a similarity rounded to half precision makes ties, and an error of 1e-2 in logits.
    with torch.autocast(anchor.device.type, enabled=False):
        return unit_rows(a) @ unit_rows(c).T if normalize else a @ c.T


def row_similarity(x: Tensor, y: Tensor, normalize: bool = True) -> Tensor:
    """(N,) cosines of row i of x with row i of y, or dot products, in at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    return (unit_rows(x) * unit_rows(y)).sum(1) if normalize else (x * y).sum(1)


def log_ratio_loss(x: Tensor, keep: Tensor, x_positive: Tensor) -> Tensor:
    """log(1 + sum_j exp(x_ij - x_ip)) over the kept negatives: logsumexp minus the positive logit, with its digits
    kept when it is small.
    """
    none = ~keep.any(1)
    # A row without negatives must not reach logsumexp, whose gradient is NaN there.
    x = x.masked_fill(~keep, -torch.inf).masked_fill(none[:, None], 0.0)
    # The largest logit comes off first: a logsumexp around 1000 would be rounded to 6e-5 before the positive comes off.
    top = x.detach().amax(1)
    t = (x - top[:, None]).logsumexp(1) + (top - x_positive)
    loss = torch.logaddexp(t, torch.zeros_like(t)).masked_fill(none, 0.0)
    return torch.where(torch.isfinite(loss), loss, torch.nan)  # an inf in a row is no loss


def _kept(block, n: int, own: Tensor | None, anchor_id: Tensor | None) -> Tensor:
    keep = torch.ones(n, block.rows.shape[0], dtype=torch.bool, device=block.rows.device)
    if own is not None:
        keep = keep.scatter(1, own[:, None], False)
    if block.id is not None and anchor_id is not None:
        keep = keep & (anchor_id[:, None] != block.id[None, :])
    return keep  # (N, M)


def _own_bias(block, n: int, x: Tensor) -> Tensor:
    if block.own_log_weight == 0:
        return x
    row, col = torch.arange(n, device=x.device)[:, None], torch.arange(x.shape[1], device=x.device)[None, :]
    return torch.where(row == col, x + block.own_log_weight, x)


def loss_rows(
    anchor: Tensor,
    blocks: list,
    positive: Tensor,
    anchor_id: Tensor | None,
    transform: LogitTransform,
    margin: float,
    inv_temperature: Tensor,
    normalize: bool,
    symmetric: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-row loss (N,) and the by-products. `blocks[0]` holds the positives; block.rows and block.log_weight may
    require grad.
    """
    f, f_positive = transform.differentiable()
    n = anchor.shape[0]
    s = [similarity(anchor, block.rows, normalize) for block in blocks]  # (N, M_b)
    s_positive = s[0].gather(1, positive[:, None]).squeeze(1)  # (N,)
    x_positive = f_positive(s_positive, margin) * inv_temperature
    keep = [_kept(b, n, positive if k == 0 else None, anchor_id) for k, b in enumerate(blocks)]
    # A number times a comparison is of the default dtype, in a transform.
    x = [f(s_b, margin).to(s_b.dtype) * inv_temperature for s_b in s]
    for k, block in enumerate(blocks[1:], 1):
        x[k] = _own_bias(block, n, x[k] if block.log_weight is None else x[k] + block.log_weight)
    loss = log_ratio_loss(torch.cat(x, 1), torch.cat(keep, 1), x_positive)
    stats = _stats(s, keep, s_positive, x_positive + loss)
    if symmetric:
        loss = (loss + _column_loss(x[0], _kept(blocks[0], n, None, anchor_id), positive, x_positive)) / 2
    return loss, stats


def _column_loss(x: Tensor, allowed: Tensor, positive: Tensor, x_positive: Tensor) -> Tensor:
    """Each anchor's positive, compared with all anchors. A pair (k, positive[k]) enters with its positive logit."""
    n = x.shape[0]
    is_positive = torch.zeros_like(allowed).scatter(1, positive[:, None], True)  # (N, M)
    x = torch.where(is_positive, x_positive[:, None], x)
    by_column = x.T.index_select(0, positive)  # (N, N): row i is the column of anchor i's positive
    keep = (allowed | is_positive).T.index_select(0, positive) & ~torch.eye(n, dtype=torch.bool, device=x.device)
    return log_ratio_loss(by_column, keep, x_positive)


@torch.no_grad()
def _stats(s: list[Tensor], keep: list[Tensor], s_positive: Tensor, lse: Tensor) -> dict[str, Tensor]:
    kept = [torch.where(k, s_b, -torch.inf) for k, s_b in zip(keep, s)]
    hardest, hardest_col = kept[0].max(1)
    first = torch.arange(kept[0].shape[1], device=lse.device)
    hardest_col = torch.where(kept[0] == hardest[:, None], first, kept[0].shape[1]).amin(1)  # ties to the lowest column
    hardest_col = torch.where(torch.isfinite(hardest), hardest_col, -1)
    everywhere = torch.cat(kept, 1).amax(1)
    return {
        "lse": lse.detach(),
        "similarity_sum": sum(torch.where(k, s_b, 0.0).sum(1) for k, s_b in zip(keep, s)),
        "count": sum(k.sum(1) for k in keep).to(torch.float32),
        "positive_similarity": s_positive.detach(),
        "hardest_overall": everywhere,
        "hardest": hardest,
        "hardest_col": hardest_col,
    }


@torch.no_grad()
def topk(q: TopKQuery) -> tuple[Tensor, Tensor, Tensor]:
    """(N, k) scores, best first, (N, k) columns, (N,) how many there are: the whole matrix, sorted.

    Scores are float32 unless both inputs are float64.
    """
    a, c = q.query.double(), q.corpus.double()  # (N, D), (M, D)
    # Query by query: a product's sums run in another order at the matrix's edges, and equal rows must score equal.
    score = torch.stack([-(x - c).square().sum(1) if q.metric == "l2" else (x * c).sum(1) for x in a])  # (N, M)
    if q.metric == "cosine":
        norm = torch.linalg.vector_norm(a, dim=1)[:, None] * torch.linalg.vector_norm(c, dim=1)
        zero = (a.norm(dim=1) < SHORTEST_NORM)[:, None] | (c.norm(dim=1) < SHORTEST_NORM)
        score = torch.where(zero, 0.0, score / norm)
    if not q.query.dtype == q.corpus.dtype == torch.float64:
        score = score.float()  # what the caller sees as equal is a tie
    allowed = torch.isfinite(c).all(1) & torch.isfinite(a).all(1)[:, None]
    allowed = allowed & (score >= q.least[:, None]) & (score <= q.most[:, None])
    if q.query_id is not None:
        allowed = allowed & (q.query_id[:, None] != q.corpus_id)
    score, column = score.masked_fill(~allowed, -torch.inf).sort(dim=1, descending=True, stable=True)
    return score[:, : q.k], column[:, : q.k], allowed.sum(1).clamp_max(q.k)


def quadruplet_rows(q: Quadruplets) -> tuple[Tensor, Tensor]:
    """(N,) losses and the (3, N) similarities of the anchor with positive, batch negative and corpus negative."""
    dtype = torch.promote_types(q.anchor.dtype, torch.float32)
    there, rows = None if q.index is None else q.index >= 0, list(q.rows)
    if there is not None:  # before anything is computed: rows that nobody asks for may hold anything
        rows[2] = torch.where(there[:, None], rows[2].index_select(0, q.index.clamp_min(0)), 0.0)
    anchor, *others = (unit_rows(x.to(dtype)) if q.normalize else x.to(dtype) for x in rows)
    similarities = ((anchor * x).sum(1) for x in others)
    # An infinite row is no row: without norms its products may be infinite, and a hinge would make 0 of them.
    positive, batch, corpus = (torch.where(torch.isinf(s), torch.nan, s) for s in similarities)
    weight = q.weights[0]
    if there is not None:
        batch = torch.where(there, batch, -torch.inf)
    similarity = torch.stack([positive, batch, corpus]).detach()
    if q.classic:
        return (q.margins[0] + batch - positive).relu() + (q.margins[1] + corpus - positive).relu(), similarity
    # A negative that is not there and has no weight is no term, where 0 * -inf would be NaN.
    weighted = torch.where(there, batch, 0.0) * weight if there is not None and weight == 0 else batch * weight
    return (weighted + q.weights[1] * corpus - positive + q.margins[0]).relu(), similarity


@torch.no_grad()
def step_rows(base: Tensor, direction: Tensor, radius: Tensor | float, kind: str) -> Tensor:
    """base_i + radius_i v_i: v the direction ("raw"), or it ("l2") or its signs ("sign") to length 1."""
    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)  # (N, 1)
    v = {
        "raw": direction,
        "l2": torch.where(length == 0, 0.0, direction / length),
        "sign": direction.sign() / direction.shape[1] ** 0.5,
    }[kind]
    return base + (radius[:, None] if isinstance(radius, Tensor) else radius) * v


@torch.no_grad()
def attack_gradient(x: Tensor, anchor: Tensor, inv_temperature: Tensor | float, index: Tensor | None = None) -> Tensor:
    """(N, D) gradient by x of sum_i CE_i(cos(x_i, anchor_j) / temperature) / M over M anchors, in closed form; the
    label is index_i, or i."""
    scale = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    scale = torch.where(scale < SHORTEST_NORM, 0.0, 1 / scale.clamp_min(SHORTEST_NORM))
    u, ux = unit_rows(anchor), unit_rows(x)
    t = similarity(x, anchor)  # (N, M)
    own = torch.arange(x.shape[0], device=x.device) if index is None else index
    g = (t * inv_temperature).softmax(1)
    g = g.scatter_add(1, own[:, None], -torch.ones_like(g[:, :1])) * (inv_temperature / anchor.shape[0])
    with torch.autocast(x.device.type, enabled=False):
        return (g @ u - (g * t).sum(1, keepdim=True) * ux) * scale


@torch.no_grad()
def assign(points: Tensor, centroids: Tensor, wanted: int, metric: str) -> tuple[Tensor, Tensor]:
    """(N, wanted) nearest centroids, -1 for none, and their cosines or squared distances: the whole matrix, sorted."""
    q, none = TopKQuery, torch.full((points.shape[0],), torch.inf, dtype=torch.float64, device=points.device)
    name = "l2" if metric == "euclidean" else "cosine"
    score, index, count = topk(q(points, centroids, wanted, name, None, None, -none, none))
    absent = torch.arange(wanted, device=points.device) >= count[:, None]
    value = 0.0 - score if metric == "euclidean" else score
    return index.masked_fill(absent, -1), value.masked_fill(absent, torch.nan)


@torch.no_grad()
def cluster_sums(points: Tensor, index: Tensor, clusters: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """(clusters, D) float64 sums of the points of each cluster, and (clusters,) how many they are."""
    x = unit_rows(points.double()) if normalize else points.double()
    known = index >= 0
    sums = x.new_zeros(clusters, x.shape[1]).index_add(0, index[known], x[known])
    return sums, torch.bincount(index[known], minlength=clusters)


def cluster_margin(
    anchor: Tensor, candidate: Tensor, positive: Tensor, index: Tensor, candidate_index: Tensor, alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sum of the bidirectional margin over pairs of one cluster, and how many pairs those are: the whole matrix."""
    s = similarity(anchor, candidate)  # (N, M)
    d = s - s.gather(1, positive[:, None])
    same = (index[:, None] == candidate_index) & (index >= 0)[:, None]
    same = same.scatter(1, positive[:, None], False)
    margin = (d + alpha).relu() + (-d - beta).relu()
    return torch.where(same, margin, 0.0).sum(), same.sum()
