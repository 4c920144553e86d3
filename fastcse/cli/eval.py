"""`fastcse eval`: STS scores of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..options import build, check, option
from ..training.options import POOLINGS
from .console import Json, quiet_stdout, show, shown, table
from .options import command

if TYPE_CHECKING:
    from ..evaluation.evaluators import StsResult


@dataclass(frozen=True)
class EvalOptions:
    """What is scored, and how it is encoded."""

    model: str = option(help="A saved model, a name on the hub, or minilm.", argument=True)
    sts_dir: str = option(help="Folder of .tsv or .tsv.gz files: sentence1, sentence2, score.", metavar="DIR")
    pooling: str | None = option(None, "Override the model's own pooling.", choices=POOLINGS)
    batch_size: int = option(64, "Sentences encoded at once.", least=1)

    def __post_init__(self):
        check(self)


@command(EvalOptions)
def evaluate(given: dict[str, Any], as_json: Json = False) -> None:
    """Score MODEL on every STS file below a folder: Spearman x 100 over all pairs, alignment and uniformity."""
    from ..evaluation.sts import find_sts

    options = build(EvalOptions, given)
    sets = find_sts(options.sts_dir)  # before the libraries that take seconds to load
    with quiet_stdout():
        from ..evaluation.evaluators import evaluate_sts
        from ..training.encoders import load_encoder

        encoder = load_encoder(options.model, pooling=options.pooling, argument="MODEL")
        results = evaluate_sts(encoder, sets, batch_size=options.batch_size)
    report = asdict(options) | {"mean_spearman": mean_spearman(results), "files": [asdict(one) for one in results]}
    show(report, as_json, _table(report, results))


def mean_spearman(results: list[StsResult]) -> float | None:
    """The plain mean of the scores, each already rounded to two decimals, as in the SimCSE tables."""
    scores = [one.spearman for one in results if one.spearman is not None]
    return round(sum(scores) / len(scores), 2) if scores else None


def _table(report: dict[str, Any], results: list[StsResult]) -> Table:
    columns = ("file", ">pairs", ">Spearman x 100", ">alignment", ">uniformity")
    rows = (
        (one.name, f"{one.pairs:,}", shown(one.spearman), shown(one.alignment, 4), shown(one.uniformity, 4))
        for one in results
    )
    mean = [("mean", "", shown(report["mean_spearman"]))] if len(results) > 1 else []
    return table(f"{report['model']} on {report['sts_dir']}", columns, rows, mean)
