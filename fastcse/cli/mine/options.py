"""What `fastcse mine` may be asked, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...mining.formats import FORMATS
from ...mining.options import MiningOptions
from ...retrieval.arguments import OPTIONS as KINDS
from ...retrieval.arguments import check_settings
from ...training.options import DIGEST, check_at_least, check_backend, flag

INDEXES = tuple(KINDS)
ENDINGS = (".jsonl", ".tsv")
TEXT = ("pairs", "corpus")
# These say where and how fast, not what; of the text files the content counts, whatever they are called.
FREE = {*TEXT, "output", "cache_folder", "overwrite", "resume", "batch_size", "backend"}
PROMPTS = ("query_prompt", "query_prompt_name", "corpus_prompt", "corpus_prompt_name")
# These decide the embeddings: the rest of a run can be changed without encoding anything again.
EMBEDDING = {"model", "max_length", *PROMPTS, *(name + DIGEST for name in TEXT)}
# Options whose flag is not their name in `mine_hard_negatives`.
FLAGS = {"sampling_strategy": "--sampling", "output_format": "--format", "output_scores": "--scores"}


@dataclass(frozen=True)
class MineOptions:
    """The options of a run, under the names of the command line; their meanings are `mine_hard_negatives`'.

    Without `pairs` the lines of `corpus` are the anchors and each is its own positive; with both, `corpus` holds
    further candidates beside the positives.

    Raises:
        InputError: an option outside its range, named with the value that came.
    """

    output: str
    pairs: str | None = None
    corpus: str | None = None
    model: str = "minilm"
    num_negatives: int = 3
    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling: str = "top"
    seed: int = 0
    include_positives: bool = False
    format: str = "triplet"
    scores: bool = False
    cross_encoder: str | None = None
    query_prompt: str | None = None
    query_prompt_name: str | None = None
    corpus_prompt: str | None = None
    corpus_prompt_name: str | None = None
    batch_size: int = 32
    max_length: int | None = None
    index: str = "exact"
    cache_folder: str | None = None
    resume: bool = False
    overwrite: bool = False
    backend: str | None = None

    def __post_init__(self):
        if self.pairs is None and self.corpus is None:
            raise InputError("expected --pairs, --corpus or both, got neither")
        if self.resume and self.overwrite:
            raise InputError("expected one of --resume and --overwrite, got both")
        for name, known in (("format", FORMATS), ("index", INDEXES)):
            if getattr(self, name) not in known:
                raise InputError(f"{flag(name)} is {getattr(self, name)!r}: expected one of {', '.join(known)}")
        check_at_least("batch_size", self.batch_size, 1)
        if self.max_length is not None:
            check_at_least("max_length", self.max_length, 3)  # [CLS], one word, [SEP]
        check_backend(self.backend)
        try:
            _ = self.mining
            check_settings("cosine", self.index, None, self.backend, {})
        except ValueError as error:
            raise InputError(as_flags(str(error))) from None
        if self.include_positives and self.format != "n-tuple":
            raise InputError(f"--include-positives is for a ranking in one row: expected --format n-tuple, got "
                             f"{self.format}")  # fmt: skip
        self._check_ending()

    def _check_ending(self) -> None:
        if self.ending not in ENDINGS:
            raise InputError(
                f"--output {self.output!r} has an unknown ending: expected .jsonl or .tsv, and .gz after it to pack it"
            )
        if self.ending == ".tsv" and self.format == "labeled-list":
            raise InputError(
                f"--output {self.output!r} cannot hold the lists of --format labeled-list: expected .jsonl"
            )

    @property
    def ending(self) -> str:
        """The ending of the output's name, without `.gz`."""
        return Path(self.output.removesuffix(".gz")).suffix

    @property
    def mining(self) -> MiningOptions:
        """Which candidates become negatives."""
        return MiningOptions(
            self.range_min, self.range_max, self.max_score, self.min_score, self.absolute_margin, self.relative_margin,
            self.num_negatives, self.sampling, self.seed, self.include_positives,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """What decides the output: options, and the content of the text files."""
        chosen = {name: value for name, value in asdict(self).items() if name not in FREE}
        for name in TEXT:
            path = getattr(self, name)
            chosen[name + DIGEST] = path and hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return chosen


def as_flags(message: str) -> str:
    """A sentence of the library in the words of the command line."""
    names = sorted((*FLAGS, *MineOptions.__dataclass_fields__), key=len, reverse=True)
    words = "|".join(name for name in names if "_" in name or name in ("index", "backend", "seed"))
    return re.sub(rf"\b({words})\b", lambda found: FLAGS.get(found[0], flag(found[0])), message)


def check_same_run(first: dict[str, Any], now: dict[str, Any], run: str, remedy: str = "") -> None:
    """An InputError at the first name in which an earlier run, `first`, differs from `now`."""
    for name, value in now.items():
        if first.get(name) != value:
            option = name.removesuffix(DIGEST)
            what = flag(name) if option == name else f"the sha256 of {flag(option)}"
            raise InputError(f"{what} is {value!r}, but {run} had {first.get(name)!r}{remedy}")
