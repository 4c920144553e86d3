"""Mined negatives as a table of texts, by index tensors throughout."""

from __future__ import annotations

import re
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
    query, positive, positive_scores = mined.positives.queries, mined.positives.indices, mined.positive_scores
    anchor_name, positive_name = texts.names
    if output_format == "labeled-pair":  # of each query the positives, then the negatives
        found = (mined.indices >= 0).nonzero(as_tuple=True)
        order = torch.cat([query, found[0]]).argsort(stable=True)
        columns = torch.cat([positive, mined.indices[found]])[order]
        table = {
            anchor_name: take(texts.queries, torch.cat([query, found[0]])[order]),
            positive_name: take(texts.corpus, columns),
        }
        if output_scores:
            return pa.table(table | {"score": _numbers(torch.cat([positive_scores, mined.scores[found]])[order])})
        return pa.table(table | {"label": _numbers((order < len(query)).long())})
    # (P, 1 + n): each positive, then the negatives of its query.
    columns = torch.cat([positive[:, None], mined.indices[query]], 1)
    scores = torch.cat([positive_scores[:, None], mined.scores[query]], 1)
    there = columns >= 0
    if output_format == "labeled-list":
        pair = there[:, 1:].any(1).nonzero()[:, 0]
        there, counts = there[pair], there[pair].sum(1)
        label = torch.zeros_like(columns).index_fill_(1, torch.tensor([0], device=columns.device), 1)
        name, values = ("scores", scores) if output_scores else ("labels", label)
        lists = _text_lists(texts.corpus, columns[pair][there], counts)
        table = {anchor_name: take(texts.queries, query[pair]), positive_name: lists}
        return pa.table(table | {name: _lists(_numbers(values[pair][there]), counts)})
    if output_format == "triplet":
        names = [positive_name, "negative"]
        pair, place = there[:, 1:].nonzero(as_tuple=True)
        columns, scores = (torch.stack([x[pair, 0], x[pair, place + 1]], 1) for x in (columns, scores))
    else:
        names = [positive_name, *(f"negative_{i}" for i in range(1, columns.shape[1]))]
        pair = there.all(1).nonzero()[:, 0]
        columns, scores = columns[pair], scores[pair]
    table = {anchor_name: take(texts.queries, query[pair])}
    table |= {name: take(texts.corpus, column) for name, column in zip(names, columns.unbind(1))}
    if output_scores:
        table["scores"] = _lists(_numbers(scores.flatten()), torch.full_like(pair, scores.shape[1]))
    return pa.table(table)


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


def _text_lists(texts: pa.Array, rows: Tensor, counts: Tensor) -> pa.ChunkedArray:
    """Lists of texts, some rows at a time: a list's strings lie in one array."""
    import pyarrow as pa

    step = max(1, _at_once(texts) // (int(counts.max()) if counts.numel() else 1))
    parts = counts.split(step)
    some = rows.split([int(part.sum()) for part in parts])
    pieces = [_lists(take(texts, rows), part) for rows, part in zip(some, parts)]
    return pa.chunked_array(pieces, type=pa.list_(pa.string()))
