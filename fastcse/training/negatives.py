"""What gives a loss more negatives than its batch has: a corpus bank, clusters, a queue."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from ..clustering.online import OnlineKMeans
from .bank import BankCallback, make_bank
from .checkpoints import load_state, save_state
from .options import ClusterOptions, TrainOptions
from .recipes.queue import MomentumQueue

BANK, CLUSTERS, QUEUE = "bank", "clusters.pt", "queue.pt"  # in a checkpoint


class Negatives(NamedTuple):
    """Of a run; None where it has none. With a bank, `dataset` has the column label, of the ids of its texts there."""

    dataset: Dataset
    bank: BankCallback | None
    clusters: OnlineKMeans | None
    queue: MomentumQueue | None
    notes: list[str]

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """What acts after each step."""
        return [one for one in (self.bank, self.queue) if one is not None]

    @property
    def saved_too(self) -> dict[str, Callable[[Path], None]]:
        """What writes their state into a checkpoint, by the name there."""
        bank = {} if self.bank is None else {BANK: self.bank.save}
        states = {CLUSTERS: self.clusters, QUEUE: self.queue}
        return bank | {name: partial(save_state, one) for name, one in states.items() if one is not None}


def make_negatives(
    options: TrainOptions, dataset: Dataset, model: SentenceTransformer, checkpoint: Path | None
) -> Negatives:
    """Those that the objective and the options ask for, as they begin or as they were at a checkpoint.

    Raises:
        InputError: a bank that does not fit, or a checkpoint without their state.
    """
    bank, clusters, queue, notes = None, None, None, []
    if options.bank_options is not None:
        bank = make_bank(dataset, model, options.bank_options, None if checkpoint is None else checkpoint / BANK)
        dataset, missing = bank.label(dataset)
        notes = [f"{missing:,} of {len(dataset):,} training rows are not in the bank"] if missing else []
    if options.cluster_options is not None:
        clusters = _clusters(options, options.cluster_options, model)
    if options.queue:
        queue = MomentumQueue(model, options.queue, options.queue_momentum, options.mini_batch_size)
    if checkpoint is not None:
        for name, part in ((CLUSTERS, clusters), (QUEUE, queue)):
            if part is not None:
                load_state(part, checkpoint / name)
    return Negatives(dataset, bank, clusters, queue, notes)


def _clusters(options: TrainOptions, given: ClusterOptions, model: SentenceTransformer) -> OnlineKMeans:
    return OnlineKMeans(
        given.clusters,
        model.get_embedding_dimension(),
        mode=given.cluster_mode,
        rate=given.cluster_rate,
        centroid_reduce=given.centroid_reduce,
        start=given.cluster_start,
        threshold=given.cluster_threshold,
        seed=options.seed,
        across_ranks=PartialState().num_processes > 1,
        backend=options.backend,
    ).to(model.device)
