"""The quadruplet hinge of HSimCSE, and the classic one with a hinge for each negative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from .. import reference
from ..operands import Quadruplets
from ..ops import checks, quadruplet
from ..ops.dispatch import choose_backend, record
from ..ops.quadruplet import QuadrupletCall
from .contrastive import REDUCTIONS, reduced

FORMS = ("weighted", "classic")
# Of HSimCSE's released code: literals there.
WEIGHTS = (0.9, 0.11)


def quadruplet_loss(
    anchor: Tensor,
    positive: Tensor,
    batch_negative: Tensor,
    corpus_negative: Tensor,
    *,
    candidate: Tensor | None = None,
    weights: Sequence[float] = WEIGHTS,
    margin: float | Sequence[float] = 0.0,
    form: str = "weighted",
    normalize: bool = True,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Hinge of a positive against two negatives, forward and gradients in one pass over the rows.

    With p_i, b_i, c_i the cosines of anchor_i with its positive, batch negative and corpus negative:

        weighted: loss_i = max(0, weights[0] b_i + weights[1] c_i - p_i + margin)
        classic:  loss_i = max(0, margin[0] + b_i - p_i) + max(0, margin[1] + c_i - p_i)

    Args:
        anchor:          (N, D) float16 | bfloat16 | float32 | float64. Read only, any strides.
        positive:        (N, D) same dtype and device, as are all rows.
        batch_negative:  (N, D) rows; or (N,) int64, which row of `candidate` it is, as `hardest_negative` returns it:
                         then nothing is gathered into memory. -1 is no negative: its similarity is -inf, and a hinge
                         that holds it is 0.
        corpus_negative: (N, D).
        candidate:       (M, D), what an index in `batch_negative` numbers; None where that is rows.
        weights:         two numbers >= 0, of form "weighted"; "classic" has none.
        margin:          a number; for "classic" also a pair, one for each hinge.
        form:            "weighted" | "classic".
        normalize:       cosine similarity; False takes plain dot products.
        reduction:       "mean" | "sum" | "none".
        backend:         "triton" | "cpp" | "reference"; None chooses by device and dtype, `last_backend()` tells.

    Returns:
        float32 scalar, or (N,) with "none" (float64 for float64 input). Differentiable in all rows; what needs no
        gradient gets none and costs none.

    Raises:
        ValueError: shapes, dtypes or devices disagree, empty input, `candidate` missing or superfluous, weights or
            margins that are not as above, unknown form, reduction or backend.
        IndexError: an index in `batch_negative` outside -1 to M - 1, on the CPU; a GPU, which would stall, does not
            check.
        RuntimeError: the backend asked for cannot run here; or a second derivative (use float64 or
            backend="reference").

    Numerics:
        Products and sums in float32 whatever the input. A row shorter than 1e-8 is a zero row, with similarity 0 and
        gradient 0. A hinge at exactly 0 has gradient 0. A NaN makes its own row's loss NaN. The gradient of a candidate
        that several anchors share is added in their order: same input, same bits.

    Source: github.com/xubodhu/HSimCSE, IJCNN 2023 (weighted); Chen et al., arXiv:1704.01719 (classic).

    Example:
        >>> a, p = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
        >>> round(quadruplet_loss(a, p, a, a, weights=(0.9, 0.5)).item(), 4)
        0.6929
    """
    checks.check_rows("anchor", anchor)
    check_paired("positive", positive, anchor)
    check_paired("corpus_negative", corpus_negative, anchor)
    rows, index = _batch_negative(batch_negative, candidate, anchor)
    hinge = check_hinge(weights, margin, form)
    checks.check_choice("reduction", reduction, REDUCTIONS)
    call = QuadrupletCall(
        anchor, positive, rows, corpus_negative, index, *hinge, bool(normalize), choose_backend(anchor, backend)
    )
    return quadruplet_terms(call, 1.0, reduction)[0]


def quadruplet_terms(call: QuadrupletCall, weight: float, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """weight times the reduced losses, (N,) losses without gradient, and (3, N) similarities, on the call's backend."""
    if call.backend == "reference":
        record("reference")
        checks.check_index("batch_negative", call.index, call.batch_negative.shape[0], "candidate", none=True)
        losses, similarity = reference.quadruplet_rows(Quadruplets(*call[:-1]))
    elif reduction != "none" and torch.is_grad_enabled() and any(x.requires_grad for x in call.rows):
        # The weight is a factor of the gradients from the start, so that backward need not multiply them.
        return quadruplet.total(call, weight, reduction == "mean")
    else:
        losses, similarity = quadruplet.rows(call)
    return weight * reduced(losses, reduction), losses.detach(), similarity


def check_paired(name: str, rows: Tensor, anchor: Tensor) -> None:
    """Rows of the anchors' kind and number."""
    checks.check_same_kind(name, rows, "anchor", anchor)
    if rows.shape[0] != anchor.shape[0]:
        raise ValueError(f"{name} and anchor must have as many rows, got {rows.shape[0]} and {anchor.shape[0]}")


def _batch_negative(batch_negative: Tensor, candidate: Tensor | None, anchor: Tensor) -> tuple[Tensor, Tensor | None]:
    """The matrix of the batch negatives, and the rows in it; None: one for each anchor."""
    if not isinstance(batch_negative, Tensor) or batch_negative.dim() != 1:
        check_paired("batch_negative", batch_negative, anchor)
        if candidate is not None:
            raise ValueError(
                f"candidate is for row numbers in batch_negative, got candidate of shape {tuple(candidate.shape)} and "
                f"batch_negative of shape {tuple(batch_negative.shape)}"
            )
        return batch_negative, None
    checks.check_vector("batch_negative", batch_negative, anchor.shape[0], "anchor", anchor)
    if candidate is None:
        raise ValueError("batch_negative holds row numbers and needs candidate to look them up, got candidate=None")
    checks.check_same_kind("candidate", candidate, "anchor", anchor)
    return candidate, batch_negative


def check_hinge(
    weights: Sequence[float], margin: float | Sequence[float], form: str
) -> tuple[list[float], list[float], bool]:
    """(weights, margins, whether the form is the classic one) of an op."""
    checks.check_choice("form", form, FORMS)
    return _check_weights(weights, form), _check_margin(margin, form), form == "classic"


def _pair(value: object) -> list[float] | None:
    """Two finite numbers, or None if it is anything else."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        return None
    finite = all(isinstance(x, Real) and math.isfinite(x) for x in value)
    return [float(x) for x in value] if finite else None


def _check_weights(weights: Sequence[float], form: str) -> list[float]:
    pair = _pair(weights)
    if pair is None or min(pair) < 0:
        raise ValueError(f"weights must be two finite numbers of at least 0, got {weights!r}")
    if form == "classic" and tuple(pair) != WEIGHTS:
        raise ValueError(f"weights are of form 'weighted', got weights {weights!r} and form {form!r}")
    return pair


def _check_margin(margin: float | Sequence[float], form: str) -> list[float]:
    if isinstance(margin, Real):
        checks.check_finite("margin", margin)
        return [float(margin)] * 2
    pair = _pair(margin)
    if pair is None:
        raise ValueError(f"margin must be a finite number, or two of them for form 'classic', got {margin!r}")
    if form != "classic":
        raise ValueError(f"margin must be one number for form {form!r}, which has one hinge, got {margin!r}")
    return pair
