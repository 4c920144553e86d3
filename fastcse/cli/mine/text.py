"""Text files in, mined rows out."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from datasets import Dataset

from ...errors import InputError
from ...training.data import read_corpus, read_pairs
from ...training.options import flag
from .options import MineOptions

ROWS_AT_ONCE = 1000


class Texts(NamedTuple):
    """`anchor` and `positive` are pairs, row by row; `corpus` holds further candidates, or is None."""

    anchor: list[str]
    positive: list[str]
    corpus: list[str] | None


def read_texts(options: MineOptions) -> Texts:
    """The texts of a run.

    Raises:
        InputError: a file that is missing, empty or no text, or a text that the output cannot hold.
    """
    lines = None if options.corpus is None else _checked(read_corpus(options.corpus)["anchor"][:], "corpus", options)
    if options.pairs is None:
        return Texts(lines, lines, None)
    pairs = read_pairs(options.pairs)
    if not len(pairs):
        raise InputError(f"--pairs {options.pairs!r} holds no pair below its header")
    return Texts(*(_checked(pairs[name][:], "pairs", options) for name in ("anchor", "positive")), lines)


def _checked(texts: list[str], name: str, options: MineOptions) -> list[str]:
    file = f"{flag(name)} {getattr(options, name)!r}"
    for text in texts:
        if "\0" in text:
            raise InputError(f"{file} is binary: the text {text[:20]!r} holds a zero byte")
        if "\t" in text and options.ending == ".tsv":
            raise InputError(f"{file} holds a tab in {text[:40]!r}, which --output {options.output!r} cannot: expected "
                             "an --output in .jsonl")  # fmt: skip
    return texts


def row_writer(dataset: Dataset, options: MineOptions) -> Callable[[BinaryIO], None]:
    """A function that writes `dataset` to a binary file, as JSON lines or as a table with a header, packed for `.gz`.

    The same rows give the same bytes. A list of scores is written to a table as JSON.
    """

    def write(file: BinaryIO) -> None:
        if options.output.endswith(".gz"):
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                _write_rows(dataset, options.ending, packed)
        else:
            _write_rows(dataset, options.ending, file)

    return write


def _write_rows(dataset: Dataset, ending: str, file: Any) -> None:
    names = dataset.column_names
    line = _json_line if ending == ".jsonl" else _table_line
    if ending == ".tsv":
        file.write(("\t".join(names) + "\n").encode())
    for batch in dataset.iter(ROWS_AT_ONCE):
        rows = zip(*(batch[name] for name in names))
        file.write("".join(line(names, row) for row in rows).encode())


def _json_line(names: list[str], row: tuple) -> str:
    return json.dumps(dict(zip(names, row)), ensure_ascii=False, allow_nan=False) + "\n"


def _table_line(names: list[str], row: tuple) -> str:
    return "\t".join(cell if isinstance(cell, str) else json.dumps(cell, allow_nan=False) for cell in row) + "\n"
