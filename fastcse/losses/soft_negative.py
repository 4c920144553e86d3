"""SNCSE's objective: InfoNCE, and a margin that keeps a sentence's negation a little further away than its positive."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..ops import checks
from .contrastive import Batch, CandidateBlock, LossAndStats, LossOptions, contrastive_loss, mean_of, reduced
from .infonce import SCALED
from .quadruplet import check_paired


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
        return_stats:  return `LossAndStats(loss, ContrastiveStats)`, with the parts `infonce` and `margin`, means of
                       the two terms before the weight, `soft_similarity`, the mean cosine of anchors and their soft
                       negatives, and `active_share` of rows whose margin is violated.
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
    checks.check_rows("anchor", anchor)
    checks.check_same_kind("candidate", candidate, "anchor", anchor)
    check_paired("soft_negative", soft_negative, anchor)
    checks.check_positive(positive, anchor, candidate)
    for name, value in (("margin_weight", margin_weight), ("alpha", alpha), ("beta", beta)):
        checks.check_finite(name, value)
    batch = Batch(anchor, candidate, positive, negatives, anchor_id, candidate_id)
    options = LossOptions(SCALED, 0.0, temperature, False, True, reduction, return_stats, max_workspace_bytes, backend)
    made = contrastive_loss(batch, options)
    infonce, stats = made if return_stats else (made, None)
    own = candidate[: len(anchor)] if positive is None else candidate.index_select(0, positive)
    soft = reference.row_similarity(anchor, soft_negative)
    d = soft - reference.row_similarity(anchor, own)
    margin = (d + alpha).relu() + (-d - beta).relu()
    loss = infonce + margin_weight * reduced(margin, reduction)
    if not return_stats:
        return loss
    parts = {
        "infonce": mean_of(infonce, reduction, len(anchor)),
        "margin": margin.detach().mean(),
        "soft_similarity": soft.detach().mean(),
        "active_share": (margin > 0).float().mean(),
    }
    return LossAndStats(loss, stats._replace(parts=parts))
