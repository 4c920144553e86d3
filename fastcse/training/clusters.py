"""ClusterNS's clustering of a run, kept beside the checkpoints."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch
from transformers import TrainerCallback

from ..clustering.online import OnlineKMeans
from ..evaluation.files import InputError
from .kept import KeptByStep
from .processes import Processes

NAME = "clusters"


class ClusterUpkeep(TrainerCallback):
    """Saves the clustering before each checkpoint."""

    def __init__(self, clusters: OnlineKMeans, output_dir: str, processes: Processes):
        self.clusters, self.kept, self.processes = clusters, KeptByStep(output_dir, NAME), processes

    def restore(self, checkpoint: Path | None) -> None:
        """Go on with the clustering of a checkpoint, or begin."""
        if checkpoint is None:
            if self.processes.is_first:
                self.kept.begin()
            return self.save(0)
        path = self.kept.before(checkpoint)
        try:
            self.clusters.load_state_dict(torch.load(path, weights_only=True))
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"--resume cannot read {str(path)!r}: {reason}") from None

    def on_step_end(self, args, state, control, **kwargs):
        # Before the checkpoint: one that a kill leaves behind has its clustering.
        if control.should_save:
            self.save(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        if self.processes.is_first:
            self.kept.prune()

    def save(self, step: int) -> None:
        """The clustering as it is after `step`; all processes hold the same."""
        if not self.processes.is_first:
            return
        target = self.kept.at(step)
        part = target.with_name(f".{target.name}.part")
        torch.save(self.clusters.state_dict(), part)
        os.replace(part, target)
