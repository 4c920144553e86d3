"""The main job, whole: pairs, split, scores before, training, scores after, cost of the loss, figure, files."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ...bench.machine import version
from ...errors import InputError
from ...evaluation.retrieval import evaluate_retrieval
from ...integrations.sentence_transformers import FusedContrastiveLoss
from ...training.encoders import load_encoder
from ...training.objectives import OBJECTIVES
from ...training.options import check_at_least, check_backend, check_batch_size
from ...training.trainer import EncoderTrainer, make_trainer
from ..info import fastcse_version
from .cost import loss_cost
from .docstrings import PACKAGES, collect_pairs
from .figure import draw
from .split import Split, split_pairs

WARMUP_SHARE = 0.1
FIGURE, REPORT, MODEL = "demo.png", "demo.json", "model"
VERSIONED = ("torch", "transformers", "sentence-transformers", "numpy", "scipy", "sympy")


@dataclass(frozen=True)
class DemoOptions:
    """The options of `fastcse demo`. The defaults take about five minutes on two cores."""

    output_dir: str = "demo-output"
    model: str = "minilm"
    packages: tuple[str, ...] = PACKAGES
    seed: int = 0
    max_steps: int = 60
    batch_size: int = 64
    lr: float = 5e-5
    max_length: int = 48
    held_out: int = 1000
    cost_rows: int = 4096
    cost_repeats: int = 7
    backend: str | None = None

    def __post_init__(self):
        check_batch_size(self.batch_size, lowest=2)
        for name in ("max_steps", "held_out", "cost_rows", "cost_repeats"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("seed", self.seed, 0)
        check_backend(self.backend)


def run_demo(options: DemoOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the job and return the report that is also written to `output_dir/demo.json`.

    Args:
        say: receives one line at the start of each part.
    """
    start = time.perf_counter()
    folder = _make_folder(options.output_dir)
    model = load_encoder(options.model)
    model.max_seq_length = min(options.max_length, model.max_seq_length)
    say("Reading the docstrings of the installed packages")
    split = split_pairs(collect_pairs(options.packages), held_out=options.held_out, seed=options.seed)
    _check_split(split, options)
    anchors, positives = [p.summary for p in split.held_out], [p.rest for p in split.held_out]
    say(f"Scoring {len(anchors):,} held-out pairs before training")
    before = evaluate_retrieval(model, anchors, positives, label="before")
    say(f"Training on {len(split.train):,} pairs")
    trainer = _train(options, model, split, folder)
    say("Scoring the same pairs after training")
    after = evaluate_retrieval(model, anchors, positives, label="after")
    width = model.get_embedding_dimension()
    say(f"Measuring the loss on {options.cost_rows} x {width} rows, fused and eager")
    cost = loss_cost(
        options.cost_rows, width, repeats=options.cost_repeats, backend=options.backend, device=model.device.type
    )
    model.save_pretrained(str(folder / MODEL))
    report = {
        "before": asdict(before),
        "after": asdict(after),
        "backend": trainer.loss.used_backend,
        "training": _history(trainer),
        "cost": asdict(cost),
        "data": _data(split),
        "options": asdict(options),
        "machine": _machine(),
        "files": {name: str(folder / name) for name in (FIGURE, REPORT, MODEL)},
        "seconds": round(time.perf_counter() - start, 1),
    }
    draw(report, folder / FIGURE)
    (folder / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return report


def _make_folder(name: str) -> Path:
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output-dir {name!r} cannot be made: {error.strerror}") from None
    return Path(name)


def _check_split(split: Split, options: DemoOptions) -> None:
    if len(split.train) < options.batch_size or not split.held_out:
        raise InputError(
            f"--batch-size {options.batch_size} is more than the {len(split.train)} training pairs "
            f"({len(split.held_out)} held out) found in the docstrings of {', '.join(options.packages)}"
        )


def _train(options: DemoOptions, model, split: Split, folder: Path) -> EncoderTrainer:
    objective = OBJECTIVES["focal"]
    loss = FusedContrastiveLoss(
        model, objective.loss, backend=options.backend, cite=objective.paper.bibtex, **objective.options
    )
    columns = {"anchor": [p.summary for p in split.train], "positive": [p.rest for p in split.train]}
    trainer = make_trainer(
        model, Dataset.from_dict(columns), loss, output_dir=folder, batch_size=options.batch_size,
        max_steps=options.max_steps, lr=options.lr, max_length=options.max_length, seed=options.seed, save_steps=None,
        warmup_steps=round(WARMUP_SHARE * options.max_steps), label="train focal",
    )  # fmt: skip
    trainer.train()
    return trainer


def _history(trainer: EncoderTrainer) -> dict[str, Any]:
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("step", "loss", "accuracy", "positive_similarity", "negative_similarity", "learning_rate")
    return {name: [entry[name] for entry in log] for name in names}


def _data(split: Split) -> dict[str, Any]:
    return {
        "train": len(split.train),
        "held_out": len(split.held_out),
        "dropped_as_copies": split.dropped,
        "train_by_package": dict(Counter(pair.package for pair in split.train)),
        "held_out_by_package": dict(Counter(pair.package for pair in split.held_out)),
    }


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "fastcse": fastcse_version(),
        "packages": {name: version(name) for name in VERSIONED},
    }
