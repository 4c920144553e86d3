"""Mined negatives as a table of texts, by index tensors throughout."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..ops import checks
from .negatives import MinedNegatives
from .pair_texts import PairTexts

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("triplet", "n-tuple", "labeled-pair", "labeled-list")
# The columns beside those of texts.
ADDED = {
    "triplet": re.compile("negative|scores"), "n-tuple": re.compile(r"negative_\d+|scores"),
    "labeled-pair": re.compile("label|score"), "labeled-list": re.compile("labels|scores"),
}  # fmt: skip
ROWS_AT_ONCE = 1 << 16
STRING_BYTES = (1 << 31) - 1  # an array of short strings holds so many


def check_format(output_format: str, names: tuple[str, str]) -> None:
    """A ValueError for an unknown format, or one with a column that is named like a column of texts."""
    checks.check_choice("output_format", output_format, FORMATS)
    for name in names:
        if ADDED[output_format].fullmatch(name):
            raise ValueError(
                f"output_format {output_format!r} adds columns named {ADDED[output_format].pattern}, but the dataset "
                f"has {name!r} already: rename it"
            )


def as_table(mined: MinedNegatives, texts: PairTexts, output_format: str, output_scores: bool) -> pa.Table:
    """A table with the columns, the types and the order of rows that sentence-transformers gives."""
    import pyarrow as pa

    check_format(output_format, texts.names)
    return pa.table(_BUILD[output_format](_Grid(mined, texts), output_scores))


class _Grid:
    """Positives by negatives: (P, n) scores and rows, of which those above -inf are there."""

    def __init__(self, mined: MinedNegatives, texts: PairTexts):
        self.mined, self.queries, self.corpus = mined, texts.queries, texts.corpus
        self.anchor_name, self.positive_name = texts.names
        self.pair_query, self.pair_column = mined.positives.queries, mined.positives.indices
        self.pair_scores = mined.positive_scores
        self.scores, self.columns = mined.scores[self.pair_query], mined.indices[self.pair_query]
        self.there = self.columns >= 0

    def texts(self, anchor: Tensor, positive: Tensor) -> dict[str, Any]:
        """The two columns of text that every format begins with."""
        return {self.anchor_name: take(self.queries, anchor), self.positive_name: take(self.corpus, positive)}


def take(texts: pa.Array, rows: Tensor) -> pa.ChunkedArray:
    """The texts of rows (n,), as strings, in pieces that strings of 32-bit offsets can hold."""
    import pyarrow as pa

    pieces = [texts.take(pa.array(part.numpy())).cast(pa.string()) for part in rows.split(_at_once(texts))]
    return pa.chunked_array(pieces, type=pa.string())


def _at_once(texts: pa.Array) -> int:
    """How many texts fit one array of strings, however long they are."""
    import pyarrow.compute as pc

    return max(1, min(ROWS_AT_ONCE, STRING_BYTES // max(1, pc.max(pc.binary_length(texts)).as_py() or 1)))


def _numbers(x: Tensor) -> pa.Array:
    import pyarrow as pa

    return pa.array((x.double() if x.is_floating_point() else x).contiguous().numpy())


def _lists(values: Any, counts: Tensor) -> pa.Array:
    """Lists of `counts` (n,) of the values each."""
    import pyarrow as pa

    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pa.ListArray.from_arrays(pa.array(offsets.numpy(), pa.int32()), values)


def _triplets(grid: _Grid, output_scores: bool) -> dict[str, Any]:
    pair, _ = there = grid.there.nonzero(as_tuple=True)
    table = grid.texts(grid.pair_query[pair], grid.pair_column[pair])
    table["negative"] = take(grid.corpus, grid.columns[there])
    if output_scores:
        both = torch.stack([grid.pair_scores[pair], grid.scores[there]], 1)
        table["scores"] = _lists(_numbers(both.flatten()), torch.full_like(pair, 2))
    return table


def _tuples(grid: _Grid, output_scores: bool) -> dict[str, Any]:
    pair = grid.there.all(1).nonzero()[:, 0]
    table = grid.texts(grid.pair_query[pair], grid.pair_column[pair])
    columns = grid.columns[pair]
    for i in range(columns.shape[1]):
        table[f"negative_{i + 1}"] = take(grid.corpus, columns[:, i])
    if output_scores:
        scores = torch.cat([grid.pair_scores[pair, None], grid.scores[pair]], 1)
        table["scores"] = _lists(_numbers(scores.flatten()), torch.full_like(pair, scores.shape[1]))
    return table


def _labeled_pairs(grid: _Grid, output_scores: bool) -> dict[str, Any]:
    found = (grid.mined.indices >= 0).nonzero(as_tuple=True)
    query = torch.cat([grid.pair_query, found[0]])
    order = query.argsort(stable=True)  # of each query the positives, then the negatives
    column = torch.cat([grid.pair_column, grid.mined.indices[found]])[order]
    table = grid.texts(query[order], column)
    if output_scores:
        return table | {"score": _numbers(torch.cat([grid.pair_scores, grid.mined.scores[found]])[order])}
    label = torch.cat([torch.ones_like(grid.pair_query), torch.zeros_like(found[0])])
    return table | {"label": _numbers(label[order])}


def _labeled_lists(grid: _Grid, output_scores: bool) -> dict[str, Any]:
    pair = grid.there.any(1).nonzero()[:, 0]
    there = torch.nn.functional.pad(grid.there[pair], (1, 0), value=True)
    column = torch.cat([grid.pair_column[pair, None], grid.columns[pair]], 1)[there]
    counts = there.sum(1)
    table = {
        grid.anchor_name: take(grid.queries, grid.pair_query[pair]),
        grid.positive_name: _text_lists(grid.corpus, column, counts),
    }
    if output_scores:
        scores = torch.cat([grid.pair_scores[pair, None], grid.scores[pair]], 1)[there]
        return table | {"scores": _lists(_numbers(scores), counts)}
    label = torch.zeros_like(there, dtype=torch.int64)
    label[:, 0] = 1
    return table | {"labels": _lists(_numbers(label[there]), counts)}


def _text_lists(texts: pa.Array, rows: Tensor, counts: Tensor) -> pa.ChunkedArray:
    """Lists of texts, some rows at a time: a list's strings lie in one array."""
    import pyarrow as pa

    step = max(1, _at_once(texts) // (int(counts.max()) if counts.numel() else 1))
    parts = counts.split(step)
    some = rows.split([int(part.sum()) for part in parts])
    pieces = [_lists(take(texts, rows), part) for rows, part in zip(some, parts)]
    return pa.chunked_array(pieces, type=pa.list_(pa.string()))


_BUILD: dict[str, Callable[[_Grid, bool], dict[str, Any]]] = {
    "triplet": _triplets, "n-tuple": _tuples, "labeled-pair": _labeled_pairs, "labeled-list": _labeled_lists,
}  # fmt: skip
