"""HSimCSE: InfoNCE and a quadruplet hinge over hard positives and hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..operands import STEPS
from ..ops import checks
from ..ops.dispatch import choose_backend
from ..ops.quadruplet import QuadrupletCall
from .adversarial import adversarial_positive
from .contrastive import Call, CandidateBlock, ContrastiveStats, LossAndStats, contrastive_loss
from .infonce import SCALED
from .quadruplet import WEIGHTS, check_hinge, check_paired, quadruplet_rows, quadruplet_total

QUADRUPLET_WEIGHT = 0.22  # a literal of the released code


class HSimCSEStats(NamedTuple):
    """By-products of `hsimcse_loss`: the fields of `ContrastiveStats`, and then

    `infonce`, `quadruplet` the means of the two parts before their weights; `active_share` of rows whose
    hinge is above 0; `adversarial_similarity`, `batch_similarity`, `corpus_similarity` means of the hinge's three
    cosines, the second over rows that have an in-batch negative.
    """

    lse: Tensor
    accuracy: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    masked_share: Tensor
    hardest_similarity: Tensor
    hardest_index: Tensor
    infonce: Tensor
    quadruplet: Tensor
    active_share: Tensor
    adversarial_similarity: Tensor
    batch_similarity: Tensor
    corpus_similarity: Tensor


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
        corpus_negative:   (N, D) same dtype and device: what `CorpusNegatives` finds for each anchor. A constant, as
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
        return_stats:      return `LossAndStats(loss, HSimCSEStats)`.
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
    check_part(all_anchor, anchor_index)
    checks.check_finite("quadruplet_weight", quadruplet_weight)
    checks.check_finite("adversarial_step", adversarial_step)
    checks.check_choice("adversarial_mode", adversarial_mode, STEPS)
    hinge = check_hinge(weights, margin, form)
    contrast = Call(
        SCALED, 0.0, negatives, temperature, symmetric, anchor_id, candidate_id, True, reduction, True,
        max_workspace_bytes, backend,
    )  # fmt: skip
    infonce, stats = contrastive_loss(anchor, candidate, positive, contrast)
    own = candidate.detach()[: anchor.shape[0]] if positive is None else candidate.detach()[positive]
    harder = adversarial_positive(
        anchor if all_anchor is None else all_anchor, own, temperature=temperature, step=adversarial_step,
        mode=adversarial_mode, noise=noise, generator=generator, anchor_index=anchor_index, backend=backend,
    )  # fmt: skip
    call = QuadrupletCall(
        anchor, harder, candidate, corpus_negative.detach(), stats.hardest_index, *hinge, True,
        choose_backend(anchor, backend),
    )  # fmt: skip
    pulled, rows, similarity = _hinge(call, float(quadruplet_weight), reduction)
    loss = infonce + pulled
    return LossAndStats(loss, _stats(stats, infonce, rows, reduction, similarity)) if return_stats else loss


def check_part(all_anchor: Tensor | None, anchor_index: Tensor | None) -> None:
    """A ValueError where one is given without the other."""
    if (all_anchor is None) != (anchor_index is None):
        given, absent = ("anchor_index", "all_anchor") if all_anchor is None else ("all_anchor", "anchor_index")
        raise ValueError(f"{given} needs {absent}, got {absent}=None")


def _hinge(call: QuadrupletCall, weight: float, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted hinge, its rows without weight and gradient, and the similarities."""
    if reduction == "none":
        rows, similarity = quadruplet_rows(call)
        return weight * rows, rows.detach(), similarity
    # The weight is a factor of the gradients from the start, so that backward need not multiply them.
    return quadruplet_total(call, weight, reduction == "mean")


def _stats(stats: ContrastiveStats, infonce: Tensor, rows: Tensor, reduction: str, similarity: Tensor) -> HSimCSEStats:
    positive, batch, corpus = similarity
    there = batch > -torch.inf
    return HSimCSEStats(
        *stats,
        infonce=infonce.detach() / len(rows) if reduction == "sum" else infonce.detach().mean(),
        quadruplet=rows.mean(),
        active_share=(rows > 0).float().mean(),
        adversarial_similarity=positive.mean(),
        batch_similarity=torch.where(there, batch, 0.0).sum() / there.sum().clamp_min(1),
        corpus_similarity=corpus.mean(),
    )
