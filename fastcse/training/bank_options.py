"""What may be asked of the corpus bank of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..mining.corpus_negatives import REFRESH


@dataclass(frozen=True)
class BankOptions:
    """The options of `CorpusNegatives`, under the names of the command line.

    `bank` is a text file or a folder that holds a saved bank; None takes the training text. `parity` fills it with raw
    [CLS] vectors as HSimCSE's released code does, instead of what the model gives.

    Raises:
        InputError: an option outside its range, named with the value that came.
    """

    bank: str | None = None
    neighbours: int = 3
    skip: int = 0
    sample: int | None = None
    max_similarity: float | None = None
    refresh: str | int = "never"
    parity: bool = False

    def __post_init__(self):
        _at_least("--neighbours", self.neighbours, 1)
        _at_least("--skip", self.skip, 0)
        if self.sample is not None:
            _at_least("--sample", self.sample, self.neighbours)
        if self.max_similarity is not None and not math.isfinite(self.max_similarity):
            raise InputError(f"--max-similarity is {self.max_similarity}: expected a finite number")
        object.__setattr__(self, "refresh", _refresh(self.refresh))

    @classmethod
    def of(cls, given: dict[str, Any]) -> BankOptions:
        """Those of `given` that are not None, the rest by default."""
        return cls(**{name: value for name, value in given.items() if value is not None})


def _at_least(option: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise InputError(f"{option} is {value}: expected at least {lowest}")


def _refresh(value: str | int) -> str | int:
    if value in REFRESH:
        return value
    if not str(value).isdigit() or int(value) < 1:
        raise InputError(f"--refresh is {value!r}: expected {', '.join(REFRESH)}, or a number of steps")
    return int(value)
