"""SSCL: embeddings of intermediate layers as negatives of the final layer's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..ops import checks
from .contrastive import Batch, CandidateBlock, LossAndStats, LossOptions, as_blocks, contrastive_loss, mean_of
from .infonce import SCALED


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
    intermediate layers, from which the final layer is separated. An anchor's own are among its negatives, and
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
        return_stats: return `LossAndStats(loss, ContrastiveStats)`, of the final parts alone, with the parts
                    `infonce` and `extended`, the means of the two losses.

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
    everyone = anchor if all_anchor is None else all_anchor
    blocks, more = _split_blocks(negatives, width, parts)
    more += [CandidateBlock(part) for rows in (everyone, candidate) for part in _other_parts(rows, width)]
    batch = Batch(anchor[:, :width], candidate[:, :width], positive, blocks, anchor_id, candidate_id)
    options = LossOptions(SCALED, 0.0, temperature, False, True, reduction, return_stats, max_workspace_bytes, backend)
    plain = contrastive_loss(batch, options)
    extended = contrastive_loss(batch._replace(negatives=[*blocks, *more]), options) if more else plain
    if not return_stats:
        return (plain + extended) / 2
    infonce, wider = (mean_of(x.loss, reduction, len(anchor)) for x in (plain, extended))
    stats = plain.stats._replace(parts={"infonce": infonce, "extended": wider})
    return LossAndStats((plain.loss + extended.loss) / 2, stats)


def _other_parts(rows: Tensor, width: int) -> tuple[Tensor, ...]:
    """The (N, D) parts of rows after the final layer's."""
    return rows.split(width, dim=1)[1:]


def _split_blocks(negatives, width: int, parts: int) -> tuple[list[CandidateBlock], list[CandidateBlock]]:
    """The final parts of all blocks, with the weights and ids of their columns, and the other parts."""
    final, others = [], []
    for k, b in enumerate(as_blocks(negatives)):
        checks.check_rows(f"negatives[{k}]", b.rows)
        if b.rows.shape[1] not in (width, width * parts):
            got = b.rows.shape[1]
            raise ValueError(f"negatives[{k}] must have rows of {width} or {width * parts} columns, got {got}")
        rows = b.rows[:, :width]
        final.append(CandidateBlock(rows, log_weight=b.log_weight, own_log_weight=b.own_log_weight, id=b.id))
        others += [CandidateBlock(part, log_weight=b.log_weight) for part in _other_parts(b.rows, width)]
    return final, others
