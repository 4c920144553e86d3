"""Any fastcse loss over the batch of all ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..losses.clusterns import clusterns_loss
from ..losses.contrastive import CandidateBlock, LossAndStats, as_blocks, check_blocks
from ..losses.hsimcse import QUADRUPLET_WEIGHT, hsimcse_loss
from ..losses.infonce import infonce_loss
from ..losses.sscl import sscl_loss
from ..ops import checks
from .collectives import RaggedGather, average_gradient
from .ring import RingCandidates

GRADIENT_SCALES = ("exact", "simcse")


class RankArguments(NamedTuple):
    """The arguments of one rank: `ids` are those of anchors and candidates, `options` the loss's own."""

    kind: Callable
    anchor: Tensor
    candidate: Tensor
    more: tuple
    blocks: list[CandidateBlock]
    replicated: list[CandidateBlock]
    ids: tuple[Tensor | None, Tensor | None]
    options: dict[str, Any]

    def fingerprint(self, **more: Any) -> dict[str, Any]:
        """By name, what must be the same on all ranks."""
        rows, graph = [self.anchor, self.candidate, *(b.rows for b in self.blocks)], torch.is_grad_enabled()
        plain = {k: v for k, v in self.options.items() if isinstance(v, bool | int | float | str | tuple | None)}
        return {
            "the loss": getattr(self.kind, "__name__", str(self.kind)),
            "what requires a gradient": [graph and x.requires_grad for x in rows],
            "what blocks have": [(b.log_weight is not None, b.id is not None, b.own_log_weight) for b in self.blocks],
            "what else is given": [isinstance(x, Tensor) and str(x.dtype) for x in self.more],
            "the number of replicated blocks": len(self.replicated),
            "which ids are given": [x is not None for x in self.ids],
            "which options are tensors": sorted(self.options.keys() - plain.keys()),
            **more,
            **{name: plain[name] for name in sorted(plain)},
        }

    def check(self, fingerprint: dict[str, Any]) -> None:
        """A ValueError for what this rank can know to be wrong before it meets the others."""
        anchor, candidate = self.anchor, self.candidate
        checks.check_choice("gradient_scale", fingerprint["gradient_scale"], GRADIENT_SCALES)
        if self.options.get("reduction", "mean") != "mean":
            raise ValueError(f"reduction must be 'mean' over several ranks, got {self.options['reduction']!r}")
        if fingerprint["max_gathered_bytes"] is not None:
            checks.check_above_zero("max_gathered_bytes", fingerprint["max_gathered_bytes"])
        if fingerprint["symmetric"] and self.kind in (clusterns_loss, sscl_loss):
            raise ValueError(f"{self.kind.__name__} has no symmetric form, got symmetric=True")
        checks.check_temperature(self.options.get("temperature", 1.0))
        checks.check_rows("anchor", anchor)
        checks.check_same_kind("candidate", candidate, "anchor", anchor)
        if candidate.shape != anchor.shape:
            shapes = f"{candidate.shape[0]} and {anchor.shape[0]}"
            raise ValueError(f"candidate and anchor must have as many rows, got {shapes}")
        if self.more and isinstance(self.more[0], Tensor) and len(self.more[0]) != len(anchor):
            given = f"{tuple(self.more[0].shape)} for {len(anchor)} anchors"
            raise ValueError(f"what follows candidate must have a row for each anchor, got {given}")
        for k, block in enumerate(self.blocks):
            if block.own_log_weight != 0 and len(block.rows) < len(anchor):
                raise ValueError(f"negatives[{k}] with an own_log_weight must have a row for each of the {len(anchor)} "
                                 f"anchors, got {len(block.rows)}")  # fmt: skip
        if self.kind is not sscl_loss:  # whose rows are wider than those of its blocks may be
            blocks = [CandidateBlock(candidate, id=self.ids[1]), *self.blocks, *self.replicated]
            check_blocks(anchor, blocks, None, self.ids[0])


WHOLE = (hsimcse_loss, clusterns_loss, sscl_loss)  # need everybody's rows for more than the softmax


def gathered_loss(
    loss: Callable,
    anchor: Tensor,
    candidate: Tensor,
    *more: Tensor,
    negatives: Tensor | CandidateBlock | list | None = None,
    replicated: list[CandidateBlock] | None = None,
    temperature: float | Tensor | None = None,
    anchor_id: Tensor | None = None,
    candidate_id: Tensor | None = None,
    symmetric: bool = False,
    return_stats: bool = False,
    gradient_scale: str = "exact",
    max_gathered_bytes: int | None = None,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> Tensor | LossAndStats:
    r"""A loss of this rank's anchors against the candidates of all ranks of a process group.

        loss_r = (n_r W / N) mean over this rank's n_r anchors of loss(anchor_i; all N candidates)

    The mean of loss_r over the W ranks is the loss of the whole batch in one process, and so are the gradients that a
    data-parallel wrapper averages, for every loss of fastcse: candidates, and what else a loss needs of other ranks,
    are gathered with their gradients. Without a process group, or alone in it, this is `loss` itself.

    Collective: all ranks of the group call it, as often, and each calls backward.

    Args:
        loss:      `infonce_loss`, `focal_infonce_loss`, `hsimcse_loss`, `clusterns_loss`, or another function with
                   their arguments.
        anchor:    (n_r, D) this rank's anchors; n_r may differ between ranks.
        candidate: (n_r, D) candidate i is anchor i's positive.
        more:      what the loss takes besides, for this rank's anchors: corpus negatives (n_r, D) of `hsimcse_loss`;
                   index (n_r,), centroids, counts of `clusterns_loss`, the last two being those of the whole batch.
        negatives: blocks of this rank. Rows of every rank are negatives of all anchors; with an `own_log_weight`, row i
                   is anchor i's own. What every rank holds alike, as a queue, goes into `replicated` instead.
        replicated: blocks that are the same on all ranks, which are not gathered; constants.
        temperature, symmetric, anchor_id, candidate_id, return_stats: of the loss. A learned temperature's gradient is
                   the mean of the ranks'. Ids are of the whole batch, and statistics are of this rank's anchors:
                   `hardest_index` counts all candidates, rank 0's first.
        gradient_scale: "exact"; or "simcse": gradients 1 / W as large, as in multi-GPU runs of SimCSE's released code.
        max_gathered_bytes: where the candidates and negatives of all ranks would take more, they travel from rank to
                   rank in a ring instead of standing whole on each: the same result, in memory that does not depend on
                   the number of ranks, for 8 instead of 6 N M D operations. For losses that are a softmax and nothing
                   else; None never does.
        group:     a process group, or None for the default one.
        options:   the loss's own, such as margin; its reduction is the mean.

    Returns:
        float32 scalar (float64 for float64 input), differentiable in everything the loss is.

    Raises:
        ValueError: on every rank, if they bring tensors of different number, width or type; or what the loss refuses.

    Numerics: gradients of half-precision rows are summed over ranks in float32.

    Source: the scaling follows sentence-transformers and open_clip (local loss, gather with gradient); SimCSE's is
    simcse/models.py of github.com/princeton-nlp/SimCSE.

    Example:
        >>> from fastcse import infonce_loss
        >>> z = torch.eye(3, 8)
        >>> (gathered_loss(infonce_loss, z, z) == infonce_loss(z, z)).item()
        True
    """
    if "everywhere" in options or "parity" in options:
        warnings.warn(
            "everywhere and parity of gathered_loss are called replicated and gradient_scale", DeprecationWarning, 2
        )
        replicated = options.pop("everywhere", replicated)
        gradient_scale = options.pop("parity", gradient_scale)
    if isinstance(loss, partial) and not loss.args:
        loss, options = loss.func, {**loss.keywords, **options}
    if temperature is not None:
        options["temperature"] = temperature
    blocks, ids = as_blocks(negatives), (anchor_id, candidate_id)
    part = RankArguments(loss, anchor, candidate, more, blocks, replicated or [], ids, dict(options))
    fingerprint = part.fingerprint(
        symmetric=symmetric, gradient_scale=gradient_scale, max_gathered_bytes=max_gathered_bytes
    )
    exchange = RaggedGather.of(
        [anchor, *(block.rows for block in blocks)], group, alike=fingerprint, check=lambda: part.check(fingerprint)
    )  # fmt: skip
    options.pop("reduction", None)
    if isinstance(options.get("temperature"), Tensor):
        options["temperature"] = average_gradient(options["temperature"], group)
    ring = _is_too_large(exchange, [anchor, *(block.rows for block in blocks)], max_gathered_bytes)
    if ring and (more or loss in WHOLE):
        raise ValueError(f"max_gathered_bytes of {max_gathered_bytes} is less than the candidates of all ranks take, "
                         f"and {loss.__name__} needs them whole")  # fmt: skip
    batch = _Batch(exchange, anchor, candidate, blocks, replicated or [], anchor_id, candidate_id, ring)
    if symmetric:
        made = _both_directions(loss, batch, more, return_stats, options)
    else:
        made = batch.rows(loss, more, return_stats, options)
    value = _scaled(made.loss if return_stats else made, exchange, gradient_scale)
    return LossAndStats(value, made.stats) if return_stats else value


@dataclass
class _Batch:
    """This rank's part of the batch, and the way to everybody's."""

    exchange: RaggedGather
    anchor: Tensor
    candidate: Tensor
    blocks: list[CandidateBlock]
    replicated: list[CandidateBlock]
    anchor_id: Tensor | None
    candidate_id: Tensor | None
    ring: bool

    @property
    def positive(self) -> Tensor:
        """(n_r,) where this rank's rows stand among those of all ranks."""
        first = self.exchange.offset(0)
        return torch.arange(first, first + len(self.anchor), device=self.anchor.device)

    def gather(self, x: Tensor | None) -> Tensor | None:
        """Everybody's rows of what goes with the anchors."""
        return None if x is None else self.exchange.gather(x, 0)

    def rows(self, loss: Callable, more: tuple, return_stats: bool, options: dict) -> Tensor | LossAndStats:
        """The loss of this rank's anchors among all candidates."""
        if self.ring:
            return self._ring_loss(self.anchor, self.candidate, self.anchor_id, self.candidate_id, loss, self.blocks,
                               self.replicated, return_stats=return_stats, **options)  # fmt: skip
        more, extra = _whole(loss, self, more)
        return loss(
            self.anchor, self.gather(self.candidate), *more, positive=self.positive,
            negatives=[*map(self._block, range(len(self.blocks))), *self.replicated] or None, return_stats=return_stats,
            **self._ids(self.anchor_id, self.candidate_id), **extra, **options,
        )  # fmt: skip

    def columns(self, loss: Callable, options: dict) -> Tensor:
        """The loss of this rank's candidates among all anchors."""
        if self.ring:
            ids = (None, None) if self.candidate_id is None else (self.candidate_id, self.anchor_id)
            return self._ring_loss(self.candidate, self.anchor, *ids, loss, [], [], **options)
        return loss(
            self.candidate, self.gather(self.anchor), positive=self.positive,
            **(self._ids(self.candidate_id, self.anchor_id) if self.candidate_id is not None else {}), **options,
        )  # fmt: skip

    def _ring_loss(
        self, rows: Tensor, others: Tensor, id: Tensor | None, other_id: Tensor | None, loss: Callable,
        blocks: list[CandidateBlock], replicated: list[CandidateBlock], **options: Any,
    ) -> Tensor | LossAndStats:  # fmt: skip
        """The loss of rows among others that travel."""
        ids = {} if id is None and other_id is None else {"anchor_id": id, "candidate_id": other_id}
        source = RingCandidates(self.exchange, others, replicated)
        return loss(rows, source, negatives=blocks or None, **ids, **options)

    def _ids(self, own: Tensor | None, other: Tensor | None) -> dict[str, Tensor]:
        if own is None and other is None:
            return {}
        return {"anchor_id": own, "candidate_id": self.gather(other)}

    def _block(self, k: int) -> CandidateBlock:
        block = self.blocks[k]
        # A weight of one's own is by place: this rank's rows come first, so that row i is still anchor i's.
        own_first = block.own_log_weight != 0

        def gather(x: Tensor | None) -> Tensor | None:
            return None if x is None else self.exchange.gather(x, k + 1, own_first=own_first)

        return CandidateBlock(
            gather(block.rows), log_weight=gather(block.log_weight), own_log_weight=block.own_log_weight,
            id=gather(block.id),
        )  # fmt: skip


def _whole(loss: Callable, batch: _Batch, more: tuple) -> tuple[tuple, dict[str, Tensor]]:
    """What a loss needs of the other ranks besides candidates."""
    if loss is hsimcse_loss:
        return more, {"all_anchor": batch.gather(batch.anchor.detach()), "anchor_index": batch.positive}
    if loss is sscl_loss:
        return more, {"all_anchor": batch.gather(batch.anchor)}
    if loss is clusterns_loss and more and more[0] is not None:
        return more, {"candidate_index": batch.gather(more[0])}
    return more, {}


def _both_directions(
    loss: Callable, batch: _Batch, more: tuple, return_stats: bool, options: dict
) -> Tensor | LossAndStats:
    """Half of the row direction and half of the column direction. What hsimcse adds to the rows is not halved."""
    contrast, plain = loss, options
    if loss is hsimcse_loss:
        contrast = infonce_loss
        plain = {name: value for name, value in options.items() if name in ("temperature", "backend")}
        options = {**options, "quadruplet_weight": 2 * options.get("quadruplet_weight", QUADRUPLET_WEIGHT)}
    made = batch.rows(loss, more, return_stats, options)
    columns = batch.columns(contrast, plain)
    if not return_stats:
        return (made + columns) / 2
    return LossAndStats((made.loss + columns) / 2, made.stats)


def _is_too_large(exchange: RaggedGather, tensors: list[Tensor], limit: int | None) -> bool:
    """Whether all ranks' candidates and blocks would take more than `limit` bytes."""
    if limit is None or exchange.ranks == 1:
        return False
    sizes = [x.shape[1] * x.element_size() for x in tensors]
    return sum(sum(exchange.rows(k)) * size for k, size in enumerate(sizes)) > limit


def _scaled(value: Tensor, exchange: RaggedGather, gradient_scale: str) -> Tensor:
    share = exchange.share(0)
    if share != 1:
        value = value * share
    if gradient_scale == "simcse" and exchange.ranks > 1:
        # The value stays, and so does what is logged.
        value = value / exchange.ranks + value.detach() * (1 - 1 / exchange.ranks)
    return value
