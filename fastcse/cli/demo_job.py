"""The demo, whole: pairs, split, scores before, training, scores after, cost of the loss, figure, files."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from .. import plots
from ..bench.environment import version
from ..bench.loss import LossCase
from ..bench.measure import measure
from ..bench.peers import PEERS
from ..errors import InputError
from ..evaluation.evaluators import evaluate_retrieval
from ..files import write_json
from ..integrations.sentence_transformers import FusedContrastiveLoss
from ..training.encoders import load_encoder
from ..training.objectives import OBJECTIVES
from ..training.trainer import make_trainer
from .demo_text import PACKAGES, Split, collect_pairs, split_pairs
from .info import fastcse_version

if TYPE_CHECKING:
    from .demo import DemoOptions

WARMUP_SHARE = 0.1
FIGURE, REPORT, MODEL = "demo.png", "demo.json", "model"
VERSIONED = ("torch", "transformers", "sentence-transformers", "numpy", "scipy", "sympy")
HISTORY = ("step", "loss", "accuracy", "positive_similarity", "negative_similarity", "learning_rate")
BEFORE_AFTER = {"before": plots.PALE, "after": plots.STRONG}


def run_demo(options: DemoOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the job and return the report that is also written to `output_dir/demo.json`.

    Args:
        say: receives one line at the start of each part.
    """
    options = replace(options, packages=options.packages or PACKAGES)
    start, folder = time.perf_counter(), Path(options.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output-dir {options.output_dir!r} cannot be made: {error.strerror}") from None
    model = load_encoder(options.model)
    model.max_seq_length = min(options.max_length, model.max_seq_length)
    say("Reading the docstrings of the installed packages")
    split = split_pairs(collect_pairs(options.packages), held_out=options.held_out, seed=options.seed)
    if len(split.train) < options.batch_size or not split.held_out:
        found = f"{len(split.train)} training pairs ({len(split.held_out)} held out)"
        where = f"found in the docstrings of {', '.join(options.packages)}"
        raise InputError(f"--batch-size {options.batch_size} is more than the {found} {where}")
    anchors, positives = [p.summary for p in split.held_out], [p.rest for p in split.held_out]
    say(f"Scoring {len(anchors):,} held-out pairs before training")
    before = evaluate_retrieval(model, anchors, positives, label="before")
    say(f"Training on {len(split.train):,} pairs")
    history, backend = _train(options, model, split, folder)
    say("Scoring the same pairs after training")
    after = evaluate_retrieval(model, anchors, positives, label="after")
    width = model.get_embedding_dimension()
    say(f"Measuring the loss on {options.cost_rows} x {width} rows, fused and eager")
    cost = loss_cost(options, width, model.device.type)
    model.save_pretrained(str(folder / MODEL))
    report = {"before": asdict(before), "after": asdict(after), "backend": backend, "training": history, "cost": cost}
    report |= {"data": _data(split), "options": asdict(options), "machine": _machine()}
    report |= {"files": {name: str(folder / name) for name in (FIGURE, REPORT, MODEL)}}
    report |= {"seconds": round(time.perf_counter() - start, 1)}
    draw(report, folder / FIGURE)
    write_json(folder / REPORT, report)
    return report


def _train(options: DemoOptions, model: SentenceTransformer, split: Split, folder: Path) -> tuple[dict, str | None]:
    """What the log has of each step, and the backend that ran."""
    objective = OBJECTIVES["focal"]
    loss = FusedContrastiveLoss(
        model, objective.loss, backend=options.backend, cite=objective.paper.bibtex, **objective.options
    )
    columns = {"anchor": [p.summary for p in split.train], "positive": [p.rest for p in split.train]}
    given = {name: getattr(options, name) for name in ("batch_size", "max_steps", "lr", "max_length", "seed")}
    given |= {"save_steps": None, "warmup_steps": round(WARMUP_SHARE * options.max_steps), "label": "train focal"}
    trainer = make_trainer(model, Dataset.from_dict(columns), loss, output_dir=folder, **given)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {name: [entry[name] for entry in log] for name in HISTORY}, loss.used_backend


def loss_cost(options: DemoOptions, width: int, device: str) -> dict[str, Any]:
    """Medians of forward and backward of the focal loss, fused and eager, timed in turns beside the bare products, and
    how far their results are apart; memory in a process of its own, None where the system does not report it.

    The fused loss makes its gradients in the forward, so only the sum of the two directions can be compared.
    """
    names, rows = ("fastcse", "eager"), options.cost_rows
    case = LossCase(rows, rows, width, "focal", device=device, backend=options.backend)
    steps = len(names) + (len(names) + 1) * (options.cost_repeats + 1)
    with tqdm(total=steps, desc="measure the loss", unit=" runs", dynamic_ncols=True) as progress:
        result = measure(case, map(PEERS.get, names), repeat=options.cost_repeats, step=lambda what: progress.update())
    cost = {"rows": rows, "width": width, "device": device, "backend": result.backend, "repeats": options.cost_repeats}
    for kind, name in zip(("fused", "eager"), names):
        row = result.row(name)
        mib = None if row.extra_mib is None else round(row.extra_mib, 1)
        cost |= {f"{kind}_ms": round(row.ms, 2), f"{kind}_mib": mib}
    inputs = case.inputs()
    fused, eager = (case.call(PEERS[name], None, inputs)() for name in names)
    apart = (fused.gradients[0] - eager.gradients[0]).abs().max() / eager.gradients[0].abs().max()
    difference = abs(fused.value.item() - eager.value.item())
    return {**cost, "loss_difference": difference, "gradient_difference": apart.item()}


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


def draw(report: dict[str, Any], path: Path) -> None:
    """One page: the loss while training, the scores before and after, the embeddings' geometry, the loss' cost."""
    options, data, cost, steps = report["options"], report["data"], report["cost"], report["training"]["step"]
    title = f"fastcse demo: {options['model']} on {data['train']:,} docstrings, "
    title += f"{len(steps)} steps of {options['batch_size']}, backend {report['backend']}"
    with plots.page(path, 2, 2, size=(11, 7.6), title=title) as (training, retrieval, geometry, price):
        plots.curve(training, steps, report["training"]["loss"])
        training.set_title("Focal-InfoNCE loss on training batches")
        names = {"mrr_at_10": "MRR@10", "recall_at_1": "recall@1"}
        scores = {when: [report[when][name] for name in names] for when in BEFORE_AFTER}
        plots.columns(retrieval, list(names.values()), scores, BEFORE_AFTER)
        retrieval.set_title(f"Held-out retrieval, {data['held_out']:,} candidates")
        retrieval.legend(ncols=2, loc="upper right")
        places = {when: (report[when]["uniformity"], report[when]["alignment"]) for when in BEFORE_AFTER}
        arrow = {"arrowstyle": "-|>", "color": plots.MUTED, "shrinkA": 8, "shrinkB": 8}
        geometry.annotate("", xy=places["after"], xytext=places["before"], arrowprops=arrow)
        for when, place in places.items():
            geometry.scatter(*place, s=120, color=BEFORE_AFTER[when], label=when, zorder=3)
        geometry.margins(0.35)
        title = "Alignment and uniformity (down and left is better)"
        geometry.set(title=title, xlabel="uniformity", ylabel="alignment")
        geometry.legend()
        units = {"time": ("ms", "ms")} | ({} if cost["fused_mib"] is None else {"memory": ("mib", "MiB")})
        kinds = {"fused": f"fused ({cost['backend']})", "eager": "eager torch"}
        # Shares of eager, so that milliseconds and megabytes fit one axis; the labels have the numbers.
        values = {kinds[kind]: [cost[f"{kind}_{key}"] for key, _ in units.values()] for kind in kinds}
        eager, shown = values["eager torch"], [unit for _, unit in units.values()]
        shares = {kind: [value / most for value, most in zip(of, eager)] for kind, of in values.items()}
        labels = {kind: [f"{value:,.0f} {unit}" for value, unit in zip(of, shown)] for kind, of in values.items()}
        plots.columns(price, list(units), shares, dict(zip(values, (plots.STRONG, plots.EAGER))), labels)
        title = f"Focal loss, forward and backward, N = {cost['rows']}, D = {cost['width']}"
        price.set(title=title, ylabel="share of eager")
        price.legend(ncols=2, loc="upper right")
