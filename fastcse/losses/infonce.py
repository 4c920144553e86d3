"""InfoNCE, SimCSE, CLIP: the similarity divided by the temperature."""

from __future__ import annotations

from torch import Tensor

from ..transforms import LogitTransform, register
from .contrastive import Batch, CandidateBlock, LossAndStats, LossOptions, contrastive_loss


def _same(s, margin):
    return s


def _one(s, margin):
    return s * 0.0 + 1.0


SCALED = register(
    LogitTransform(
        name="scaled",
        f=_same,
        df=_one,
        f_positive=_same,
        df_positive=_one,
        bounds=lambda s_max, margin: (-s_max, s_max),
        source="van den Oord et al., arXiv:1807.03748",
    )
)


def infonce_loss(
    anchor: Tensor,
    candidate: Tensor,
    positive: Tensor | None = None,
    *,
    negatives: Tensor | CandidateBlock | list | None = None,
    temperature: float | Tensor = 0.05,
    symmetric: bool = False,
    anchor_id: Tensor | None = None,
    candidate_id: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
    max_workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor | LossAndStats:
    r"""InfoNCE loss (SimCSE, multiple negatives ranking, CLIP). The (N, M) logits are never written to memory whole
    by the fused backends.

    With s_ij the cosine of anchor_i and candidate_j, x_ij = s_ij / temperature and p = positive[i]:

        loss_i = logsumexp_j x_ij - x_ip

    over all columns of `candidate` and of every block in `negatives`; with `symmetric`, half of it plus half of the
    same for candidate_p among all anchors.

    Args:
        anchor:       (N, D) float16 | bfloat16 | float32 | float64. Read only, any strides.
        candidate:    (M, D) same dtype and device.
        positive:     (N,) int64, each in [0, M): the column of each anchor's positive. None: column i for anchor i.
        negatives:    (M', D), a `CandidateBlock`, or a list of them: more columns for every row.
        temperature:  > 0; a float, or a tensor of one element that may require grad.
        symmetric:    add the column direction (CLIP). Blocks in `negatives` take part in the row direction only.
        anchor_id, candidate_id: (N,), (M,) int64: a candidate with the anchor's id is left out of the row, unless it
                      is the positive.
        normalize:    cosine similarity; False takes plain dot products.
        reduction:    "mean" | "sum" | "none".
        return_stats: return `LossAndStats(loss, stats)`.
        max_workspace_bytes: bound of the memory for one chunk of gradient weights; None lets the backend choose.
        backend:      "triton" | "cpp" | "reference"; None chooses by device and dtype, `last_backend()` tells.

    Returns:
        float32 scalar, or (N,) with "none" (float64 for float64 input). Differentiable in `anchor`, `candidate`, the
        blocks and `temperature`.

    Raises:
        ValueError: shapes, dtypes or devices disagree, empty input, temperature <= 0, unknown reduction or backend.
        IndexError: a positive out of range, on the CPU; a GPU, which would stall, does not check.
        RuntimeError: the backend asked for cannot run here; or a second derivative (use float64 or
                      backend="reference").

    Numerics:
        Similarity, logits and sums are float32 whatever the input; gradients of candidates are summed in float32. A
        zero row has similarity 0 and gradient 0. A row without negatives has loss 0 and gradient 0. A NaN in an
        anchor makes that row's loss NaN and no other. Same input, same bits.

    Source: van den Oord et al., arXiv:1807.03748; Gao, Yao and Chen (SimCSE), arXiv:2104.08821.

    Example:
        >>> a = torch.eye(3, 8)
        >>> infonce_loss(a, a).item() < 1e-6
        True
    """
    batch = Batch(anchor, candidate, positive, negatives, anchor_id, candidate_id)
    options = LossOptions(
        SCALED, 0.0, temperature, symmetric, normalize, reduction, return_stats, max_workspace_bytes, backend
    )
    return contrastive_loss(batch, options)
