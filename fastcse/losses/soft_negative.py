"""SNCSE's objective: InfoNCE, and a margin that keeps a sentence's negation a little further away than its positive."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..ops import checks
from .contrastive import Call, CandidateBlock, LossAndStats, contrastive_loss
from .infonce import SCALED


class SoftNegativeStats(NamedTuple):
    """By-products of `soft_negative_loss`: the fields of `ContrastiveStats`, and then `infonce` and `margin`, the means
    of the two parts before the weight, `soft_similarity`, the mean cosine of anchors and their soft negatives, and
    `active_share` of rows whose margin is not kept."""

    lse: Tensor
    accuracy: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    masked_share: Tensor
    hardest_similarity: Tensor
    hardest_index: Tensor
    infonce: Tensor
    margin: Tensor
    soft_similarity: Tensor
    active_share: Tensor


def soft_negative_loss(
    anchor: Tensor,
    candidate: Tensor,
    soft_negative: Tensor,
    positive: Tensor | None = None,
    *,
    margin_weight: float = 1e-3,
    alpha: float = 0.1,
    beta: float = 0.3,
    negatives: Tensor | CandidateBlock | list | None = None,
    temperature: float | Tensor = 0.05,
    anchor_id: Tensor | None = None,
    candidate_id: Tensor | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
    max_workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor | LossAndStats:
    r"""SNCSE's loss: InfoNCE and a bidirectional margin over soft negatives, one for each anchor.

        loss_i = infonce_i(anchor, candidate) + margin_weight (max(0, d_i + alpha) + max(0, -d_i - beta))
        d_i    = cos(a_i, soft_negative_i) - cos(a_i, candidate_p),    p = positive[i]

    A soft negative reads almost like the anchor and means something else, its negation for example: its similarity
    should stay alpha to beta below the positive's. It takes no part in InfoNCE.

    Args:
        anchor:        (N, D) float16 | bfloat16 | float32 | float64. Read only, any strides.
        candidate:     (M, D) same dtype and device.
        soft_negative: (N, D) same dtype and device; row i belongs to anchor i.
        positive:      (N,) int64, each in [0, M): the column of each anchor's positive. None: column i for anchor i.
        margin_weight: of the margin; 0 is InfoNCE. The released code has 1e-3 for BERT and 5e-4 for RoBERTa.
        alpha, beta:   margins; for -beta <= d_i <= -alpha the margin and its gradient are 0.
        negatives, temperature, anchor_id, candidate_id, max_workspace_bytes: of `infonce_loss`.
        reduction:     "mean" | "sum" | "none".
        return_stats:  return `LossAndStats(loss, SoftNegativeStats)`.
        backend:       of InfoNCE: "triton" | "cpp" | "reference"; None chooses by device and dtype.

    Returns:
        float32 scalar, or (N,) with "none" (float64 for float64 input). Differentiable in `anchor`, `candidate`,
        `soft_negative`, the blocks and `temperature`.

    Raises:
        ValueError: shapes, dtypes or devices disagree, or an option out of range.
        IndexError: a positive out of range, on the CPU.
        RuntimeError: the backend asked for cannot run here; or a second derivative.

    Numerics: those of `infonce_loss`; the 2 N cosines of the margin in plain torch, in float32 at least. A zero row has
        cosine 0 and gradient 0.

    Source: Wang et al. (SNCSE), arXiv:2201.05979; formula and defaults as in its released code.

    Example:
        >>> z, soft = torch.eye(3), torch.eye(3) + 0.2
        >>> soft_negative_loss(z, z, soft, margin_weight=1.0).item() > infonce_loss(z, z).item()
        True
    """
    _check(anchor, candidate, soft_negative, positive)
    for name, value in (("margin_weight", margin_weight), ("alpha", alpha), ("beta", beta)):
        checks.check_finite(name, value)
    call = Call(
        SCALED, 0.0, negatives, temperature, False, anchor_id, candidate_id, True, reduction, return_stats,
        max_workspace_bytes, backend,
    )  # fmt: skip
    made = contrastive_loss(anchor, candidate, positive, call)
    infonce, stats = made if return_stats else (made, None)
    near, soft = _cosines(anchor, candidate, soft_negative, positive)
    d = soft - near
    margin = (d + alpha).relu() + (-d - beta).relu()
    reduced = margin if reduction == "none" else margin.sum() if reduction == "sum" else margin.mean()
    loss = infonce + margin_weight * reduced
    if not return_stats:
        return loss
    rows = infonce.detach().mean() / (len(anchor) if reduction == "sum" else 1)
    parts = (rows, margin.detach().mean(), soft.detach().mean(), (margin > 0).float().mean())
    return LossAndStats(loss, SoftNegativeStats(*stats, *parts))


def _cosines(
    anchor: Tensor, candidate: Tensor, soft_negative: Tensor, positive: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(N,) cosines of the anchors with their positives, and with their soft negatives."""
    own = candidate[: len(anchor)] if positive is None else candidate.index_select(0, positive)
    dtype = torch.promote_types(anchor.dtype, torch.float32)
    a, p, s = (reference.unit_rows(x.to(dtype)) for x in (anchor, own, soft_negative))
    return (a * p).sum(1), (a * s).sum(1)


def _check(anchor: Tensor, candidate: Tensor, soft_negative: Tensor, positive: Tensor | None) -> None:
    checks.check_rows("anchor", anchor)
    for name, x in (("candidate", candidate), ("soft_negative", soft_negative)):
        checks.check_same_kind(name, x, "anchor", anchor)
    if len(soft_negative) != len(anchor):
        rows = f"{len(soft_negative)} and {len(anchor)}"
        raise ValueError(f"soft_negative and anchor must have as many rows, got {rows}")
    checks.check_positive(positive, anchor, candidate)
