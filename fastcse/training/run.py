"""`fastcse train`, whole: load, train, choose the checkpoint, save, report."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from ..errors import InputError
from ..evaluation.spearman import StsEvaluator
from ..evaluation.sts import read_sts, sts_folder
from ..integrations.sentence_transformers import CachedFusedContrastiveLoss, FusedContrastiveLoss
from .bank_options import BankOptions
from .checkpoints import prepare_output
from .cluster_options import ClusterOptions
from .clusters import ClusterUpkeep
from .corpus_bank import Bank, make_bank
from .data import check_fills_a_batch, read_corpus, read_pairs
from .encoders import has_dropout, load_encoder
from .figure import FIGURE_FILE, draw
from .hard_negatives import add_hard_negatives
from .log import JsonLog
from .objectives import get_objective
from .options import TrainOptions
from .processes import Processes, failures_named
from .recipes.heads import strip_training_layers
from .recipes.queue import KeyQueue
from .report import DEV_KEY, TrainReport, make_report
from .surroundings import seen, surround
from .trainer import make_trainer

DEV = "stsb.dev"  # the set that chooses the checkpoint; no other set is opened
logger = logging.getLogger(__name__)


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
    processes = Processes()
    processes.part(options.batch_size)
    with failures_named(options.output_dir, processes):
        return _train(options, processes)


def _train(options: TrainOptions, processes: Processes) -> TrainReport:
    dataset, notes = _read(options)
    if processes.is_first:
        for note in notes:
            logger.warning(note)
    dev = None if options.sts_dir is None else find_dev(options.sts_dir)
    model = _encoder(options)
    checkpoint = processes.first_alone(lambda: prepare_output(options, processes.ranks))
    bank = _bank(options, dataset, model, checkpoint, processes)
    clusters = _clusters(options, model, checkpoint, processes)
    queue = _queue(options, model, checkpoint, processes)
    loss = _loss(options, model, bank, clusters, queue, processes)
    before = None if dev is None else processes.first_alone(lambda: 100 * dev(model)[f"{DEV_KEY}_spearman_cosine"])
    upkeep = [one for one in (bank and bank.upkeep, clusters, queue, JsonLog(options.output_dir)) if one]
    trainer = make_trainer(
        model, bank.dataset if bank else dataset, loss, output_dir=options.output_dir, batch_size=options.batch_size,
        lr=options.lr, max_steps=options.max_steps, max_length=options.max_length, seed=options.seed,
        save_steps=options.eval_steps, evaluator=dev, label=f"train {options.objective}", callbacks=upkeep,
        bf16=options.bf16, gradient_checkpointing=options.gradient_checkpointing, patience=options.patience,
        tensorboard=options.tensorboard,
    )  # fmt: skip
    start = time.perf_counter()
    processes.own_randomness(options.seed)
    trainer.run(checkpoint)
    seconds = time.perf_counter() - start
    strip_training_layers(model)
    trainer.save_model(options.output_dir)
    first_step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    report = make_report(options, trainer, before, seconds, len(dataset), first_step, notes)
    report = replace(report, processes=processes.ranks, rank=processes.rank)
    if bank:
        report = replace(report, bank=len(bank.negatives.index))
    if processes.is_first:
        draw(report.as_dict(), Path(options.output_dir) / FIGURE_FILE)
    return report


def _encoder(options: TrainOptions) -> SentenceTransformer:
    """The model with what training puts behind it."""
    set_seed(options.seed)  # before the model: weights that a checkpoint lacks are drawn at random
    model = load_encoder(options.model, pooling=options.pooling)
    if options.corpus is not None and not has_dropout(model):
        raise InputError(f"--model {options.model!r} has no dropout, so the two views of a --corpus sentence would be "
                         "equal: expected a model with dropout, or --pairs")  # fmt: skip
    set_seed(options.seed)  # again: loading may have drawn some or none, and a head is drawn now
    surround(model, options)
    return model


def _loss(
    options: TrainOptions, model: SentenceTransformer, bank: Bank | None, clusters: ClusterUpkeep | None,
    queue: KeyQueue | None, processes: Processes,
) -> FusedContrastiveLoss:  # fmt: skip
    objective = get_objective(options.objective)
    given = {
        "corpus_negatives": bank and bank.negatives, "clusters": clusters and clusters.clusters,
        "queue": queue, "extra_columns": objective.columns,
        "gather_across_devices": processes.ranks > 1, "max_gathered_bytes": options.max_gathered_bytes,
        "backend": options.backend, "cite": objective.source,
        **options.objective_options,
    }  # fmt: skip
    if options.mini_batch_size is None:
        return FusedContrastiveLoss(model, objective.loss, **given)
    return CachedFusedContrastiveLoss(model, objective.loss, mini_batch_size=options.mini_batch_size, **given)


def _bank(
    options: TrainOptions, dataset: Dataset, model: SentenceTransformer, checkpoint: Path | None, processes: Processes
) -> Bank | None:
    if not options.bank_options:
        return None
    bank = make_bank(
        dataset, model, BankOptions(**options.bank_options), options.output_dir, checkpoint, processes
    )  # fmt: skip
    for note in bank.notes:
        logger.warning(note)
    return bank


def _clusters(
    options: TrainOptions, model: SentenceTransformer, checkpoint: Path | None, processes: Processes
) -> ClusterUpkeep | None:
    if not options.cluster_options:
        return None
    made = ClusterOptions(**options.cluster_options)
    clusters = made.make(model.get_embedding_dimension(), options.seed, options.backend, processes.ranks > 1)
    clusters.to(model.device)
    upkeep = ClusterUpkeep(clusters, options.output_dir, processes)
    upkeep.restore(checkpoint)
    return upkeep


def _queue(
    options: TrainOptions, model: SentenceTransformer, checkpoint: Path | None, processes: Processes
) -> KeyQueue | None:
    if not options.queue:
        return None
    queue = KeyQueue(
        model, options.queue, options.queue_momentum, options.output_dir, processes, options.mini_batch_size
    )  # fmt: skip
    queue.restore(checkpoint)
    return queue


def _read(options: TrainOptions) -> tuple[Dataset, list[str]]:
    if options.corpus is not None:
        path, argument, dataset = options.corpus, "--corpus", read_corpus(options.corpus)
    else:
        path, argument, dataset = options.pairs, "--pairs", read_pairs(options.pairs)
    notes: list[str] = []
    if options.hard_negatives is not None:
        dataset, notes = add_hard_negatives(dataset, options.hard_negatives)
    dataset = seen(dataset, options)
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
    return StsEvaluator(pairs, name=DEV_KEY, spread=True)
