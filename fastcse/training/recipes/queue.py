"""The queue of a run, filled by an encoder that follows the trained one, and kept beside the checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import _create_minibatch, _minibatch_ranges
from torch import Tensor

from ...distributed import Exchange
from ...losses.contrastive import CandidateBlock
from ...modules.queue import NegativeQueue
from ..kept_state import KeptState
from ..processes import Processes
from .momentum import MomentumEncoder


class KeyQueue(KeptState):
    """Rows of past batches as negatives: those that the following encoder made of each batch's second view.

    All processes push everybody's rows, and so hold the same queue.
    """

    def __init__(
        self, model: SentenceTransformer, size: int, rate: float, output_dir: str, processes: Processes,
        mini_batch_size: int | None = None,
    ):  # fmt: skip
        super().__init__("queue", output_dir, processes)
        self.encoder = MomentumEncoder(model, rate)
        self.rows = NegativeQueue(size, model.get_embedding_dimension(), device=model.device)
        self.mini_batch_size = mini_batch_size

    def block(self, dtype: torch.dtype) -> list[CandidateBlock]:
        """What the queue holds, as blocks of negatives."""
        block = self.rows.block(dtype)
        return [] if block is None else [block]

    @torch.no_grad()
    def push(self, features: dict[str, Any]) -> None:
        """The rows of a tokenized column into the queue."""
        self.encoder.train()
        ranges = _minibatch_ranges(features, self.mini_batch_size or len(features["input_ids"]))
        rows = torch.cat([self._embedded(_create_minibatch(features, *cut)) for cut in ranges])
        self.rows.push(Exchange.of([rows]).gather(rows, 0))

    def _embedded(self, features: dict[str, Any]) -> Tensor:
        return self.encoder(dict(features))["sentence_embedding"].float()

    def state_dict(self) -> dict[str, Any]:
        return {"encoder": self.encoder.state_dict(), "rows": self.rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.encoder.load_state_dict(state["encoder"])
        self.rows.load_state_dict(state["rows"])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.encoder.update(getattr(model, "module", model))
        super().on_step_end(args, state, control, model=model, **kwargs)
