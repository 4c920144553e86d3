"""What a run of `fastcse train` did, as JSON and as a picture."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from matplotlib.axes import Axes

from ..plots import ACCENT, PALE, STRONG, curve, page, whole_steps
from .checkpoints import step_of
from .negatives import BankCallback
from .options import TrainOptions
from .trainer import EncoderTrainer

FIGURE_FILE = "summary.png"
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
    trainer: EncoderTrainer,
    before: float | None,
    seconds: float,
    checkpoint: Path | None,
    bank: BankCallback | None,
    notes: list[str],
) -> TrainReport:
    """What the trainer's log says of a run that has ended."""
    score = f"eval_{DEV_KEY}_spearman_cosine"
    history, state = trainer.state.log_history, PartialState()
    last = next(entry for entry in reversed(history) if "loss" in entry)
    scored = [entry for entry in history if score in entry]
    dev = [(entry["step"], round(100 * entry[score], 2)) for entry in scored]
    best_step = max(dev, key=lambda one: (one[1], -one[0]))[0] if dev else None
    spread = (f"eval_{DEV_KEY}_alignment", f"eval_{DEV_KEY}_uniformity")
    return TrainReport(
        options=options.as_dict(),
        backend=trainer.loss.used_backend,
        steps=trainer.state.global_step,
        new_steps=trainer.state.global_step - (step_of(checkpoint) if checkpoint else 0),
        seconds=round(seconds, 1),
        sentences=len(trainer.train_dataset),
        loss=[(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        accuracy=round(last["accuracy"], 4),
        positive_similarity=round(last["positive_similarity"], 4),
        negative_similarity=round(last["negative_similarity"], 4),
        dev_before=_rounded(before, 2),
        dev=dev,
        best_step=best_step,
        dev_best=dict(dev).get(best_step),
        saved=options.output_dir,
        notes=notes,
        stats={name: round(last[name], 4) for name in sorted(last.keys() & STATS)},
        spread=[(entry["step"], *(_rounded(entry.get(name), 4) for name in spread)) for entry in scored],
        processes=state.num_processes,
        rank=state.process_index,
        bank=None if bank is None else len(bank.negatives.index),
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the loss of a run, its scores on STS-B dev, and its embeddings between alignment and uniformity, into a PNG;
    without scores it is the loss alone."""
    options = report["options"]
    title = f"{options['objective']}: {Path(options['model']).name}, {report['steps']} steps of batch "
    title += str(options["batch_size"])
    # A score is no number where all embeddings of a model are alike.
    scored = report["dev_best"] is not None and math.isfinite(report["dev_best"])
    with page(path, 3 if scored else 1, size=(13 if scored else 6, 4.2), title=title) as axes:
        curve(axes[0], *zip(*report["loss"]), label="each entry of the log")
        axes[0].set(title="Loss")
        if scored:
            _scores(axes[1], report)
            _spread(axes[2], report)


def _scores(axes: Axes, report: dict[str, Any]) -> None:
    axes.plot(*zip((0, report["dev_before"]), *report["dev"]), color=STRONG, linewidth=2.2, marker="o", markersize=4)
    step, best = report["best_step"], report["dev_best"]
    axes.plot(step, best, color=ACCENT, marker="o", markersize=8, linestyle="none", label=f"{best:.2f} at step {step}")
    axes.set(title="STS-B dev, Spearman x 100", xlabel="step")
    whole_steps(axes)
    axes.legend()


def _spread(axes: Axes, report: dict[str, Any]) -> None:
    shown = [one for one in report["spread"] if None not in one]
    axes.set(title="STS-B dev: both are better when smaller", xlabel="uniformity", ylabel="alignment")
    if not shown:  # no pair of the set is scored above 4
        return
    steps, aligned, spread = zip(*shown)
    axes.plot(spread, aligned, color=PALE, linewidth=1.2, zorder=1)
    dots = axes.scatter(spread, aligned, c=steps, cmap="viridis_r", s=36, zorder=2)
    axes.get_figure().colorbar(dots, ax=axes, label="step")
    at = {step: (x, y) for step, y, x in shown}
    if report["best_step"] in at:
        axes.plot(*at[report["best_step"]], color=ACCENT, marker="o", markersize=12, fillstyle="none", linestyle="none")
