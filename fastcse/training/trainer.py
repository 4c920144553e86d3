"""The loop: sentence-transformers' Trainer with the statistics of the loss in its log and one tidy progress bar."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from tqdm.auto import tqdm
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from ..errors import InputError
from ..files import write_atomic
from ..integrations.sentence_transformers import FusedContrastiveLoss
from .checkpoints import LAST_WRITTEN

SHOWN = {
    "loss": "loss", "accuracy": "acc", "positive_similarity": "pos", "negative_similarity": "neg", "quadruplet": "quad",
    "active_share": "active",
}  # fmt: skip
# transformers gave the option another name in version 5.
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)
LOGGED_STEPS = 1000  # at most this many entries in the log of a run
LOG_FILE = "log.jsonl"


class EncoderTrainer(SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` that logs accuracy and mean similarities too, and stops when the loss diverges.

    Raises:
        InputError: a loss that is not finite; what follows such a step can only be worse.
    """

    saved_too: dict[str, Callable[[Path], None]]  # name -> what writes a part of the run's state into a checkpoint

    def run(self, checkpoint: Path | None) -> None:
        """Train from the start or from a checkpoint on. Of a run that has ended already the end is read: the Trainer
        itself would make one step more."""
        waiting = (one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback))
        patience = next((one.early_stopping_patience for one in waiting), None)
        if checkpoint is None or not has_ended(checkpoint, self.args.max_steps, patience):
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            return
        self.state = TrainerState.load_from_json(str(checkpoint / LAST_WRITTEN))
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        for name, save in self.saved_too.items():
            save(Path(output_dir) / name)
        # The state of the trainer is written next, and a checkpoint that has it has everything, of every process.
        self.accelerator.wait_for_everyone()

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, Progress):
                    callback.close()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                what = f"the loss is {logs['loss']} at step {self.state.global_step}"
                raise InputError(f"{what}: --lr {self.args.learning_rate} may be too high")
            logs = {**logs, **self.loss.take_stats()}
        super().log(logs, start_time)


def has_ended(checkpoint: Path, max_steps: int, patience: int | None) -> bool:
    """Whether the run of a checkpoint had made all its steps, or had lost patience."""
    state = TrainerState.load_from_json(str(checkpoint / LAST_WRITTEN))
    kept = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
    counted = kept["attributes"]["early_stopping_patience_counter"] if isinstance(kept, dict) else 0
    return state.global_step >= max_steps or (patience is not None and counted >= patience)


class Progress(TrainerCallback):
    """One bar on stderr: steps, loss, accuracy, similarities, and the last score on the dev set."""

    def __init__(self, label: str, score: str | None):
        self.label, self.score, self.shown, self.bar = label, score, {}, None

    def on_train_begin(self, args, state, control, **kwargs):
        steps = {"total": state.max_steps, "initial": state.global_step, "unit": " steps"}
        self.bar = tqdm(**steps, desc=self.label, dynamic_ncols=True, disable=not state.is_world_process_zero)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.shown |= {short: f"{logs[name]:.3f}" for name, short in SHOWN.items() if name in logs}
        if self.score in logs:
            self.shown["dev"] = f"{100 * logs[self.score]:.2f}"
        if self.bar is not None:
            self.bar.set_postfix(self.shown)

    def close(self) -> None:
        """Leave the bar as it is, so that what is said next has its own line: also when the run has failed."""
        if self.bar is not None:
            self.bar.close()


class JsonLog(TrainerCallback):
    """Appends every entry of the log, losses and scores with their step, to `log.jsonl` in the output folder. A resumed
    run first takes off the entries of the steps that it makes again."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = Path(args.output_dir) / LOG_FILE
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
            write_atomic(path, "".join(line for line in lines if _step(line) <= state.global_step))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with (Path(args.output_dir) / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _step(line: str) -> float:
    """The step of an entry; of one that a killed process did not end, later than any."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def make_trainer(
    model: SentenceTransformer,
    dataset: Dataset,
    loss: FusedContrastiveLoss,
    *,
    output_dir: str | Path,
    max_length: int,
    save_steps: int | None,
    evaluator: BaseEvaluator | None = None,
    label: str = "train",
    callbacks: Sequence[TrainerCallback] = (),
    saved_too: dict[str, Callable[[Path], None]] | None = None,
    gradient_checkpointing: bool = False,
    **more: Any,
) -> EncoderTrainer:
    """A trainer over `dataset`: AdamW, linear decay to 0, gradient norm clipped at 1, every batch full and without
    duplicates, and texts cut to `max_length` tokens in training only.

    Args:
        save_steps: steps between two checkpoints, and between two evaluations; None writes no checkpoint.
        evaluator:  its primary metric, taken every `save_steps` and after the last step, chooses the checkpoint that
            is loaded at the end. None loads nothing: the model stays as the last step left it.
        saved_too:  name -> function that writes a part of the run's state to that name in a checkpoint, on all
            processes.
        gradient_checkpointing: activations are made again in the backward pass instead of being kept.
        more:       of `SentenceTransformerTrainingArguments`, with `batch_size` for that of a step over all processes
            (each takes its slice of the same batches that one process would have) and `lr` for `learning_rate`.
    """
    score = None if evaluator is None else f"eval_{evaluator.name}_spearman_cosine"
    max_steps = more["max_steps"]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=more.pop("batch_size"),
        accelerator_config={"split_batches": True},
        learning_rate=more.pop("lr"),
        lr_scheduler_type="linear",
        dataloader_drop_last=True,
        # A sentence is never the negative of its own copy; the order is a function of the seed and the epoch alone.
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        save_strategy="no" if save_steps is None else "steps",
        save_steps=save_steps or max_steps,
        save_total_limit=2,
        restore_callback_states_from_checkpoint=True,  # evaluations without a better score are counted on
        eval_strategy="no" if evaluator is None else "steps",
        eval_steps=save_steps,
        load_best_model_at_end=evaluator is not None,
        metric_for_best_model=score,
        greater_is_better=True,
        logging_steps=max(1, max_steps // LOGGED_STEPS),
        logging_nan_inf_filter=False,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        # Said outright: left to guess, several processes without a GPU would each train alone.
        use_cpu=not torch.cuda.is_available(),
        **{CHECKPOINTING: gradient_checkpointing},
        **more,
    )
    trainer = EncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        loss=loss,
        evaluator=evaluator,
        callbacks=[Progress(label, score), *callbacks],
        data_collator=SentenceTransformerDataCollator(preprocess_fn=model.preprocess, max_length=max_length),
    )
    trainer.saved_too = saved_too or {}
    # Both write the log to stdout, which belongs to the result.
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def tensorboard_log(output_dir: str | Path) -> TrainerCallback:
    """The log as TensorBoard's events too, in the folder `runs` of the output."""
    # Here, because tensorboard is no requirement of training.
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(Path(output_dir) / "runs")))
