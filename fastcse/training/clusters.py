"""ClusterNS's clustering of a run: its options, and its state beside the checkpoints."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..clustering.online import MODES, REDUCES, OnlineKMeans
from ..clustering.online_start import STARTS
from ..evaluation.files import InputError
from .kept import KeptByStep

NAME = "clusters"
MOST_CLUSTERS = 128  # of the released settings, with batches of 256 and more


@dataclass(frozen=True)
class ClusterOptions:
    """The options of `OnlineKMeans`, under the names of the command line. `clusters=None` is 128, or half of a smaller
    batch.

    Raises:
        InputError: an option outside its range, named with the value that came.
    """

    clusters: int | None = None
    cluster_mode: str = "momentum"
    cluster_rate: float = 1e-3
    centroid_reduce: str = "sum"
    cluster_start: str = "chain"
    cluster_threshold: float = 0.4

    @classmethod
    def of(cls, given: dict[str, Any], batch_size: int) -> ClusterOptions:
        """Those of `given` that are not None, the rest by default, checked."""
        chosen = {name: value for name, value in given.items() if value is not None}
        options = cls(**{"clusters": min(MOST_CLUSTERS, max(2, batch_size // 2)), **chosen})
        if not 2 <= options.clusters <= batch_size:
            raise InputError(f"--clusters is {options.clusters}: expected 2 to the {batch_size} of --batch-size")
        for name, known in (("cluster_mode", MODES), ("centroid_reduce", REDUCES), ("cluster_start", STARTS)):
            value = getattr(options, name)
            if value not in known:
                raise InputError(f"--{name.replace('_', '-')} {value!r} is unknown: expected {' or '.join(known)}")
        try:
            options.make(1, None)
        except ValueError as error:
            raise InputError(f"--cluster-rate {options.cluster_rate}, --cluster-threshold "
                             f"{options.cluster_threshold}: {error}") from None  # fmt: skip
        return options

    def make(self, dim: int, seed: int | None, backend: str | None = None) -> OnlineKMeans:
        """The clustering, not started yet."""
        return OnlineKMeans(
            self.clusters, dim, mode=self.cluster_mode, rate=self.cluster_rate, centroid_reduce=self.centroid_reduce,
            start=self.cluster_start, threshold=self.cluster_threshold, seed=seed, backend=backend,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class ClusterUpkeep(TrainerCallback):
    """Saves the clustering before each checkpoint."""

    def __init__(self, clusters: OnlineKMeans, output_dir: str):
        self.clusters, self.kept = clusters, KeptByStep(output_dir, NAME)

    def restore(self, checkpoint: Path | None) -> None:
        """Go on with the clustering of a checkpoint, or begin."""
        if checkpoint is None:
            return self.save(0)
        path = self.kept.before(checkpoint)
        try:
            self.clusters.load_state_dict(torch.load(path, weights_only=True))
        except (OSError, EOFError, RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"--resume cannot read {str(path)!r}: {reason}") from None

    def on_step_end(self, args, state, control, **kwargs):
        # Before the checkpoint: one that a kill leaves behind has its clustering.
        if control.should_save:
            self.save(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self.kept.prune()

    def save(self, step: int) -> None:
        """The clustering as it is after `step`."""
        target = self.kept.at(step)
        part = target.with_name(f".{target.name}.part")
        torch.save(self.clusters.state_dict(), part)
        os.replace(part, target)
