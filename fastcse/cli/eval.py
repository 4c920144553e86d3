"""`fastcse eval`: STS scores of a model."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .console import Json, one_sentence_errors, quiet_stdout, show, shown, whole_option

if TYPE_CHECKING:
    from ..evaluation.spearman import StsResult


@one_sentence_errors
def evaluate(
    model: Annotated[str, typer.Argument(help="A saved model, a name on the hub, or minilm.", show_default=False)],
    sts_dir: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Folder of .tsv or .tsv.gz files: sentence1, sentence2, score.", show_default=False
        ),
    ],
    pooling: Annotated[str | None, typer.Option(metavar="cls|mean", help="Override the model's own pooling.")] = None,
    batch_size: Annotated[int, whole_option("Sentences encoded at once.")] = 64,
    as_json: Json = False,
) -> None:
    """Score MODEL on every STS file below a folder: Spearman x 100 over all pairs, alignment and uniformity."""
    from ..evaluation.sts import find_sts
    from ..training.options import check_batch_size, check_pooling

    check_pooling(pooling)
    check_batch_size(batch_size, lowest=1)
    sets = find_sts(sts_dir)  # before the libraries that take seconds to load
    with quiet_stdout():
        from ..evaluation.spearman import evaluate_sts
        from ..training.encoders import load_encoder

        encoder = load_encoder(model, pooling=pooling, argument="MODEL")
        results = evaluate_sts(encoder, sets, batch_size=batch_size)
    report = {"model": model, "pooling": pooling, "sts_dir": sts_dir, "mean_spearman": mean_spearman(results)}
    show({**report, "files": [asdict(one) for one in results]}, as_json, _table(report, results))


def mean_spearman(results: list[StsResult]) -> float | None:
    """The plain mean of the scores, each already rounded to two decimals, as in the SimCSE tables."""
    scores = [one.spearman for one in results if one.spearman is not None]
    return round(sum(scores) / len(scores), 2) if scores else None


def _table(report: dict[str, Any], results: list[StsResult]) -> Table:
    table = Table(title=f"{report['model']} on {report['sts_dir']}", title_justify="left")
    table.add_column("file")
    for column in ("pairs", "Spearman x 100", "alignment", "uniformity"):
        table.add_column(column, justify="right")
    for one in results:
        scores = (shown(one.spearman), shown(one.alignment, 4), shown(one.uniformity, 4))
        table.add_row(one.name, f"{one.pairs:,}", *scores)
    if len(results) > 1:
        table.add_section()
        table.add_row("mean", "", shown(report["mean_spearman"]))
    return table
