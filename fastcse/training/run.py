"""`fastcse train`, whole: load, train, choose the checkpoint, save, report."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from ..evaluation.files import InputError
from ..evaluation.spearman import StsEvaluator
from ..evaluation.sts import read_sts, sts_folder
from ..integrations.sentence_transformers import FusedContrastiveLoss
from .bank_options import BankOptions
from .checkpoints import prepare_output
from .cluster_options import ClusterOptions
from .clusters import ClusterUpkeep
from .corpus_bank import Bank, make_bank
from .data import check_fills_a_batch, read_corpus, read_pairs
from .encoders import has_dropout, load_encoder
from .hard_negatives import add_hard_negatives
from .objectives import get_objective
from .options import TrainOptions
from .trainer import ContrastiveTrainer, make_trainer

DEV = "stsb.dev"  # the set that chooses the checkpoint; no other set is opened
DEV_KEY = "stsb_dev"
STATS = {
    "masked_share", "infonce", "quadruplet", "active_share", "adversarial_similarity", "batch_similarity",
    "corpus_similarity", "margin", "false_share", "largest_cluster", "empty_clusters",
}  # fmt: skip
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainReport:
    """What a run did. Scores are Spearman x 100 on STS-B dev, None without --sts-dir."""

    options: dict[str, Any]
    backend: str | None
    steps: int
    new_steps: int  # of these, made by this process; fewer than `steps` when it resumed
    seconds: float  # of the new steps, with their evaluations and checkpoints
    sentences: int
    loss: list[tuple[int, float]]  # (step, mean loss since the step before)
    accuracy: float
    positive_similarity: float
    negative_similarity: float
    dev_before: float | None
    dev: list[tuple[int, float]]  # (step, score)
    best_step: int | None
    dev_best: float | None
    saved: str
    notes: list[str]  # what of the text was left out, in a sentence each
    stats: dict[str, float]  # what else the loss had numbers of, in the last entry of the log
    bank: int | None = None  # texts in the corpus bank

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def train(options: TrainOptions) -> TrainReport:
    """Run the training that `options` describe and save the model in sentence-transformers' format.

    The saved model is the checkpoint with the best STS-B dev score when `sts_dir` is given, else the last step's.

    Raises:
        InputError: a file, model or folder of the options is not what it should be.

    Example:
        >>> report = train(TrainOptions("out", corpus="wiki.txt.gz", sts_dir="sts"))     # doctest: +SKIP
        >>> report.dev_best > report.dev_before                                           # doctest: +SKIP
        True
    """
    dataset, notes = _read(options)
    for note in notes:
        logger.warning(note)
    dev = None if options.sts_dir is None else find_dev(options.sts_dir)
    set_seed(options.seed)  # before the model: weights that a checkpoint lacks are drawn at random
    model = load_encoder(options.model, pooling=options.pooling)
    if options.corpus is not None and not has_dropout(model):
        raise InputError(f"--model {options.model!r} has no dropout, so the two views of a --corpus sentence would be "
                         "equal: expected a model with dropout, or --pairs")  # fmt: skip
    checkpoint = prepare_output(options)
    objective = get_objective(options.objective)
    bank = _bank(options, dataset, model, checkpoint)
    clusters = _clusters(options, model, checkpoint)
    loss = FusedContrastiveLoss(
        model, objective.loss, corpus_negatives=bank and bank.negatives, clusters=clusters and clusters.clusters,
        backend=options.backend, cite=objective.source, **options.objective_options,
    )  # fmt: skip
    before = None if dev is None else 100 * dev(model)[f"{DEV_KEY}_spearman_cosine"]
    trainer = make_trainer(
        model, bank.dataset if bank else dataset, loss, output_dir=options.output_dir, batch_size=options.batch_size,
        lr=options.lr, max_steps=options.max_steps, max_length=options.max_length, seed=options.seed,
        save_steps=options.eval_steps, evaluator=dev, label=f"train {options.objective}",
        callbacks=[*([bank.upkeep] if bank else []), *([clusters] if clusters else [])],
    )  # fmt: skip
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - start
    trainer.save_model(options.output_dir)
    first_step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    report = _report(options, trainer, before, seconds, len(dataset), first_step, notes)
    return replace(report, bank=len(bank.negatives.index)) if bank else report


def _bank(options: TrainOptions, dataset: Dataset, model: SentenceTransformer, checkpoint: Path | None) -> Bank | None:
    if not options.bank_options:
        return None
    bank = make_bank(dataset, model, BankOptions(**options.bank_options), options.output_dir, checkpoint)
    for note in bank.notes:
        logger.warning(note)
    return bank


def _clusters(options: TrainOptions, model: SentenceTransformer, checkpoint: Path | None) -> ClusterUpkeep | None:
    if not options.cluster_options:
        return None
    made = ClusterOptions(**options.cluster_options)
    clusters = made.make(model.get_embedding_dimension(), options.seed, options.backend).to(model.device)
    upkeep = ClusterUpkeep(clusters, options.output_dir)
    upkeep.restore(checkpoint)
    return upkeep


def _read(options: TrainOptions) -> tuple[Dataset, list[str]]:
    if options.corpus is not None:
        path, argument, dataset = options.corpus, "--corpus", read_corpus(options.corpus)
    else:
        path, argument, dataset = options.pairs, "--pairs", read_pairs(options.pairs)
    notes: list[str] = []
    if options.hard_negatives is not None:
        dataset, notes = add_hard_negatives(dataset, options.hard_negatives)
    check_fills_a_batch(dataset, options.batch_size, path, argument)
    return dataset, notes


def find_dev(directory: str | Path) -> StsEvaluator:
    """The evaluator of `stsb.dev.tsv` or `stsb.dev.tsv.gz` anywhere below a folder. No other file is opened."""
    root = sts_folder(directory, "--sts-dir")
    paths = sorted(path for name in (f"{DEV}.tsv", f"{DEV}.tsv.gz") for path in root.rglob(name))
    if len(paths) != 1:
        raise InputError(f"--sts-dir {str(directory)!r} holds {len(paths)} files called {DEV}.tsv or {DEV}.tsv.gz: "
                         "expected exactly one, because it chooses the checkpoint")  # fmt: skip
    pairs = read_sts(paths[0])
    if pairs is None:
        raise InputError(f"--sts-dir file {str(paths[0])!r} lacks a column of sentence1, sentence2, score")
    return StsEvaluator(pairs, name=DEV_KEY)


def _report(
    options: TrainOptions,
    trainer: ContrastiveTrainer,
    before: float | None,
    seconds: float,
    sentences: int,
    first_step: int,
    notes: list[str],
) -> TrainReport:
    score = f"eval_{DEV_KEY}_spearman_cosine"
    history = trainer.state.log_history
    last = next(entry for entry in reversed(history) if "loss" in entry)
    dev = [(entry["step"], round(100 * entry[score], 2)) for entry in history if score in entry]
    best_step = max(dev, key=lambda one: (one[1], -one[0]))[0] if dev else None
    return TrainReport(
        options={**options.identity(), "output_dir": options.output_dir, "resume": options.resume},
        backend=trainer.loss.used_backend,
        steps=trainer.state.global_step,
        new_steps=trainer.state.global_step - first_step,
        seconds=round(seconds, 1),
        sentences=sentences,
        loss=[(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        accuracy=round(last["accuracy"], 4),
        positive_similarity=round(last["positive_similarity"], 4),
        negative_similarity=round(last["negative_similarity"], 4),
        dev_before=None if before is None else round(before, 2),
        dev=dev,
        best_step=best_step,
        dev_best=dict(dev).get(best_step),
        saved=options.output_dir,
        notes=notes,
        stats={name: round(last[name], 4) for name in sorted(last.keys() & STATS)},
    )
