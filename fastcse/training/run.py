"""`fastcse train`, whole: text, model, negatives, loss, trainer, report."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from accelerate import PartialState
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import EarlyStoppingCallback

from ..errors import OptionError
from ..evaluation.evaluators import StsEvaluator
from ..evaluation.sts import read_sts, sts_folder
from ..integrations.sentence_transformers import CachedFusedContrastiveLoss, FusedContrastiveLoss
from .checkpoints import prepare_output
from .data import read_text
from .encoders import make_encoder
from .negatives import Negatives, make_negatives
from .objectives import get_objective
from .options import TrainOptions
from .processes import join, on_first, report_failures, seed_rank
from .recipes.heads import strip_training_layers
from .report import DEV_KEY, FIGURE_FILE, TrainReport, draw, make_report
from .trainer import EncoderTrainer, JsonLog, make_trainer, tensorboard_log

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
    join(options.batch_size)
    with report_failures(options.output_dir):
        return _train(options)


def _train(options: TrainOptions) -> TrainReport:
    dataset, notes = read_text(options)
    dev = None if options.sts_dir is None else find_dev(options.sts_dir)
    model = make_encoder(options)
    checkpoint = on_first(lambda: prepare_output(options))
    negatives = make_negatives(options, dataset, model, checkpoint)
    if PartialState().is_main_process:
        for note in (*notes, *negatives.notes):
            logger.warning(note)
    loss = _loss(options, model, negatives)
    before = None if dev is None else on_first(lambda: 100 * dev(model)[f"{DEV_KEY}_spearman_cosine"])
    trainer = _trainer(options, model, negatives, loss, dev)
    start = time.perf_counter()
    seed_rank(options.seed)
    trainer.run(checkpoint)
    seconds = time.perf_counter() - start
    strip_training_layers(model)
    trainer.save_model(options.output_dir)
    report = make_report(options, trainer, before, seconds, checkpoint, negatives.bank, notes)
    if report.rank == 0:
        draw(report.as_dict(), Path(options.output_dir) / FIGURE_FILE)
    return report


def _loss(options: TrainOptions, model: SentenceTransformer, negatives: Negatives) -> FusedContrastiveLoss:
    objective, kind, more = get_objective(options.objective), FusedContrastiveLoss, {}
    if options.mini_batch_size is not None:
        kind, more = CachedFusedContrastiveLoss, {"mini_batch_size": options.mini_batch_size}
    return kind(
        model,
        objective.loss,
        corpus_negatives=negatives.bank and negatives.bank.negatives,
        clusters=negatives.clusters,
        queue=negatives.queue,
        extra_columns=objective.columns,
        gather_across_devices=PartialState().num_processes > 1,
        max_gathered_bytes=options.max_gathered_bytes,
        backend=options.backend,
        cite=objective.paper.bibtex,
        **options.arguments,
        **more,
    )


def _trainer(
    options: TrainOptions, model: SentenceTransformer, negatives: Negatives, loss: nn.Module, dev: StsEvaluator | None
) -> EncoderTrainer:
    callbacks = [*negatives.callbacks, JsonLog()]
    if options.patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=options.patience))
    if options.tensorboard and PartialState().is_main_process:
        callbacks.append(tensorboard_log(options.output_dir))
    names = ("output_dir", "batch_size", "lr", "max_steps", "max_length", "seed", "bf16", "gradient_checkpointing")
    return make_trainer(
        model,
        negatives.dataset,
        loss,
        save_steps=options.eval_steps,
        evaluator=dev,
        label=f"train {options.objective}",
        callbacks=callbacks,
        saved_too=negatives.saved_too,
        **{name: getattr(options, name) for name in names},
    )


def find_dev(directory: str | Path) -> StsEvaluator:
    """The evaluator of `stsb.dev.tsv` or `stsb.dev.tsv.gz` anywhere below a folder. No other file is opened."""
    root = sts_folder(directory, "--sts-dir")
    paths = sorted(path for name in (f"{DEV}.tsv", f"{DEV}.tsv.gz") for path in root.rglob(name))
    if len(paths) != 1:
        found = f"{str(directory)!r} holds {len(paths)} files called {DEV}.tsv or {DEV}.tsv.gz"
        raise OptionError("sts_dir", f" {found}: expected exactly one, because it chooses the checkpoint")
    pairs = read_sts(paths[0])
    if pairs is None:
        raise OptionError("sts_dir", f" file {str(paths[0])!r} lacks a column of sentence1, sentence2, score")
    return StsEvaluator(pairs, name=DEV_KEY)
