"""The hardest negative of each anchor: the best two rows of a search, less the positive."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .topk_search import topk


class HardestNegative(NamedTuple):
    """`value` (N,) float32 similarity and `index` (N,) int64 column; -inf and -1 where a row has no negative."""

    value: Tensor
    index: Tensor


@torch.no_grad()
def hardest_negative(
    anchor: Tensor,
    candidate: Tensor,
    positive: Tensor | None = None,
    *,
    anchor_id: Tensor | None = None,
    candidate_id: Tensor | None = None,
    normalize: bool = True,
    backend: str | None = None,
) -> HardestNegative:
    r"""The most similar candidate of each anchor that is not its positive, exactly, without the (N, M) matrix.

        index_i = argmax_{j != positive_i} cos(anchor_i, candidate_j)

    A training step that computes InfoNCE has it already: `infonce_loss(..., return_stats=True).stats.hardest_index` is
    the same up to float32's rounding, and costs no second sweep.

    Args:
        anchor:    (N, D) float16 | bfloat16 | float32 | float64. Read only, any strides.
        candidate: (M, D) same dtype and device.
        positive:  (N,) int64: the column of each anchor's positive. None: column i for anchor i.
        anchor_id, candidate_id: (N,), (M,) int64: a candidate with the anchor's id is no negative of it.
        normalize: cosines; False takes plain dot products.
        backend:   "triton" | "cpp" | "reference"; None chooses by device and dtype.

    Returns:
        HardestNegative(value, index): (N,) float32 (float64 for float64 input) and (N,) int64, ties to the lowest
        index; -inf and -1 for a row without negatives. No gradient flows through the value: `quadruplet_loss` takes the
        index.

    Raises:
        ValueError: shapes, dtypes or devices disagree, empty input, one id without the other, unknown backend.
        IndexError: a positive out of range, on the CPU; a GPU, which would stall, does not check.
        RuntimeError: the backend asked for cannot run here.

    Numerics: those of `topk`. A candidate that is not finite is never found; an anchor that is not finite has none.

    Source: the in-batch hardest negative of HSimCSE, github.com/xubodhu/HSimCSE.

    Example:
        >>> hardest_negative(torch.eye(3), torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 1]])).index
        tensor([1, 2, 0])
    """
    checks.check_rows("anchor", anchor)
    checks.check_same_kind("candidate", candidate, "anchor", anchor)
    checks.check_positive(positive, anchor, candidate)
    checks.check_index("positive", positive, candidate.shape[0], "candidate")
    _check_ids(anchor, candidate, anchor_id, candidate_id)
    m = candidate.shape[0]
    found = topk(
        anchor, candidate, min(2, m), query_id=anchor_id, corpus_id=candidate_id,
        metric="cosine" if normalize else "ip", backend=backend,
    )  # fmt: skip
    own = torch.arange(anchor.shape[0], device=anchor.device) if positive is None else positive
    first, last = found.indices[:, 0], found.indices[:, -1]
    is_own = first == own
    # With one candidate the last is the first, and may be the positive again.
    value = torch.where(is_own, found.values[:, -1].masked_fill(last == own, -torch.inf), found.values[:, 0])
    index = torch.where(is_own, last.masked_fill(last == own, -1), first)
    return HardestNegative(value, index)


def _check_ids(anchor: Tensor, candidate: Tensor, anchor_id: Tensor | None, candidate_id: Tensor | None) -> None:
    if (anchor_id is None) != (candidate_id is None):
        given, absent = ("candidate_id", "anchor_id") if anchor_id is None else ("anchor_id", "candidate_id")
        raise ValueError(f"{given} needs {absent} to compare with, got {absent}=None")
    if anchor_id is not None:
        checks.check_vector("anchor_id", anchor_id, anchor.shape[0], "anchor", anchor)
        checks.check_vector("candidate_id", candidate_id, candidate.shape[0], "candidate", candidate)
