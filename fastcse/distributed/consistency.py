"""Arguments compared across ranks, so that no message of one waits for a partner that never sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..losses.clusterns import clusterns_loss
from ..losses.contrastive import CandidateBlock, check_blocks
from ..losses.sscl import sscl_loss
from ..ops import checks

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
