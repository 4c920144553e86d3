"""Semantic textual similarity sets: sentence pairs with a human score, in tab-separated files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import read_lines

COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True)
class StsSet:
    """Sentence pairs with a human score; row i of the three lists is one pair."""

    name: str
    sentence1: list[str]
    sentence2: list[str]
    score: list[float]


def read_sts(path: str | Path, name: str | None = None, argument: str = "--sts-dir") -> StsSet | None:
    """Read one tab-separated file without quoting; None if its header lacks `sentence1`, `sentence2` or `score`.

    Raises:
        InputError: the file cannot be read, or a row does not fit its header (the line is named).
    """
    header, *rows = read_lines(path, argument)
    names = header.split("\t")
    if not set(COLUMNS) <= set(names):
        return None
    where = [names.index(column) for column in COLUMNS]
    pairs = [_pair(row, where, len(names), f"{argument} {str(path)!r} line {i}") for i, row in enumerate(rows, 2)]
    if len(pairs) < 2:
        raise InputError(f"{argument} {str(path)!r} holds {len(pairs)} pairs: a rank correlation needs at least 2")
    sentence1, sentence2, score = (list(column) for column in zip(*pairs))
    return StsSet(name or Path(path).name, sentence1, sentence2, score)


def _pair(row: str, where: list[int], width: int, place: str) -> tuple[str, str, float]:
    cells = row.split("\t")
    if len(cells) != width:
        raise InputError(f"{place} has {len(cells)} columns where the header has {width}")
    sentence1, sentence2, text = (cells[column] for column in where)
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{place} has score {text!r}: expected a finite number")
    return sentence1, sentence2, score


def find_sts(directory: str | Path, argument: str = "--sts-dir") -> list[StsSet]:
    """Every STS file below a folder, in the order of their paths; tables without the three columns are passed over.

    Raises:
        InputError: the folder is missing, holds no STS file, or holds a damaged one.
    """
    root = sts_folder(directory, argument)
    paths = sorted(path for pattern in ("*.tsv", "*.tsv.gz") for path in root.rglob(pattern))
    found = [read_sts(path, str(path.relative_to(root)), argument) for path in paths]
    sets = [one for one in found if one is not None]
    if not sets:
        raise InputError(
            f"{argument} {str(directory)!r} holds no STS file among its {len(paths)} tables: "
            f"expected .tsv or .tsv.gz with the columns {', '.join(COLUMNS)}"
        )
    return sets


def sts_folder(directory: str | Path, argument: str) -> Path:
    """The folder, or an InputError if it is not one."""
    root = Path(directory)
    if not root.is_dir():
        what = f"{argument} {str(directory)!r} is {'a file' if root.exists() else 'missing'}"
        raise InputError(f"{what}: expected a folder with .tsv or .tsv.gz files")
    return root
