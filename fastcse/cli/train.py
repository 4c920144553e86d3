"""`fastcse train`: train a sentence encoder with a fused loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..training.options import TrainOptions, options_of
from .console import Json, facts_table, quiet_stdout, show, shown
from .options import command

if TYPE_CHECKING:
    from ..training.report import TrainReport


@command(TrainOptions)
def train(given: dict[str, Any], as_json: Json = False) -> None:
    """Train a sentence encoder on --corpus (SimCSE: two dropout masks of a sentence) or on --pairs.

    With --hard-negatives the mined negatives of a pair join those of the batch; pairs without any are left out.
    """
    options = options_of(given)
    with quiet_stdout():
        from ..training import run

        report = run.train(options)
    if report.rank == 0:
        show(report.as_dict(), as_json, table_of(report))


def table_of(report: TrainReport) -> Table:
    """The report as a table."""
    options = report.options
    values = options["objective_options"].items()
    chosen = ", ".join(f"{name} {value if isinstance(value, str) else f'{value:g}'}" for name, value in values)
    scores = f"{shown(report.dev_before)} before, {shown(report.dev_best)} at step {report.best_step}"
    similar = f"positives {report.positive_similarity:.3f}, of negatives {report.negative_similarity:.3f}"
    rows = {
        "recipe": options["recipe"],
        "objective": f"{options['objective']} ({chosen})",
        "backend": str(report.backend),
        "model": f"{options['model']}, pooling {options['pooling'] or 'its own'}",
        "text": f"{options['corpus'] or options['pairs']}, {report.sentences:,} rows",
        "hard negatives": options["hard_negatives"] and "; ".join((options["hard_negatives"], *report.notes)),
        "bank": report.bank and _bank(report),
        "processes": str(report.processes) if report.processes > 1 else None,
        "steps": _steps(report),
        "loss": f"{report.loss[0][1]:.4f} first, {report.loss[-1][1]:.4f} last",
        "last batch": f"accuracy {report.accuracy:.3f}, similarity of {similar}",
        "hinge": _hinge(report.stats) if "quadruplet" in report.stats else None,
        "clusters": options["cluster_options"] and _clusters(options["cluster_options"], report.stats),
        "STS-B dev": scores if report.dev else "not measured: no --sts-dir, so the last step is saved",
        "saved": f"{report.saved}; its picture is summary.png, its log log.jsonl",
    }
    return facts_table({name: value for name, value in rows.items() if value}, "training")


def _steps(report: TrainReport) -> str:
    batch, speed = report.options["batch_size"], report.new_steps * report.options["batch_size"]
    steps, asked = report.steps, report.options["max_steps"]
    early = "" if steps >= asked else f" of {asked}, stopped early,"
    return f"{steps}{early} of batch {batch}, {report.seconds:.0f} s, {speed / max(report.seconds, 1e-9):.0f} rows/s"


def _bank(report: TrainReport) -> str:
    options = report.options["bank_options"]
    refresh = options["refresh"]
    upkeep = f"refreshed every {refresh} steps" if isinstance(refresh, int) else f"refresh {refresh}"
    return f"{report.bank:,} texts, mean of {options['neighbours']} behind {options['skip']}, {upkeep}"


def _clusters(options: dict, stats: dict[str, float]) -> str:
    text = f"{options['clusters']}, {options['cluster_mode']} {options['cluster_rate']:g}"
    if "largest_cluster" not in stats:
        return f"{text}; not started: the mean cosine stayed above {options['cluster_threshold']:g}"
    sizes = f"largest {stats['largest_cluster']:.0f}, empty {stats['empty_clusters']:.0f}"
    return f"{text}; in the last batch {sizes}, {100 * stats['false_share']:.1f}% of pairs in one cluster"


def _hinge(stats: dict[str, float]) -> str:
    parts = f"adversarial positive {stats['adversarial_similarity']:.3f}"
    parts += f", batch negative {stats['batch_similarity']:.3f}, corpus negative {stats['corpus_similarity']:.3f}"
    return f"{stats['quadruplet']:.4f}, above 0 in {100 * stats['active_share']:.0f}% of rows; similarities: {parts}"
