"""Focal-InfoNCE: every similarity weighs itself, negatives with a margin."""

from __future__ import annotations

from torch import Tensor

from ..transforms import LogitTransform, register
from .contrastive import Batch, CandidateBlock, LossAndStats, LossOptions, contrastive_loss

SOURCE = "Hou and Li, Focal-InfoNCE, arXiv:2310.06918; formula and defaults as in its released code"


def _focal(s, margin):
    return s * (s + margin)


def _focal_grad(s, margin):
    return s + s + margin


def _square(s, margin):
    return s * s


def _square_grad(s, margin):
    return s + s


def _half_grad(s, margin):
    return s + margin


def _same(s, margin):
    return s


def _bounds(s_max, margin):
    """The negatives' parabola has its minimum, -margin^2 / 4, at s = -margin / 2."""
    return -margin * margin / 4, s_max * (s_max + abs(margin))


FOCAL = register(LogitTransform("focal", _focal, _focal_grad, _square, _square_grad, _bounds, SOURCE))
DETACHED = register(
    LogitTransform(
        "focal_detached",
        _focal,
        _half_grad,
        _square,
        _same,
        _bounds,
        SOURCE,
        autograd_f=lambda s, margin: s * (s.detach() + margin),
        autograd_f_positive=lambda s, margin: s * s.detach(),
    )
)


def focal_infonce_loss(
    anchor: Tensor,
    candidate: Tensor,
    positive: Tensor | None = None,
    *,
    negatives: Tensor | CandidateBlock | list | None = None,
    temperature: float | Tensor = 0.05,
    margin: float = 0.3,
    detach_modulation: bool = False,
    symmetric: bool = False,
    anchor_id: Tensor | None = None,
    candidate_id: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
    max_workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor | LossAndStats:
    r"""Focal-InfoNCE loss. The (N, M) logits are never written to memory whole by the fused backends.

    With s_ij the cosine of anchor_i and candidate_j and p = positive[i]:

        x_ij   = s_ij^2 / temperature                   if j = p
                 s_ij (s_ij + margin) / temperature     otherwise
        loss_i = logsumexp_j x_ij - x_ip

    Compared with InfoNCE a negative counts more when its similarity is above 1 - margin and less below. Below -margin
    / 2 the gradient of a negative changes sign; a positive of negative similarity is pushed further away: start from
    a trained encoder.

    Args:
        margin:            added to the similarity of negatives; 0 keeps the plain square.
        detach_modulation: hold the weighting similarity constant in the gradient (s / temperature and (s + margin) /
                           temperature instead of 2 s / temperature and (2 s + margin) / temperature). The loss has
                           the same value. Not in the paper's code.

    The other arguments, shapes, dtypes, errors and numerics are those of `infonce_loss`.

    Source: Hou and Li, Focal-InfoNCE, arXiv:2310.06918; formula and defaults as in its released code.

    Example:
        >>> a = torch.eye(3, 8)
        >>> focal_infonce_loss(a, a, torch.arange(3)).item() < 1e-6
        True
    """
    batch = Batch(anchor, candidate, positive, negatives, anchor_id, candidate_id)
    transform = DETACHED if detach_modulation else FOCAL
    options = LossOptions(
        transform, margin, temperature, symmetric, normalize, reduction, return_stats, max_workspace_bytes, backend
    )
    return contrastive_loss(batch, options)
