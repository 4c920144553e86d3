"""The texts of a mining run, each once, and which of them belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .positives import Positives

if TYPE_CHECKING:
    import pyarrow as pa


class PairTexts(NamedTuple):
    """Distinct texts in order of first occurrence.

    queries, corpus: the texts; the corpus is what the caller gave, then the positives.
    positives:       of each query, in the order of the dataset.
    own:             (Q,) int64 the row of the corpus that has the query's own text, or -1.
    query_place:     (Q,) int64 the first row of the dataset with a query.
    corpus_place:    (M,) int64 the same of a text of the corpus, in the caller's corpus followed by all positives.
    names:           of the columns of anchors and positives.
    rows, more:      how many rows the dataset has, and how many texts the caller's corpus.
    """

    queries: pa.Array
    corpus: pa.Array
    positives: Positives
    own: Tensor
    query_place: Tensor
    corpus_place: Tensor
    names: tuple[str, str]
    rows: int
    more: int


def pair_texts(
    anchor: pa.ChunkedArray | Sequence[str],
    positive: pa.ChunkedArray | Sequence[str],
    corpus: pa.ChunkedArray | Sequence[str] | None = None,
    names: tuple[str, str] = ("anchor", "positive"),
) -> PairTexts:
    """The texts of pairs, row by row, and of a corpus of further candidates."""
    import pyarrow as pa
    import pyarrow.compute as pc

    anchor, positive = (_strings(f"dataset column {name!r}", x) for name, x in zip(names, (anchor, positive)))
    more = _strings("corpus", pa.array([]) if corpus is None else corpus)
    queries, query = _distinct(anchor)
    texts, row = _distinct(pa.concat_arrays([more, positive]))
    own = pc.fill_null(pc.index_in(queries, value_set=texts), -1)
    return PairTexts(
        queries,
        texts,
        Positives.from_pairs(query, row[len(more) :], len(queries)),
        torch.from_numpy(own.to_numpy().astype("int64")),
        _first_place(query),
        _first_place(row),
        names,
        len(anchor),
        len(more),
    )


def read_pairs(
    dataset: Any, anchor_column_name: str | None, positive_column_name: str | None, corpus: Sequence[str] | None
) -> PairTexts:
    """The texts of a `datasets.Dataset` or `IterableDataset`, which is read to its end, and of a list.

    Raises:
        ValueError: the dataset is empty, has no such columns, or something in them is no text.
    """
    names = _column_names(dataset, anchor_column_name, positive_column_name)
    if hasattr(dataset, "with_format") and hasattr(dataset, "__len__"):
        columns = [text_column(dataset, name) for name in names]
    else:
        rows = [(row[names[0]], row[names[1]]) for row in dataset]
        columns = [[row[i] for row in rows] for i in (0, 1)]
    if not len(columns[0]):
        raise ValueError("dataset must have at least one row, got 0")
    return pair_texts(*columns, corpus, names)


def text_column(dataset: Any, name: str) -> pa.ChunkedArray:
    """A column of a `datasets.Dataset`, not copied."""
    return dataset.select_columns([name]).with_format("arrow")[:].column(name)


def _column_names(dataset: Any, anchor: str | None, positive: str | None) -> tuple[str, str]:
    there = getattr(dataset, "column_names", None) or list(next(iter(dataset), {}))
    for name, value in (("anchor_column_name", anchor), ("positive_column_name", positive)):
        if value is not None and value not in there:
            raise ValueError(f"{name} must be one of the columns {', '.join(there)}, got {value!r}")
    if len(there) < 2:
        raise ValueError(f"dataset must have two columns, anchor and positive, got {', '.join(there) or 'none'}")
    names = anchor or there[0], positive or there[1]
    if names[0] == names[1]:
        raise ValueError(f"anchor_column_name and positive_column_name must be two columns, got {names[0]!r} for both")
    return names


def _strings(name: str, values: Any) -> pa.Array:
    """One array with 64-bit offsets: all the texts of a corpus together may be longer than 2 GiB."""
    import pyarrow as pa

    if not isinstance(values, pa.Array | pa.ChunkedArray):
        try:
            values = pa.array(list(values), type=pa.large_string())
        except (pa.ArrowTypeError, pa.ArrowInvalid, TypeError) as error:
            raise ValueError(f"{name} must hold texts: {error}") from None
    kind = values.type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or (not len(values) and pa.types.is_null(kind))
    if not texts:
        raise ValueError(f"{name} must hold texts, got {kind}")
    if values.null_count:
        raise ValueError(f"{name} must hold a text in every row, got none in {values.null_count} of {len(values)}")
    values = values.cast(pa.large_string())
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _distinct(texts: pa.Array) -> tuple[pa.Array, Tensor]:
    """The distinct texts in their order, and for each text which it is."""
    coded = texts.dictionary_encode()
    return coded.dictionary, torch.from_numpy(coded.indices.to_numpy().astype("int64"))


def _first_place(codes: Tensor) -> Tensor:
    order = codes.argsort(stable=True)
    return order[torch.nn.functional.pad(codes[order].diff() != 0, (1, 0), value=True)]
