"""What a mining run did, in numbers and as tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .negatives import MinedNegatives

# Quantiles of torch take at most 2^24 numbers.
MOST_SORTED = 1 << 24
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "median": torch.median,
    "std": torch.std,
    "min": torch.min,
    "25%": lambda x: _quantile(x, 0.25),
    "50%": lambda x: _quantile(x, 0.5),
    "75%": lambda x: _quantile(x, 0.75),
    "max": torch.max,
}


def _quantile(x: Tensor, q: float) -> Tensor:
    return x[:: -(-x.shape[0] // MOST_SORTED)].quantile(q)


def summarize(mined: MinedNegatives) -> dict[str, Any]:
    """The run in numbers, fit for JSON.

    Returns:
        queries, positives, negatives: how many; short: queries with fewer than num_negatives; widened; window;
        filters: {name: {dropped, of}}; scores: {positive, negative, difference: {count, mean, ..., max}}, a statistic
        being None where there is nothing to take it of. Each negative counts once for every positive of its query.
    """
    found = mined.scores[mined.positives.queries]  # (P, n)
    there = found > -torch.inf
    difference = (mined.positive_scores[:, None] - found)[there]
    scores = {"positive": mined.positive_scores, "negative": found[there], "difference": difference}
    short = (mined.indices < 0).any(1)
    return {
        "queries": mined.indices.shape[0],
        "positives": mined.positive_scores.shape[0],
        "negatives": int((mined.indices >= 0).sum()),
        "short": int(short.sum()),
        "widened": mined.widened,
        "window": list(mined.window),
        "filters": {name: {"dropped": dropped, "of": of} for name, (dropped, of) in mined.counts.items()},
        "scores": {name: {"count": x.shape[0], **_statistics(x)} for name, x in scores.items()},
    }


def _statistics(x: Tensor) -> dict[str, float | None]:
    numbers = {
        name: function(x).item() if x.numel() > (name == "std") else None for name, function in STATISTICS.items()
    }
    return {name: None if value != value else value for name, value in numbers.items()}


def report_table(mined: MinedNegatives, title: str = "Hard negatives") -> Any:
    """A rich table: what each filter dropped, then the scores of positives and negatives and their differences.

    `rich.print(report_table(mined))` shows it; `summarize` gives the same as numbers.
    """
    from rich.console import Group
    from rich.table import Table

    summary = summarize(mined)
    start, end = mined.window
    filters = Table("filter", title=f"{title}: {summary['queries']:,} queries, ranks {start} to {end - 1}")
    for name in ("dropped", "of", "share"):
        filters.add_column(name, justify="right")
    for name, (dropped, of) in mined.counts.items():
        filters.add_row(name, f"{dropped:,}", f"{of:,}", f"{dropped / of:.2%}" if of else "-")
    filters.add_row("queries searched further", f"{summary['widened']:,}", f"{summary['queries']:,}", "")
    filters.add_row("queries with too few", f"{summary['short']:,}", f"{summary['queries']:,}", "")
    scores = Table("score")
    for name in summary["scores"]:
        scores.add_column(name, justify="right")
    for statistic in ("count", *STATISTICS):
        row = [numbers[statistic] for numbers in summary["scores"].values()]
        scores.add_row(
            statistic, *("-" if x is None else f"{x:,}" if statistic == "count" else f"{x:.4f}" for x in row)
        )
    return Group(filters, scores)
