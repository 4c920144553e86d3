"""HSimCSE: InfoNCE and a quadruplet hinge over hard positives and hard negatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..operands import STEPS
from ..ops import checks
from ..ops.dispatch import choose_backend
from ..ops.quadruplet import QuadrupletCall
from .adversarial import adversarial_positive
from .contrastive import Batch, CandidateBlock, LossAndStats, LossOptions, contrastive_loss, mean_of
from .infonce import SCALED
from .quadruplet import WEIGHTS, check_hinge, check_paired, quadruplet_terms

QUADRUPLET_WEIGHT = 0.22  # a literal of the released code


def hsimcse_loss(
    anchor: Tensor,
    candidate: Tensor,
    corpus_negative: Tensor,
    positive: Tensor | None = None,
    *,
    quadruplet_weight: float = QUADRUPLET_WEIGHT,
    weights: Sequence[float] = WEIGHTS,
    margin: float | Sequence[float] = 0.0,
    form: str = "weighted",
    adversarial_step: float = 3.0,
    adversarial_mode: str = "raw",
    noise: float = 1.0,
    generator: torch.Generator | None = None,
    negatives: Tensor | CandidateBlock | list | None = None,
    temperature: float | Tensor = 0.05,
    all_anchor: Tensor | None = None,
    anchor_index: Tensor | None = None,
    symmetric: bool = False,
    anchor_id: Tensor | None = None,
    candidate_id: Tensor | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
    max_workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor | LossAndStats:
    r"""HSimCSE's objective.

        loss_i = infonce_i + quadruplet_weight max(0, w_1 b_i + w_2 c_i - p_i + margin)

    with p_i the cosine of anchor_i and its adversarial positive, b_i that of its hardest negative among the candidates,
    and c_i that of corpus_negative_i. The hardest negative comes out of the sweep of InfoNCE; the adversarial positive
    takes a sweep of its own, of two products where InfoNCE's has three.

    Args:
        anchor:            (N, D) float16 | bfloat16 | float32 | float64. Read only, any strides.
        candidate:         (M, D) same dtype and device.
        corpus_negative:   (N, D) same dtype and device, one for each anchor, from `CorpusNegatives`. A constant, as
                           the adversarial positive is: the hinge trains the anchors and, through b, the candidates.
        positive:          (N,) int64, the column of each anchor's positive; None: column i for anchor i.
        quadruplet_weight: 0 is InfoNCE alone.
        weights, margin, form: of `quadruplet_loss`.
        adversarial_step, adversarial_mode, noise, generator: `step`, `mode` and the others of `adversarial_positive`.
        all_anchor, anchor_index: (A, D) and (N,) int64, where `anchor` is only a part of the batch, as one rank's:
                           the anchors that adversarial positives move away from, and the place of each anchor there.
        negatives, temperature, symmetric, anchor_id, candidate_id, max_workspace_bytes: of `infonce_loss`. The hardest
                           negative is one of `candidate`; `negatives` take part in InfoNCE only.
        reduction:         "mean" | "sum" | "none".
        return_stats:      return `LossAndStats(loss, ContrastiveStats)`, with the parts `infonce`, `quadruplet`,
                           means of the two terms before their weights; `active_share` of rows whose hinge is above 0;
                           `adversarial_similarity`, `batch_similarity`, `corpus_similarity`, means of the hinge's
                           cosines, the second over rows that have an in-batch negative.
        backend:           "triton" | "cpp" | "reference"; None chooses by device and dtype.

    Returns:
        float32 scalar, or (N,) with "none" (float64 for float64 input). Differentiable in `anchor`, `candidate`, the
        blocks and, through InfoNCE, `temperature`.

    Raises:
        ValueError, IndexError: what the functions above refuse.
        RuntimeError: the backend asked for cannot run here; or a second derivative.

    Numerics: those of the functions above. A row without negatives has the hinge 0.

    Source: github.com/xubodhu/HSimCSE, IJCNN 2023; the defaults are literals there.

    Example:
        >>> z, bank = torch.eye(3, 8), torch.ones(3, 8)
        >>> hsimcse_loss(z, z, bank, noise=0.0).item() < 1e-6
        True
    """
    checks.check_rows("anchor", anchor)
    check_paired("corpus_negative", corpus_negative, anchor)
    checks.check_both("all_anchor", all_anchor, "anchor_index", anchor_index)
    checks.check_finite("quadruplet_weight", quadruplet_weight)
    checks.check_finite("adversarial_step", adversarial_step)
    checks.check_choice("adversarial_mode", adversarial_mode, STEPS)
    hinge = check_hinge(weights, margin, form)
    batch = Batch(anchor, candidate, positive, negatives, anchor_id, candidate_id)
    options = LossOptions(SCALED, 0.0, temperature, symmetric, True, reduction, True, max_workspace_bytes, backend)
    infonce, stats = contrastive_loss(batch, options)
    own = candidate.detach()[: anchor.shape[0]] if positive is None else candidate.detach()[positive]
    all_anchor = anchor if all_anchor is None else all_anchor
    move = dict(step=adversarial_step, mode=adversarial_mode, noise=noise, generator=generator)
    harder = adversarial_positive(
        all_anchor, own, temperature=temperature, anchor_index=anchor_index, backend=backend, **move
    )
    rows = (anchor, harder, candidate, corpus_negative.detach(), stats.hardest_index)
    call = QuadrupletCall(*rows, *hinge, True, choose_backend(anchor, backend))
    weighted, hinges, similarity = quadruplet_terms(call, float(quadruplet_weight), reduction)
    loss = infonce + weighted
    if not return_stats:
        return loss
    to_positive, to_batch, to_corpus = similarity
    has_negative = to_batch > -torch.inf
    parts = {
        "infonce": mean_of(infonce, reduction, len(anchor)),
        "quadruplet": hinges.mean(),
        "active_share": (hinges > 0).float().mean(),
        "adversarial_similarity": to_positive.mean(),
        "batch_similarity": torch.where(has_negative, to_batch, 0.0).sum() / has_negative.sum().clamp_min(1),
        "corpus_similarity": to_corpus.mean(),
    }
    return LossAndStats(loss, stats._replace(parts=parts))
