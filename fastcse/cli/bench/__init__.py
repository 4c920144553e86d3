"""`fastcse bench`: what an operation costs here, beside every peer that is installed."""

from __future__ import annotations

import typer

from .clusters import kmeans
from .loss import loss
from .mining import mining
from .nearest import nearest
from .rows import rows
from .train import train

bench = typer.Typer(name="bench", help="Measure an operation beside every peer that is installed.",
                    no_args_is_help=True, add_completion=False)  # fmt: skip
bench.command("loss")(loss)
bench.command("topk")(nearest)
bench.command("mining")(mining)
bench.command("rows")(rows)
bench.command("kmeans")(kmeans)
bench.command("train")(train)
