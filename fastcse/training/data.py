"""The text of a run: a corpus of sentences (one column) or pairs and triplets (two or three), hard negatives that
`fastcse mine` wrote for them, and a view."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from ..errors import InputError, OptionError
from ..files import read_lines, refuse_tables
from .objectives import get_objective
from .options import TrainOptions
from .recipes.views import apply_view

NEGATIVE = re.compile(r"negative(_\d+)?")  # `negative_score` and the like are not text
ARGUMENT = "--hard-negatives"
Key = tuple[str, ...]  # (anchor, positive), or (anchor,) for a corpus


def read_text(options: TrainOptions) -> tuple[Dataset, list[str]]:
    """The text of a run with its mined negatives and its view, and in a sentence each what was left out.

    Raises:
        InputError: a file that is missing or damaged, or too little text for a batch or for the objective.
    """
    if options.corpus is not None:
        path, argument, dataset = options.corpus, "--corpus", read_corpus(options.corpus)
    else:
        path, argument, dataset = options.pairs, "--pairs", read_pairs(options.pairs)
    notes: list[str] = []
    if options.hard_negatives is not None:
        dataset, notes = add_hard_negatives(dataset, options.hard_negatives)
    dataset = apply_view(dataset, options.view, rate=options.view_rate, seed=options.seed)
    columns = dataset.column_names
    if sum(name.startswith("negative") for name in columns) < get_objective(options.objective).columns:
        third = f" {options.objective} needs a third column of text, and "
        raise OptionError("objective", third, "pairs", f" {options.pairs!r} has {', '.join(columns)}")
    check_fills_a_batch(dataset, options.batch_size, path, argument)
    return dataset, notes


def read_corpus(path: str | Path, argument: str = "--corpus") -> Dataset:
    """One sentence a line, plain or `.gz`; blank lines are passed over. One column, `anchor`.

    The positive of a sentence is the sentence itself under another dropout mask (SimCSE, unsupervised).
    A table or JSON, by its name, is an InputError: its lines are no sentences.
    """
    refuse_tables(path, argument)
    lines = (line.strip() for line in read_lines(path, argument))
    return Dataset.from_dict({"anchor": [line for line in lines if line]})


def read_pairs(path: str | Path, argument: str = "--pairs") -> Dataset:
    """Tab-separated anchor, positive and, if there is a third column, a hard negative; plain or `.gz`, no quoting.

    A first line that names the columns `anchor` and `positive` is a header: then the columns are found by name, every
    other column that starts with `negative` is a hard negative, and the rest is ignored.

    Raises:
        InputError: a row with the wrong number of columns or an empty cell (the line is named).
    """
    lines = read_lines(path, argument)
    header = lines[0].split("\t")
    if {"anchor", "positive"} <= set(header):
        names = ["anchor", "positive", *(name for name in header if name.startswith("negative"))]
        where, width, first = [header.index(name) for name in names], len(header), 1
    else:
        names, width, first = ["anchor", "positive", "negative"][: len(header)], len(header), 0
        where = range(width)
    if width < 2 or (first == 0 and width > 3):
        raise InputError(f"{argument} {str(path)!r} has {width} columns: expected 2 or 3, or a header with their names")
    rows = [
        cells(line, where, width, f"{argument} {str(path)!r} line {number}")
        for number, line in enumerate(lines[first:], first + 1)
        if line.strip()
    ]
    return Dataset.from_dict({name: list(column) for name, column in zip(names, zip(*rows))} if rows else {})


def cells(line: str, where: range | list[int], width: int, place: str) -> list[str]:
    """The stripped cells of a row at the columns `where`; an InputError if one is empty or the width is another."""
    row = [cell.strip() for cell in line.split("\t")]
    if len(row) != width:
        raise InputError(f"{place} has {len(row)} columns where the first line has {width}")
    chosen = [row[column] for column in where]
    if not all(chosen):
        raise InputError(f"{place} has an empty cell: expected text in column {where[chosen.index('')] + 1}")
    return chosen


def check_fills_a_batch(dataset: Dataset, batch_size: int, path: str, argument: str) -> None:
    """An InputError unless the distinct anchors fill one batch: a batch never holds a sentence twice."""
    distinct = len(set(dataset["anchor"])) if "anchor" in dataset.column_names else 0
    more = f"--batch-size {batch_size} is more than the"
    if distinct < batch_size:
        raise InputError(f"{more} {distinct} distinct sentences of {argument} {path!r}")
    taken: set[str] = set()
    apart = 0  # rows that a batch can take, from the first one on, without holding a text twice
    for row in zip(*(dataset[name][:] for name in dataset.column_names)):
        if taken.isdisjoint(row):
            taken.update(row)
            apart += 1
        if apart == batch_size:
            return
    raise InputError(f"{more} {apart} rows of {argument} {path!r} that share no text, positives and negatives included")


def add_hard_negatives(dataset: Dataset, path: str | Path) -> tuple[Dataset, list[str]]:
    """Give every row of `dataset` its mined negatives: one row for each row that the mined file has for it. Returns
    the columns anchor, positive and negatives, and in a sentence each what was left out.

    Rows with a column `positive` are joined by (anchor, positive), and keep the negatives they came with. Rows of a
    corpus are joined by the anchor alone, whatever the file's `positive` is: the positive of a sentence is the sentence
    itself, under another dropout mask. A row without a mined negative is left out, because the loss takes the same
    number of negatives for every row.

    Args:
        path: JSON lines or a tab-separated table with a header, plain or `.gz`: `anchor`, `positive`, and `negative` or
            `negative_1`, `negative_2`, ...; other columns are ignored.

    Raises:
        InputError: a damaged line (it is named), no column of negatives, or no negatives for any row of `dataset`.

    Example:
        >>> pairs = read_pairs("pairs.tsv")                                          # doctest: +SKIP
        >>> add_hard_negatives(pairs, "mined.jsonl")[0].column_names                 # doctest: +SKIP
        ['anchor', 'positive', 'negative']
    """
    by = ["anchor", "positive"] if "positive" in dataset.column_names else ["anchor"]
    own = [name for name in dataset.column_names if name.startswith("negative")]
    mined = _read(path, by)
    rows, without, used = [], 0, set()
    for row in zip(*(dataset[name][:] for name in (*by, *own))):
        key = row[: len(by)]
        used.add(key)
        without += key not in mined
        rows += [(key[0], key[-1], *row[len(by) :], *negatives) for negatives in mined.get(key, ())]
    what = "pairs" if len(by) == 2 else "sentences"
    if not rows:
        none = f"{ARGUMENT} {str(path)!r} has a negative for none of the {len(dataset)} {what}"
        raise InputError(f"{none}: expected the file that fastcse mine wrote for them")
    unused = sum(len(negatives) for key, negatives in mined.items() if key not in used)
    notes = _note(without, len(dataset), f"{what} have no mined negatives and are left out")
    notes += _note(unused, sum(map(len, mined.values())), f"mined rows belong to none of the {what} and are not used")
    count = len(rows[0]) - 2
    names = ["negative"] if count == 1 else [f"negative_{i}" for i in range(1, count + 1)]
    columns = zip(("anchor", "positive", *names), zip(*rows))
    return Dataset.from_dict({name: list(column) for name, column in columns}), notes


def _note(some: int, all: int, text: str) -> list[str]:
    return [f"{some} of {all} {text}"] if some else []


def _read(path: str | Path, by: list[str]) -> dict[Key, dict[tuple[str, ...], None]]:
    """The distinct tuples of negatives of each key, in the order of the file."""
    lines = read_lines(path, ARGUMENT)
    mined: dict[Key, dict[tuple[str, ...], None]] = {}
    place = f"{ARGUMENT} {str(path)!r} line"
    for number, row in (_json_rows if lines[0].lstrip().startswith("{") else _table_rows)(lines, by, place):
        key, negatives = row[: len(by)], row[len(by) :]
        for name, text in zip(by, key):
            if text in negatives:
                raise InputError(f"{place} {number} has its own {name} {text[:40]!r} as a negative")
        mined.setdefault(key, {})[negatives] = None
    return mined


def _columns(names: list[str], by: list[str], place: str) -> list[str]:
    """The columns that are read: those of the key, then the negatives."""
    negatives = [name for name in names if NEGATIVE.fullmatch(name)]
    if not negatives or not set(by) <= set(names):
        wanted = f"expected {', '.join(by)}, and negative or negative_1, negative_2, ..."
        got = f"{place} has the columns {', '.join(names)[:200]}"
        raise InputError(f"{got}: {wanted} (fastcse mine --format triplet or n-tuple)")
    return [*by, *negatives]


def _table_rows(lines: list[str], by: list[str], place: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    header = lines[0].split("\t")
    where = [header.index(name) for name in _columns(header, by, f"{place} 1")]
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            yield number, tuple(cells(line, where, len(header), f"{place} {number}"))


def _json_rows(lines: list[str], by: list[str], place: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    columns: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _object(line, f"{place} {number}")
        columns = columns or _columns(list(row), by, f"{place} {number}")
        yield number, tuple(_text(row.get(name), name, f"{place} {number}") for name in columns)


def _object(line: str, place: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InputError(f"{place} is {type(row).__name__} {line.strip()[:40]!r}: expected a JSON object")
    return row


def _text(value: object, name: str, place: str) -> str:
    got = f"{place} has {name} {json.dumps(value)[:40]}"
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{got}: expected text")
    # A lone surrogate is valid JSON and no text: it would end the run in the tokenizer.
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{got}: half of a surrogate pair is not text")
    return value.strip()
