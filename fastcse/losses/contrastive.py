"""What all softmax losses share: the blocks of candidates, the checks, and the way from a public call to an op."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..ops import checks, eager
from ..ops.call import STATS, Sweep
from ..ops.dispatch import choose_backend, record
from ..transforms import LogitTransform

REDUCTIONS = ("mean", "sum", "none")


@dataclass(eq=False)
class CandidateBlock:
    """One extra block of negatives for every anchor: hard negatives, a queue, centroids.

    Args:
        rows:           (M, D), dtype and device of the anchors. Receives a gradient if it requires one; a block that
                        does not costs a third less.
        log_weight:     (M,) or None: added to every logit of the column, the log of how often the column counts.
                        Constant: no gradient.
        own_log_weight: added to the logit of column i for anchor i (SimCSE's hard-negative weight).
        id:             (M,) int64 or None: a column is left out of the rows whose `anchor_id` equals its id.

    Example:
        >>> queue = CandidateBlock(torch.randn(100, 8), id=torch.arange(100))
        >>> infonce_loss(torch.randn(4, 8), torch.randn(4, 8), negatives=queue, anchor_id=torch.arange(4)).shape
        torch.Size([])
    """

    rows: Tensor
    log_weight: Tensor | None = None
    own_log_weight: float = 0.0
    id: Tensor | None = None

    def __init__(
        self, rows: Tensor, *, log_weight: Tensor | None = None, own_log_weight: float = 0.0, id: Tensor | None = None
    ):
        self.rows, self.log_weight, self.own_log_weight, self.id = rows, log_weight, own_log_weight, id


class ContrastiveStats(NamedTuple):
    """By-products of a loss, without gradient and without a second pass over the pairs.

    `lse` (N,) logsumexp of each row's logits; `accuracy` share of rows whose positive is more similar than every
    negative; `positive_similarity`, `negative_similarity` means over positives and over unmasked negatives;
    `masked_share` of negative pairs left out by ids; `hardest_similarity` (N,) and `hardest_index` (N,) int64: the
    most similar unmasked negative within `candidate`, ties to the lowest index; -inf and -1 where a row has none.
    """

    lse: Tensor
    accuracy: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    masked_share: Tensor
    hardest_similarity: Tensor
    hardest_index: Tensor


class LossAndStats(NamedTuple):
    """What a loss returns with `return_stats=True`."""

    loss: Tensor
    stats: ContrastiveStats


class Call(NamedTuple):
    """The arguments of a public loss, all but the anchors and candidates."""

    transform: LogitTransform
    margin: float
    negatives: Tensor | CandidateBlock | Sequence | None
    temperature: float | Tensor
    symmetric: bool
    anchor_id: Tensor | None
    candidate_id: Tensor | None
    normalize: bool
    reduction: str
    return_stats: bool
    max_workspace_bytes: int | None
    backend: str | None


class Elsewhere(ABC):
    """Candidates that are not here: given in their place, it makes the loss itself, as a ring of processes does."""

    @abstractmethod
    def contrast(self, anchor: Tensor, positive: Tensor | None, call: Call) -> Tensor | LossAndStats:
        """The loss of these anchors."""


def contrastive_loss(
    anchor: Tensor, candidate: Tensor | Elsewhere, positive: Tensor | None, call: Call
) -> Tensor | LossAndStats:
    """Checks, chooses the backend and runs the loss; the public losses say what each argument means."""
    if isinstance(candidate, Elsewhere):
        return candidate.contrast(anchor, positive, call)
    blocks = [CandidateBlock(candidate, id=call.candidate_id), *as_blocks(call.negatives)]
    check_call(anchor, blocks, positive, call)
    pairs = anchor.shape[0] * sum(b.rows.shape[0] for b in blocks)
    chosen = choose_backend(anchor, call.backend)
    if chosen == "reference":
        record(chosen)
        loss, by_products = _reference(anchor, blocks, positive, call)
    else:
        loss, by_products = _fused(anchor, blocks, positive, call, chosen)
    if not call.return_stats:
        return loss
    return LossAndStats(loss, summary(by_products, pairs - anchor.shape[0]))


def as_blocks(negatives: Tensor | CandidateBlock | Sequence | None) -> list[CandidateBlock]:
    """What callers may pass as negatives, as blocks."""
    if negatives is None:
        return []
    given = negatives if isinstance(negatives, Sequence) else [negatives]
    return [b if isinstance(b, CandidateBlock) else CandidateBlock(b) for b in given]


def check_call(anchor: Tensor, blocks: list[CandidateBlock], positive: Tensor | None, call: Call) -> None:
    """The checks of all softmax losses; the first block holds the positives."""
    checks.check_rows("anchor", anchor)
    for k, block in enumerate(blocks):
        name = "candidate" if k == 0 else "negatives" if len(blocks) == 2 else f"negatives[{k - 1}]"
        _check_block(name, "candidate_id" if k == 0 else f"{name}.id", block, anchor, call.anchor_id)
    if call.anchor_id is not None:
        checks.check_vector("anchor_id", call.anchor_id, anchor.shape[0], "anchor", anchor)
        if all(b.id is None for b in blocks):
            raise ValueError("anchor_id needs candidate_id, or negatives with an id, to compare with; got none")
    checks.check_positive(positive, anchor, blocks[0].rows)
    checks.check_temperature(call.temperature)
    checks.check_finite("margin", call.margin)
    checks.check_choice("reduction", call.reduction, REDUCTIONS)
    if call.max_workspace_bytes is not None:
        checks.check_above_zero("max_workspace_bytes", call.max_workspace_bytes)


def _check_block(name: str, id_name: str, block: CandidateBlock, anchor: Tensor, anchor_id: Tensor | None) -> None:
    checks.check_same_kind(name, block.rows, "anchor", anchor)
    m = block.rows.shape[0]
    if block.id is not None:
        checks.check_vector(id_name, block.id, m, name, anchor)
        if anchor_id is None:
            raise ValueError(f"{id_name} needs anchor_id to compare with, got anchor_id=None")
    if block.log_weight is not None:
        checks.check_vector(f"{name}.log_weight", block.log_weight, m, name, anchor, dtype=None)
    checks.check_finite(f"{name}.own_log_weight", block.own_log_weight)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def _reference(
    anchor: Tensor, blocks: list[CandidateBlock], positive: Tensor | None, call: Call
) -> tuple[Tensor, dict[str, Tensor]]:
    checks.check_index("positive", positive, blocks[0].rows.shape[0], "candidate")
    positive = torch.arange(anchor.shape[0], device=anchor.device) if positive is None else positive
    inv_temperature = 1.0 / call.temperature
    if isinstance(inv_temperature, Tensor):
        inv_temperature = inv_temperature.reshape(())
    losses, stats = reference.loss_rows(
        anchor, blocks, positive, call.anchor_id, call.transform, float(call.margin), inv_temperature, call.normalize,
        call.symmetric,
    )  # fmt: skip
    return _reduce(losses, call.reduction), stats


def _fused(
    anchor: Tensor, blocks: list[CandidateBlock], positive: Tensor | None, call: Call, chosen: str
) -> tuple[Tensor, dict[str, Tensor]]:
    learned = isinstance(call.temperature, Tensor)
    inv_temperature = call.temperature.float().reciprocal().reshape(()) if learned else None
    rows = [b.rows for b in blocks]
    inputs = (anchor, *rows) if inv_temperature is None else (anchor, inv_temperature, *rows)
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    sweep = Sweep(
        anchor, rows, [b.log_weight for b in blocks], [b.id for b in blocks], [float(b.own_log_weight) for b in blocks],
        positive, call.anchor_id, inv_temperature, 0.0 if learned else float(call.temperature), call.transform.name,
        float(call.margin), call.normalize, [gradients and x.requires_grad for x in rows], call.return_stats,
        call.max_workspace_bytes, chosen,
    )  # fmt: skip
    # One upstream gradient for all rows, known only as a factor: the gradients can be made on the way.
    if call.reduction != "none" and gradients:
        loss, *by_products = eager.total(sweep, call.symmetric, call.reduction == "mean")
    else:
        losses, *by_products = eager.rows(sweep, call.symmetric)
        loss = _reduce(losses, call.reduction)
    return loss, {name: value.detach() for name, value in zip(STATS, by_products)} if call.return_stats else {}


def summary(s: dict[str, Tensor], pairs: int) -> ContrastiveStats:
    """Row values into the numbers that a log shows. `pairs` is the number of (anchor, negative) pairs, masked ones
    included.
    """
    count = s["count"].sum(dtype=torch.float64)
    return ContrastiveStats(
        lse=s["lse"],
        accuracy=(s["positive_similarity"] > s["hardest_overall"]).float().mean(),
        positive_similarity=s["positive_similarity"].mean(),
        negative_similarity=(s["similarity_sum"].sum(dtype=torch.float64) / count.clamp_min(1)).float(),
        masked_share=(1 - count / max(pairs, 1)).float() if pairs else count.float() * 0,
        hardest_similarity=s["hardest"],
        hardest_index=s["hardest_col"],
    )
