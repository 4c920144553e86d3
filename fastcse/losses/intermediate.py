"""SSCL's objective: what a sentence looks like in earlier layers is a negative of what it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..ops import checks
from .contrastive import CandidateBlock, LossAndStats
from .infonce import infonce_loss


class SSCLStats(NamedTuple):
    """By-products of `sscl_loss`: the fields of `ContrastiveStats`, of the final parts alone, and then `infonce` and
    `extended`, the means of the two losses whose mean it is."""

    lse: Tensor
    accuracy: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    masked_share: Tensor
    hardest_similarity: Tensor
    hardest_index: Tensor
    infonce: Tensor
    extended: Tensor


def sscl_loss(
    anchor: Tensor,
    candidate: Tensor,
    positive: Tensor | None = None,
    *,
    parts: int = 3,
    negatives: Tensor | CandidateBlock | Sequence | None = None,
    all_anchor: Tensor | None = None,
    temperature: float | Tensor = 0.05,
    anchor_id: Tensor | None = None,
    candidate_id: Tensor | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
    max_workspace_bytes: int | None = None,
    backend: str | None = None,
) -> Tensor | LossAndStats:
    r"""SSCL's loss, of rows that hold `parts` embeddings of one sentence side by side: [final, layer -2, layer -3 ...].

        loss_i = (infonce_i(a, c) + infonce_i(a, c; columns n)) / 2

    with a and c the final parts, and n all (parts - 1) (N + M) other parts of anchors and candidates: vectors of
    intermediate layers, against which the final layer shall stand out. An anchor's own are among its negatives, and
    gradients flow into all of them. With one part it is InfoNCE.

    Args:
        anchor:     (N, parts D) float16 | bfloat16 | float32 | float64. Read only, any strides.
        candidate:  (M, parts D) same dtype and device.
        positive:   (N,) int64, each in [0, M): the column of each anchor's positive. None: column i for anchor i.
        parts:      embeddings in a row; `fastcse.training.recipes.heads.IntermediateLayers` makes such rows.
        negatives:  (M', parts D) or (M', D) rows, a `CandidateBlock` or a list of them: of wider rows the final part is
                    a negative in both losses, and the others in the extended one.
        all_anchor: (A, parts D) where `anchor` is only a part of the batch, as one rank's: all of it.
        temperature, anchor_id, candidate_id, max_workspace_bytes, backend: of `infonce_loss`. Ids mask final parts
                    only: intermediate vectors have none.
        reduction:  "mean" | "sum" | "none".
        return_stats: return `LossAndStats(loss, SSCLStats)`.

    Returns:
        float32 scalar, or (N,) with "none" (float64 for float64 input). Differentiable in `anchor`, `candidate`, the
        blocks and `temperature`.

    Raises:
        ValueError, IndexError: a width that `parts` does not divide, and what `infonce_loss` refuses.
        RuntimeError: the backend asked for cannot run here; or a second derivative.

    Numerics: those of `infonce_loss`. The two losses are two sweeps: the N x M tile is computed twice.

    Source: Chen et al. (SSCL), ACL 2023, github.com/nuochenpku/SSCL; formula and defaults as in its released code.

    Example:
        >>> rows = torch.randn(4, 3 * 8)
        >>> sscl_loss(rows, rows).item() > infonce_loss(rows[:, :8], rows[:, :8]).item()
        True
    """
    checks.check_count("parts", parts)
    checks.check_rows("anchor", anchor)
    checks.check_same_kind("candidate", candidate, "anchor", anchor)
    width, rest = divmod(anchor.shape[1], parts)
    if rest:
        raise ValueError(
            f"anchor must have a width that parts divides, got {anchor.shape[1]} columns and parts={parts}"
        )
    shared = dict(temperature=temperature, anchor_id=anchor_id, candidate_id=candidate_id, reduction=reduction,
                  return_stats=return_stats, max_workspace_bytes=max_workspace_bytes, backend=backend)  # fmt: skip
    blocks, more = _split_blocks(negatives, width, parts)
    everyone = anchor if all_anchor is None else all_anchor
    more += [CandidateBlock(part) for rows in (everyone, candidate) for part in _other_parts(rows, width)]
    a, c = anchor[:, :width], candidate[:, :width]
    plain = infonce_loss(a, c, positive, negatives=blocks or None, **shared)
    extended = infonce_loss(a, c, positive, negatives=[*blocks, *more], **shared) if more else plain
    if not return_stats:
        return (plain + extended) / 2
    means = (x.loss.detach().mean() / (len(a) if reduction == "sum" else 1) for x in (plain, extended))
    return LossAndStats((plain.loss + extended.loss) / 2, SSCLStats(*plain.stats, *means))


def _other_parts(rows: Tensor, width: int) -> tuple[Tensor, ...]:
    """The (N, D) parts of rows behind the final one."""
    return rows.split(width, dim=1)[1:]


def _split_blocks(negatives, width: int, parts: int) -> tuple[list[CandidateBlock], list[CandidateBlock]]:
    """The final parts of all blocks, with what the blocks say of their columns, and the other parts."""
    given = negatives if isinstance(negatives, Sequence) else [] if negatives is None else [negatives]
    blocks = [b if isinstance(b, CandidateBlock) else CandidateBlock(b) for b in given]
    final, others = [], []
    for k, b in enumerate(blocks):
        checks.check_rows(f"negatives[{k}]", b.rows)
        if b.rows.shape[1] not in (width, width * parts):
            got = b.rows.shape[1]
            raise ValueError(f"negatives[{k}] must have rows of {width} or {width * parts} columns, got {got}")
        rows = b.rows[:, :width]
        final.append(CandidateBlock(rows, log_weight=b.log_weight, own_log_weight=b.own_log_weight, id=b.id))
        others += [CandidateBlock(part, log_weight=b.log_weight) for part in _other_parts(b.rows, width)]
    return final, others
