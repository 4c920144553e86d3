"""The corpus bank of a run: built before it, kept up on the way, and saved so that a resumed run goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import TrainerCallback

from ..errors import InputError
from ..mining.corpus_negatives import CorpusNegatives
from ..retrieval.index import CorpusIndex
from ..retrieval.sharded import ShardedIndex
from .bank_options import BankOptions
from .data import read_corpus
from .kept import KeptByStep
from .processes import Processes

NAME = "bank"


class Bank(NamedTuple):
    """`dataset` has gained the column label, of the ids of its texts in the bank; `upkeep` is for the trainer."""

    dataset: Dataset
    negatives: CorpusNegatives
    upkeep: BankUpkeep
    notes: list[str]


def make_bank(
    dataset: Dataset, model: SentenceTransformer, options: BankOptions, output_dir: str, checkpoint: Path | None,
    processes: Processes | None = None,
) -> Bank:  # fmt: skip
    """The bank of the distinct texts of `options.bank`, by default those of `dataset`, encoded by `model`. Each process
    holds and encodes its part.

    Args:
        checkpoint: of the run that is resumed: its bank is read instead.
        processes:  of the run; None asks the launcher.

    Raises:
        InputError: a bank that is smaller than the options ask for, that holds no texts, or was not saved, or was by
            another number of processes.
    """
    processes = processes or Processes()
    encoder = before_head(model) if options.parity else model
    if checkpoint is not None:
        index = _load(_part(KeptByStep(output_dir, NAME).before(checkpoint), processes), "--resume")
    elif options.bank is not None and Path(options.bank).is_dir():
        index = _own_part(_load(Path(options.bank), "--bank"), processes)
    else:
        texts = _texts(dataset) if options.bank is None else read_corpus(options.bank, "--bank")["anchor"][:]
        index = _encoded(list(dict.fromkeys(texts)), encoder, options.bank, processes)
    ids = _ids_by_text(index, processes)
    if processes.ranks > 1:
        index = ShardedIndex(index)
    try:
        negatives = CorpusNegatives(
            index, k=options.neighbours, skip=options.skip, sample=options.sample, max_score=options.max_similarity,
            refresh=options.refresh,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"--neighbours {options.neighbours}, --skip {options.skip}: {error}") from None
    labelled, missing = _with_ids(dataset, ids)
    upkeep = BankUpkeep(negatives, encoder, output_dir, processes)
    if checkpoint is None:
        upkeep.begin(options.bank)
    notes = [f"{missing:,} of {len(dataset):,} training rows are not in the bank"] if missing else []
    return Bank(labelled, negatives, upkeep, notes)


def before_head(model: SentenceTransformer) -> SentenceTransformer:
    """The same weights up to the last layer's [CLS], without a head: what HSimCSE's released code has in its bank."""
    transformer, pooled = model[0], [module for module in model if isinstance(module, Pooling)]
    if not pooled:
        layers = ", ".join(type(module).__name__ for module in model)
        raise InputError(f"--parity needs a model with a pooling layer, got one of {layers}")
    pooling = Pooling(pooled[0].get_embedding_dimension(), pooling_mode="cls")
    # Shared, not copied: a refresh sees what training did.
    view = SentenceTransformer(modules=[transformer, pooling], device=str(model.device))
    view.train(model.training)
    return view


def _texts(dataset: Dataset) -> list[str]:
    return [text for name in ("anchor", "positive") if name in dataset.column_names for text in dataset[name][:]]


def _encoded(texts: list[str], encoder: SentenceTransformer, named: str | None, processes: Processes) -> CorpusIndex:
    """This process's part of the texts, in turns, encoded."""
    own = range(processes.rank, len(texts), processes.ranks)
    try:
        return CorpusIndex.from_texts(
            encoder, [texts[i] for i in own], ids=torch.tensor(own, device="cpu"), progress=processes.is_first
        )  # fmt: skip
    except ValueError as error:
        raise InputError(f"--bank {named or 'of the training text'!r}: {error}") from None


def _own_part(index: CorpusIndex, processes: Processes) -> CorpusIndex:
    """Of a bank that was saved whole, the rows of this process."""
    if processes.ranks == 1:
        return index
    own = index.ids[processes.rank :: processes.ranks]
    return CorpusIndex(
        index.rows(own), ids=own, metric=index.metric, texts=index.texts[processes.rank :: processes.ranks]
    )


def _part(folder: Path, processes: Processes) -> Path:
    """Where this process's part of a saved bank is."""
    if processes.ranks == 1:
        return folder
    parts = len(list(folder.glob("part-*")))
    if parts != processes.ranks:
        raise InputError(f"--resume found {parts} parts of {folder.name} in --output-dir {str(folder.parent)!r}: "
                         f"expected one for each of the {processes.ranks} processes")  # fmt: skip
    return folder / f"part-{processes.rank}"


def _ids_by_text(index: CorpusIndex, processes: Processes) -> dict[str, int]:
    """The id of every text of the bank, those of other processes included."""
    own = dict(zip(index.texts, index.ids.tolist()))
    whole: dict[str, int] = {}
    for part in processes.everyones(own):
        whole |= part
    return whole


def _with_ids(dataset: Dataset, ids: dict[str, int]) -> tuple[Dataset, int]:
    """The dataset with the ids of anchor and positive, and how many anchors have none. Equal texts are one row of the
    bank: a copy of the anchor is never its negative."""
    columns = [name for name in ("anchor", "positive") if name in dataset.column_names]
    rows = [[ids.get(text, -1) for text in texts] for texts in zip(*(dataset[name][:] for name in columns))]
    return dataset.add_column("label", rows), sum(row[0] < 0 for row in rows)


def _load(folder: Path, argument: str) -> CorpusIndex:
    try:
        index = CorpusIndex.load(folder, mmap=False)
    except ValueError as error:
        raise InputError(f"{argument} {str(folder)!r}: {error}") from None
    if index.texts is None:
        raise InputError(f"{argument} {str(folder)!r} holds rows without texts: expected a bank that has both")
    return index


class BankUpkeep(TrainerCallback):
    """Refreshes the bank when it is due, and saves it before each checkpoint where it has changed since."""

    def __init__(self, negatives: CorpusNegatives, encoder: nn.Module, output_dir: str, processes: Processes):
        self.negatives, self.encoder, self.kept = negatives, encoder, KeptByStep(output_dir, NAME)
        self.processes = processes
        self.changed = False

    def on_step_end(self, args, state, control, **kwargs):
        # The encoder may be a view of the model's parts, whose own flag nobody has set: without it they would stay in
        # evaluation mode, without dropout.
        self.encoder.training = True
        refreshed = self.negatives.step(state.global_step, self.encoder)
        self.changed |= refreshed or self.negatives.refresh == "write-through"
        # Before the checkpoint: one that a kill leaves behind has its bank.
        if control.should_save and self.changed:
            self.save(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        if self.processes.is_first:
            self.kept.prune()

    def begin(self, given: str | None) -> None:
        """The bank as the run begins with it, in the place of any that is left of another run."""
        inside = given is not None and Path(given).resolve().is_relative_to(self.kept.output_dir.resolve())
        if self.processes.is_first and not inside:
            self.kept.begin()
        self.processes.wait()
        self.save(0)

    def save(self, step: int) -> None:
        """The bank as it is after `step`."""
        folder, index = self.kept.at(step), self.negatives.index
        if isinstance(index, ShardedIndex):
            folder.mkdir(parents=True, exist_ok=True)
            folder, index = folder / f"part-{self.processes.rank}", index.local_index
        index.save(folder)
        self.processes.wait()  # a checkpoint that follows has all parts
        self.changed = False
