"""InfoNCE with an angular margin: a negative is compared as if it stood closer to the anchor by a fixed angle."""

from __future__ import annotations

import math

from torch import Tensor

from ..ops import checks
from ..transforms import LogitTransform, register, root
from .contrastive import Batch, CandidateBlock, LossAndStats, LossOptions, contrastive_loss
from .infonce import SCALED

SOURCE = "AdapACSE of KDMCSE, arXiv:2403.17486; formula and default as in its released code"
WIDEST = math.pi / 2


# The margin of the transform is t = tan(margin / 2): cosine and sine of the angle are then quotients of polynomials,
# (1 - t^2) / (1 + t^2) and 2 t / (1 + t^2), which every backend computes alike.


def _turned(s, margin):
    c = (1.0 - margin * margin) / (1.0 + margin * margin)
    q = (1.0 - s) * (1.0 + s)  # exact where s is near 1 or -1, unlike 1 - s^2
    q = q * (q > 1e-6) + (q <= 1e-6) * (0.0 * q + 1e-6)  # a number times a 0/1 mask has torch's default type
    closer = s * c + root(q) * ((margin + margin) / (1.0 + margin * margin))
    return closer * (s < c) + s * (s >= c)


def _turned_grad(s, margin):
    c = (1.0 - margin * margin) / (1.0 + margin * margin)
    q = (1.0 - s) * (1.0 + s)
    inside = (q > 1e-6) * s  # where q is held at its least, its derivative is 0
    q = q * (q > 1e-6) + (q <= 1e-6) * (0.0 * q + 1e-6)  # a number times a 0/1 mask has torch's default type
    slope = c - inside * ((margin + margin) / (1.0 + margin * margin)) / root(q)
    return 1.0 + (slope - 1.0) * (s < c)


def _bounds(s_max, margin):
    """A negative moves up only, and no further than to cosine 1."""
    return -s_max, s_max * (s_max > 1.0) + (s_max <= 1.0)


ANGULAR = register(LogitTransform("angular", _turned, _turned_grad, SCALED.f, SCALED.df, _bounds, SOURCE))


def angular_infonce_loss(
    anchor: Tensor,
    candidate: Tensor,
    positive: Tensor | None = None,
    *,
    negatives: Tensor | CandidateBlock | list | None = None,
    temperature: float | Tensor = 0.05,
    margin: float = 0.15,
    symmetric: bool = False,
    anchor_id: Tensor | None = None,
    candidate_id: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
    max_workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor | LossAndStats:
    r"""InfoNCE with an angular margin on negatives (AdapACSE, with one margin for all pairs). The (N, M) logits are
    never written to memory whole by the fused backends.

    With s_ij = cos(t_ij) the cosine of anchor_i and candidate_j and p = positive[i]:

        x_ij   = s_ij / temperature                     if j = p, or t_ij <= margin
                 cos(t_ij - margin) / temperature       otherwise
        loss_i = logsumexp_j x_ij - x_ip

    cos(t - margin) = s cos(margin) + sqrt(1 - s^2) sin(margin): no angle is computed. As in the released code, a
    negative nearer than the margin keeps its angle, so the logit jumps at s = cos(margin): just below it is
    1 / temperature, from there on s / temperature. The gradient is 0 below the jump and 1 / temperature above.

    The paper's margin between modalities, margin (1 - t_ij) with t_ij a teacher's cosine of the pair, is not here:
    this is its text-to-text form.

    Args:
        margin:    angle in radians, 0 to pi / 2; 0 is InfoNCE.
        normalize: False takes plain dot products, for rows that are unit already; beyond |s| = 1 there is no angle.

    The other arguments, shapes, dtypes and errors are those of `infonce_loss`.

    Raises:
        ValueError, IndexError, RuntimeError: those of `infonce_loss`, and a margin outside 0 to pi / 2.

    Numerics: those of `infonce_loss`. d cos(t - margin) / ds = sin(t - margin) / sin(t) grows without bound towards
        s = -1, so 1 - s^2 is taken as at least 1e-6: the slope stays below 1 + 1000 sin(margin), and is cos(margin)
        nearer to -1 than 5e-7.

    Source: Nguyen et al. (KDMCSE), arXiv:2403.17486; formula and default as in its released code.

    Example:
        >>> a = torch.eye(3, 8)
        >>> bool(angular_infonce_loss(a, a, margin=0.5) > infonce_loss(a, a))
        True
    """
    checks.check_finite("margin", margin)
    if not 0 <= margin <= WIDEST:
        raise ValueError(f"margin must be an angle from 0 to pi / 2 = {WIDEST:.4f}, got {margin}")
    batch = Batch(anchor, candidate, positive, negatives, anchor_id, candidate_id)
    half = math.tan(margin / 2)
    options = LossOptions(
        ANGULAR, half, temperature, symmetric, normalize, reduction, return_stats, max_workspace_bytes, backend
    )
    return contrastive_loss(batch, options)
