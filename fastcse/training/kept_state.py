"""State of a run that is one file beside each checkpoint."""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..errors import InputError
from .kept import KeptByStep
from .processes import Processes


class KeptState(TrainerCallback, ABC):
    """Saves a state before each checkpoint, and takes up that of the checkpoint that a run goes on from.

    All processes hold the same state; the first writes it. What has it says so by `state_dict` and `load_state_dict`.
    """

    def __init__(self, name: str, output_dir: str, processes: Processes):
        self.kept, self.processes = KeptByStep(output_dir, name), processes

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What is written."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what was written."""

    def restore(self, checkpoint: Path | None) -> None:
        """Go on with the state of a checkpoint, or begin.

        Raises:
            InputError: it is not there or not whole.
        """
        if checkpoint is None:
            if self.processes.is_first:
                self.kept.begin()
            return self.save(0)
        path = self.kept.before(checkpoint)
        try:
            self.load_state_dict(torch.load(path, weights_only=True))
        except (OSError, EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"--resume cannot read {str(path)!r}: {reason}") from None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        # Before the checkpoint: one that a kill leaves behind has its state.
        if control.should_save:
            self.save(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        if self.processes.is_first:
            self.kept.prune()

    def save(self, step: int) -> None:
        """The state as it is after `step`."""
        if not self.processes.is_first:
            return
        target = self.kept.at(step)
        part = target.with_name(f".{target.name}.part")
        torch.save(self.state_dict(), part)
        os.replace(part, target)
