"""What gives a loss more negatives than its batch has: a corpus bank (built before the run, refreshed during it, and
saved in its checkpoints), clusters, a queue."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import TrainerCallback

from ..clustering.online import OnlineKMeans
from ..errors import InputError, OptionError
from ..mining.corpus_negatives import CorpusNegatives
from ..retrieval.index import CorpusIndex
from ..retrieval.sharded import ShardedIndex
from .checkpoints import link_folder, load_state, save_state
from .data import read_corpus
from .options import BankOptions, ClusterOptions, TrainOptions
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


def make_bank(
    dataset: Dataset, model: SentenceTransformer, options: BankOptions, folder: Path | None = None
) -> BankCallback:
    """The bank of the distinct texts of `options.bank`, by default those of `dataset`, encoded by `model`. Each process
    holds and encodes its part.

    Args:
        folder: of a checkpoint that is resumed: its bank is read instead.

    Raises:
        InputError: a bank that is smaller than the options ask for, that holds no texts, or was not saved, or was by
            another number of processes.
    """
    encoder = before_head(model) if options.parity else model
    saved = None if folder is None else _own_folder(folder)
    if saved is not None:
        index = _load(saved, "--resume")
    elif options.bank is not None and Path(options.bank).is_dir():
        index = _own_rows(_load(Path(options.bank), "--bank"))
    else:
        index = _encoded(_texts(dataset, options.bank), encoder, options.bank)
    local, ranks = index, PartialState().num_processes
    try:
        negatives = CorpusNegatives(
            ShardedIndex(index) if ranks > 1 else index,
            k=options.neighbours,
            skip=options.skip,
            sample=options.sample,
            max_score=options.max_similarity,
            refresh=options.refresh,
        )
    except ValueError as error:
        raise OptionError("neighbours", f" {options.neighbours}, ", "skip", f" {options.skip}: {error}") from None
    return BankCallback(negatives, local, encoder, saved)


class BankCallback(TrainerCallback):
    """Refreshes a bank when it is due, and saves it.

    `index` is this process's part of the bank that `negatives` searches; `encoder` is in training mode but while it
    encodes; `saved` is the folder of this bank as it is now, or None.
    """

    def __init__(self, negatives: CorpusNegatives, index: CorpusIndex, encoder: nn.Module, saved: Path | None = None):
        self.negatives, self.index, self.encoder, self.saved = negatives, index, encoder, saved

    def label(self, dataset: Dataset) -> tuple[Dataset, int]:
        """The dataset with the column label, of the ids of anchor and positive in the bank, and how many anchors have
        none. Equal texts are one row of the bank: a copy of the anchor is never its negative."""
        ids: dict[str, int] = {}
        for part in gather_object([dict(zip(self.index.texts, self.index.ids.tolist()))]):
            ids |= part
        columns = [name for name in ("anchor", "positive") if name in dataset.column_names]
        rows = [[ids.get(text, -1) for text in texts] for texts in zip(*(dataset[name][:] for name in columns))]
        return dataset.add_column("label", rows), sum(row[0] < 0 for row in rows)

    def on_step_end(self, args, state, control, **kwargs):
        # The encoder may be a view of the model's parts, whose own flag nobody has set: without it they would stay in
        # evaluation mode, without dropout.
        self.encoder.training = True
        if self.negatives.step(state.global_step, self.encoder) or self.negatives.refresh == "write-through":
            self.saved = None

    def save(self, folder: Path) -> None:
        """This process's part into the folder of a checkpoint."""
        own = _part_of(folder)
        own.parent.mkdir(parents=True, exist_ok=True)
        if self.saved is None or self.saved == own:
            self.index.save(own)
        else:
            link_folder(self.saved, own)
        self.saved = own


def before_head(model: SentenceTransformer) -> SentenceTransformer:
    """The same weights up to the last layer's [CLS], without a head: what HSimCSE's released code has in its bank."""
    pooled = [module for module in model if isinstance(module, Pooling)]
    if not pooled:
        layers = ", ".join(type(module).__name__ for module in model)
        raise OptionError("parity", f" needs a model with a pooling layer, got one of {layers}")
    pooling = Pooling(pooled[0].get_embedding_dimension(), pooling_mode="cls")
    # Shared, not copied: a refresh encodes with the trained weights.
    view = SentenceTransformer(modules=[model[0], pooling], device=str(model.device))
    view.train(model.training)
    return view


def _texts(dataset: Dataset, named: str | None) -> list[str]:
    """The distinct texts of a file, or of anchors and positives."""
    if named is not None:
        dataset = read_corpus(named, "--bank")
    texts = [text for name in ("anchor", "positive") if name in dataset.column_names for text in dataset[name][:]]
    return list(dict.fromkeys(texts))


def _encoded(texts: list[str], encoder: SentenceTransformer, named: str | None) -> CorpusIndex:
    """This process's part of the texts, every `num_processes`-th, encoded."""
    state = PartialState()
    ids = torch.arange(state.process_index, len(texts), state.num_processes, device="cpu")
    own = texts[state.process_index :: state.num_processes]
    try:
        return CorpusIndex.from_texts(encoder, own, ids=ids, progress=state.is_main_process)
    except ValueError as error:
        raise OptionError("bank", f" {named or 'of the training text'!r}: {error}") from None


def _own_rows(index: CorpusIndex) -> CorpusIndex:
    """Of a bank that was saved whole, the rows of this process."""
    state = PartialState()
    if state.num_processes == 1:
        return index
    own = slice(state.process_index, None, state.num_processes)
    return CorpusIndex(index.rows(index.ids[own]), ids=index.ids[own], metric=index.metric, texts=index.texts[own])


def _part_of(folder: Path) -> Path:
    """Where this process's part of a saved bank is."""
    state = PartialState()
    return folder if state.num_processes == 1 else folder / f"part-{state.process_index}"


def _own_folder(folder: Path) -> Path:
    ranks, parts = PartialState().num_processes, len(list(folder.glob("part-*")))
    if ranks > 1 and parts != ranks:
        found = f" found {parts} parts of {str(folder)!r}"
        raise OptionError("resume", f"{found}: expected one for each of the {ranks} processes")
    return _part_of(folder)


def _load(folder: Path, argument: str) -> CorpusIndex:
    try:
        index = CorpusIndex.load(folder, mmap=False)
    except ValueError as error:
        raise InputError(f"{argument} {str(folder)!r}: {error}") from None
    if index.texts is None:
        raise InputError(f"{argument} {str(folder)!r} holds rows without texts: expected a bank that has both")
    return index
