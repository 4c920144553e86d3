"""The text of a run: a corpus of sentences (one column) or pairs and triplets (two or three), and what a run adds."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from ..errors import InputError, OptionError
from ..files import read_lines, refuse_tables
from .objectives import get_objective
from .options import TrainOptions


def read_text(options: TrainOptions) -> tuple[Dataset, list[str]]:
    """The text of a run with its mined negatives and its view, and in a sentence each what was left out.

    Raises:
        InputError: a file that is missing or damaged, or too little text for a batch or for the objective.
    """
    from .mined_file import add_hard_negatives  # reads tables as this file does
    from .recipes.views import apply_view  # the room of recipes is above

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
        raise OptionError(
            "objective",
            f" {options.objective} needs a third column of text, and ",
            "pairs",
            f" {options.pairs!r} has {', '.join(columns)}",
        )
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
        names, where, width, first = (
            ["anchor", "positive", "negative"][: len(header)],
            range(len(header)),
            len(header),
            0,
        )
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
    if distinct < batch_size:
        raise InputError(
            f"--batch-size {batch_size} is more than the {distinct} distinct sentences of {argument} {path!r}"
        )
    apart = _rows_apart(dataset, batch_size)
    if apart < batch_size:
        raise InputError(
            f"--batch-size {batch_size} is more than the {apart} rows of {argument} {path!r} that share no text, "
            "positives and negatives included"
        )


def _rows_apart(dataset: Dataset, enough: int) -> int:
    """How many rows a batch can take without holding a text twice, counted from the first row on up to `enough`."""
    taken: set[str] = set()
    count = 0
    for row in zip(*(dataset[name][:] for name in dataset.column_names)):
        if taken.isdisjoint(row):
            taken.update(row)
            count += 1
        if count == enough:
            break
    return count
