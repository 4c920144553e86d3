"""Mining with ONE known positive a query where there are 22: how many of the mined negatives are relevant in truth."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from .collection import Collection
from .negatives import Filters, mined

FILTERS = (
    Filters(),
    *(Filters(range_min=n) for n in (10, 30, 50)),
    *(Filters(max_score=x) for x in (0.8, 0.6, 0.5)),
    *(Filters(absolute_margin=x) for x in (0.05, 0.1, 0.2)),
    *(Filters(relative_margin=x) for x in (0.05, 0.1, 0.2, 0.3)),
    Filters(range_min=10, relative_margin=0.05),
    Filters(range_min=10, relative_margin=0.2),
)
SETTINGS = {"model": "minilm", "tokens": 256, "negatives": 10, "range_max": 100, "draws": [1, 2, 3, 4, 5]}


def stress(data: Collection, rows: dict[str, Tensor]) -> list[dict[str, Any]]:
    """One row for each setting of the filters, over all draws of the known positive."""
    return [count_false(data, rows, filters._replace(range_max=SETTINGS["range_max"])) for filters in FILTERS]


def count_false(data: Collection, rows: dict[str, Tensor], filters: Filters) -> dict[str, Any]:
    """What is mined, and how much of it the judgements call relevant."""
    number = {document: i for i, document in enumerate(data.corpus)}
    relevant = [[number[document] for document in data.relevant[query]] for query in data.queries]
    wanted = SETTINGS["negatives"]
    negatives = false = short = 0
    for draw in SETTINGS["draws"]:
        choose = random.Random(draw)
        known = [[choose.choice(documents)] for documents in relevant]
        pairs = torch.tensor([(query, positive) for query, (positive,) in enumerate(known)])
        found = mined(rows["query"], rows["corpus"], pairs, known, filters, wanted)
        kept = [[x for x in row if x >= 0] for row in found.tolist()]
        negatives += sum(map(len, kept))
        false += sum(x in relevant[query] for query, row in enumerate(kept) for x in row)
        short += sum(len(row) < wanted for row in kept)
    queries = len(relevant) * len(SETTINGS["draws"])
    return {**filters._asdict(), "filters": filters._replace(range_max=None).text, "wanted": queries * wanted,
            "negatives": negatives, "false": false, "queries": queries, "short_queries": short}  # fmt: skip
