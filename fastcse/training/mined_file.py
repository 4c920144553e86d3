"""Hard negatives that `fastcse mine` wrote, joined to the rows they were mined for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from ..errors import InputError
from ..files import read_lines
from .data import cells

NEGATIVE = re.compile(r"negative(_\d+)?")  # `negative_score` and the like are not text
ARGUMENT = "--hard-negatives"
Key = tuple[str, ...]  # (anchor, positive), or (anchor,) for a corpus


class Joined(NamedTuple):
    """`dataset` has the columns anchor, positive and negatives; `notes` say in a sentence each what was left out."""

    dataset: Dataset
    notes: list[str]


def add_hard_negatives(dataset: Dataset, path: str | Path) -> Joined:
    """Give every row of `dataset` its mined negatives: one row for each row that the mined file has for it.

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
        >>> add_hard_negatives(pairs, "mined.jsonl").dataset.column_names            # doctest: +SKIP
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
        raise InputError(f"{ARGUMENT} {str(path)!r} has a negative for none of the {len(dataset)} {what}: expected the "
                         "file that fastcse mine wrote for them")  # fmt: skip
    unused = sum(len(negatives) for key, negatives in mined.items() if key not in used)
    notes = _note(without, len(dataset), f"{what} have no mined negatives and are left out")
    notes += _note(unused, sum(map(len, mined.values())), f"mined rows belong to none of the {what} and are not used")
    count = len(rows[0]) - 2
    names = ["negative"] if count == 1 else [f"negative_{i}" for i in range(1, count + 1)]
    columns = zip(("anchor", "positive", *names), zip(*rows))
    return Joined(Dataset.from_dict({name: list(column) for name, column in columns}), notes)


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
        raise InputError(f"{place} has the columns {', '.join(names)[:200]}: expected {', '.join(by)}, and negative or "
                         "negative_1, negative_2, ... (fastcse mine --format triplet or n-tuple)")  # fmt: skip
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
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place} has {name} {json.dumps(value)[:40]}: expected text")
    # A lone surrogate is valid JSON and no text: it would end the run in the tokenizer.
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{place} has {name} {json.dumps(value)[:40]}: half of a surrogate pair is not text")
    return value.strip()
