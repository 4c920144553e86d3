"""The queue of a run, filled by an encoder that follows the trained one, and kept beside the checkpoints."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import _create_minibatch, _minibatch_ranges
from torch import Tensor
from transformers import TrainerCallback

from ..distributed import Exchange
from ..evaluation.files import InputError
from ..losses.contrastive import CandidateBlock
from ..modules.queue import NegativeQueue
from .kept import KeptByStep
from .momentum import MomentumEncoder
from .processes import Processes

NAME = "queue"


class KeyQueue(TrainerCallback):
    """Rows of past batches as negatives: those that the following encoder made of each batch's second view.

    All processes push everybody's rows, and so hold the same queue.
    """

    def __init__(
        self, model: SentenceTransformer, size: int, rate: float, output_dir: str, processes: Processes,
        mini_batch_size: int | None = None,
    ):  # fmt: skip
        self.encoder = MomentumEncoder(model, rate)
        self.rows = NegativeQueue(size, model.get_embedding_dimension(), device=model.device)
        self.kept, self.processes, self.mini_batch_size = KeptByStep(output_dir, NAME), processes, mini_batch_size

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

    def restore(self, checkpoint: Path | None) -> None:
        """Go on with the queue of a checkpoint, or begin."""
        if checkpoint is None:
            if self.processes.is_first:
                self.kept.begin()
            return self.save(0)
        path = self.kept.before(checkpoint)
        try:
            state = torch.load(path, weights_only=True)
            self.encoder.load_state_dict(state["encoder"])
            self.rows.load_state_dict(state["rows"])
        except (OSError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"--resume cannot read {str(path)!r}: {reason}") from None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.encoder.update(getattr(model, "module", model))
        # Before the checkpoint: one that a kill leaves behind has its queue.
        if control.should_save:
            self.save(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        if self.processes.is_first:
            self.kept.prune()

    def save(self, step: int) -> None:
        """The queue and its encoder as they are after `step`; all processes hold the same."""
        if not self.processes.is_first:
            return
        target = self.kept.at(step)
        part = target.with_name(f".{target.name}.part")
        torch.save({"encoder": self.encoder.state_dict(), "rows": self.rows.state_dict()}, part)
        os.replace(part, target)
