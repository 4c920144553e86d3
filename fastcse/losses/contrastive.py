"""What all softmax losses share: batch, options and statistics, their checks, and the choice of the op."""

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

    `parts` holds the scalars of a loss with more terms than the softmax, by names that its docstring lists; each is an
    attribute too: `stats.infonce` is `stats.parts["infonce"]`.
    """

    lse: Tensor
    accuracy: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    masked_share: Tensor
    hardest_similarity: Tensor
    hardest_index: Tensor
    parts: dict[str, Tensor]

    def scalars(self) -> dict[str, Tensor]:
        """All 0-dim values by name, parts among them."""
        values = {name: value for name, value in zip(self._fields, self[:-1]) if value.ndim == 0}
        return {**values, **self.parts}

    def __getattr__(self, name: str) -> Tensor:
        parts = self[-1] if self else {}  # torch.compile looks attributes up on an empty instance
        if name in parts:
            return parts[name]
        raise AttributeError(f"these statistics have {(*self._fields, *parts)}, not {name!r}")


class LossAndStats(NamedTuple):
    """What a loss returns with `return_stats=True`."""

    loss: Tensor
    stats: ContrastiveStats


class Batch(NamedTuple):
    """The tensors of a softmax loss, as its public function has them."""

    anchor: Tensor
    candidate: Tensor | CandidateSource
    positive: Tensor | None = None
    negatives: Tensor | CandidateBlock | Sequence | None = None
    anchor_id: Tensor | None = None
    candidate_id: Tensor | None = None


class LossOptions(NamedTuple):
    """The options of a softmax loss, as its public function has them."""

    transform: LogitTransform
    margin: float = 0.0
    temperature: float | Tensor = 0.05
    symmetric: bool = False
    normalize: bool = True
    reduction: str = "mean"
    return_stats: bool = False
    max_workspace_bytes: int | None = None
    backend: str | None = None


class CandidateSource(ABC):
    """Candidates of which no process holds all: passed as `candidate`, it computes the loss itself."""

    @abstractmethod
    def loss(self, batch: Batch, options: LossOptions) -> Tensor | LossAndStats:
        """The loss of the batch's anchors."""


def contrastive_loss(batch: Batch, options: LossOptions) -> Tensor | LossAndStats:
    """Checks the arguments, chooses the backend and runs the loss; the public losses document each argument."""
    if isinstance(batch.candidate, CandidateSource):
        return batch.candidate.loss(batch, options)
    anchor = batch.anchor
    blocks = [CandidateBlock(batch.candidate, id=batch.candidate_id), *as_blocks(batch.negatives)]
    check_blocks(anchor, blocks, batch.positive, batch.anchor_id)
    check_options(options)
    chosen = choose_backend(anchor, options.backend)
    compute = _reference if chosen == "reference" else _fused
    loss, by_products = compute(batch, blocks, options, chosen)
    if not options.return_stats:
        return loss
    pairs = anchor.shape[0] * (sum(b.rows.shape[0] for b in blocks) - 1)
    return LossAndStats(loss, summary(by_products, pairs))


def as_blocks(negatives: Tensor | CandidateBlock | Sequence | None) -> list[CandidateBlock]:
    """The `negatives` of a public loss as blocks."""
    if negatives is None:
        return []
    given = negatives if isinstance(negatives, Sequence) else [negatives]
    return [b if isinstance(b, CandidateBlock) else CandidateBlock(b) for b in given]


def check_options(options: LossOptions) -> None:
    """Temperature, margin, reduction and workspace."""
    checks.check_temperature(options.temperature)
    checks.check_finite("margin", options.margin)
    checks.check_choice("reduction", options.reduction, REDUCTIONS)
    if options.max_workspace_bytes is not None:
        checks.check_above_zero("max_workspace_bytes", options.max_workspace_bytes)


def check_blocks(
    anchor: Tensor, blocks: list[CandidateBlock], positive: Tensor | None, anchor_id: Tensor | None
) -> None:
    """Shapes, dtypes and devices of a batch; the first block holds the positives."""
    checks.check_rows("anchor", anchor)
    for k, block in enumerate(blocks):
        name = "candidate" if k == 0 else "negatives" if len(blocks) == 2 else f"negatives[{k - 1}]"
        _check_block(name, "candidate_id" if k == 0 else f"{name}.id", block, anchor, anchor_id)
    if anchor_id is not None:
        checks.check_vector("anchor_id", anchor_id, anchor.shape[0], "anchor", anchor)
        if all(b.id is None for b in blocks):
            raise ValueError("anchor_id needs candidate_id, or negatives with an id, to compare with; got none")
    checks.check_positive(positive, anchor, blocks[0].rows)


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


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """(N,) losses, or their sum or mean."""
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def mean_of(loss: Tensor, reduction: str, rows: int) -> Tensor:
    """The mean over the rows of a loss that is reduced already, for statistics."""
    return loss.detach() / rows if reduction == "sum" else loss.detach().mean()


def _reference(
    batch: Batch, blocks: list[CandidateBlock], o: LossOptions, backend: str
) -> tuple[Tensor, dict[str, Tensor]]:
    record(backend)
    checks.check_index("positive", batch.positive, blocks[0].rows.shape[0], "candidate")
    n, positive = batch.anchor.shape[0], batch.positive
    positive = torch.arange(n, device=batch.anchor.device) if positive is None else positive
    inverse = 1.0 / (o.temperature.reshape(()) if isinstance(o.temperature, Tensor) else o.temperature)
    losses, stats = reference.loss_rows(
        batch.anchor, blocks, positive, batch.anchor_id, o.transform, float(o.margin), inverse, o.normalize, o.symmetric
    )
    return reduced(losses, o.reduction), stats


def _fused(
    batch: Batch, blocks: list[CandidateBlock], o: LossOptions, backend: str
) -> tuple[Tensor, dict[str, Tensor]]:
    learned = isinstance(o.temperature, Tensor)
    inv_temperature = o.temperature.float().reciprocal().reshape(()) if learned else None
    rows = [b.rows for b in blocks]
    inputs = [batch.anchor, *rows, *([inv_temperature] if learned else [])]
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    sweep = Sweep(
        batch.anchor, rows, [b.log_weight for b in blocks], [b.id for b in blocks],
        [float(b.own_log_weight) for b in blocks], batch.positive, batch.anchor_id, inv_temperature,
        0.0 if learned else float(o.temperature), o.transform.name, float(o.margin), o.normalize,
        [gradients and x.requires_grad for x in rows], o.return_stats, o.max_workspace_bytes, backend,
    )  # fmt: skip
    # One upstream gradient for all rows, known only as a factor: the gradients can be made in the forward pass.
    if o.reduction != "none" and gradients:
        loss, *by_products = eager.total(sweep, o.symmetric, o.reduction == "mean")
    else:
        losses, *by_products = eager.rows(sweep, o.symmetric)
        loss = reduced(losses, o.reduction)
    return loss, {name: value.detach() for name, value in zip(STATS, by_products)} if o.return_stats else {}


def summary(s: dict[str, Tensor], pairs: int) -> ContrastiveStats:
    """The statistics of a call, from its values by row; `pairs` counts the (anchor, negative) pairs, masked ones
    included."""
    count = s["count"].sum(dtype=torch.float64)
    return ContrastiveStats(
        lse=s["lse"],
        accuracy=(s["positive_similarity"] > s["hardest_overall"]).float().mean(),
        positive_similarity=s["positive_similarity"].mean(),
        negative_similarity=(s["similarity_sum"].sum(dtype=torch.float64) / count.clamp_min(1)).float(),
        masked_share=(1 - count / max(pairs, 1)).float() if pairs else count.float() * 0,
        hardest_similarity=s["hardest"],
        hardest_index=s["hardest_col"],
        parts={},
    )
