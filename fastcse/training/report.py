"""What a run of `fastcse train` did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .options import TrainOptions
from .trainer import ContrastiveTrainer

DEV_KEY = "stsb_dev"  # the evaluator's name in the log
STATS = {
    "masked_share", "infonce", "quadruplet", "active_share", "adversarial_similarity", "batch_similarity",
    "corpus_similarity", "margin", "hardest_similarity", "false_share", "largest_cluster", "empty_clusters",
}  # fmt: skip


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
    spread: list[tuple[int, float | None, float]]  # (step, alignment, uniformity) on STS-B dev
    processes: int
    rank: int  # of the process that made this report
    bank: int | None = None  # texts in the corpus bank

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_report(
    options: TrainOptions,
    trainer: ContrastiveTrainer,
    before: float | None,
    seconds: float,
    sentences: int,
    first_step: int,
    notes: list[str],
) -> TrainReport:
    """What the trainer's log says of a run that has ended."""
    score = f"eval_{DEV_KEY}_spearman_cosine"
    history = trainer.state.log_history
    last = next(entry for entry in reversed(history) if "loss" in entry)
    dev = [(entry["step"], round(100 * entry[score], 2)) for entry in history if score in entry]
    spread = [
        (entry["step"], *(_rounded(entry.get(f"eval_{DEV_KEY}_{name}")) for name in ("alignment", "uniformity")))
        for entry in history
        if score in entry
    ]
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
        spread=spread,
        processes=1,
        rank=0,
        stats={name: round(last[name], 4) for name in sorted(last.keys() & STATS)},
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
