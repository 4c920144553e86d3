"""`fastcse mine`: hard negatives from text files to a text file, in a run that can be killed and continued."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import InputError, OptionError
from ..files import SHA256, sha256_of
from ..mining.formats import FORMATS
from ..mining.options import MiningOptions
from ..mining.texts import EncodingOptions
from ..ops.dispatch import check_backend
from ..options import build, check, flat, option, part
from ..retrieval.arguments import OPTIONS as KINDS
from ..retrieval.faiss_index import import_faiss
from .console import Json, facts_table, quiet_stdout, show
from .options import command

SUFFIXES = (".jsonl", ".tsv")
TEXT = ("pairs", "corpus")
# These decide where and how fast, not what; of the text files the content counts, whatever their names.
FREE = {*TEXT, "output", "cache_folder", "overwrite", "resume", "batch_size", "backend"}
ENCODE = {"panel": "Encoding and search"}
RUN = {"panel": "The run"}


@dataclass(frozen=True)
class MineOptions:
    """The options of a run.

    Without `pairs` the lines of `corpus` are the anchors and each is its own positive; with both, `corpus` holds
    further candidates beside the positives.

    Raises:
        InputError: an option outside its range, named with its value.
    """

    output: str = option(help="Mined rows: .jsonl or .tsv, also with .gz.", metavar="FILE")
    pairs: str | None = option(None, "anchor, positive: .tsv or .gz.", metavar="FILE")
    corpus: str | None = option(
        None,
        "One text a line, .txt or .gz: more candidates for --pairs. Alone: the anchors too, each its own positive.",
        metavar="FILE",
    )
    model: str = option("minilm", "Hub name, local folder, or minilm.", metavar="NAME")
    format: str = option("triplet", "Columns of the output.", choices=FORMATS)
    scores: bool = option(False, "Write the similarities too.")
    mining: MiningOptions = part(MiningOptions)
    cross_encoder: str | None = option(
        None,
        "Score candidates again with this model, for the filters.",
        metavar="NAME",
        panel="Which candidates become negatives",
    )
    encoding: EncodingOptions = part(EncodingOptions)
    max_length: int | None = option(None, "Tokens of a text.", least=3, shown="the model's", **ENCODE)
    index: str = option("exact", "How to search; all but exact need FAISS.", choices=tuple(KINDS), **ENCODE)
    backend: str | None = option(
        None, "triton, cpp or reference.", metavar="NAME", shown="the fastest that runs", **ENCODE
    )
    cache_folder: str | None = option(
        None,
        "Keep embeddings here for other runs.",
        metavar="DIR",
        shown="beside the output, until it is there",
        **RUN,
    )
    resume: bool = option(False, "Continue a run that was stopped.", **RUN)
    overwrite: bool = option(False, "Replace the output.", **RUN)

    def __post_init__(self):
        check(self)
        if self.pairs is None and self.corpus is None:
            raise InputError("expected --pairs, --corpus or both, got neither")
        if self.resume and self.overwrite:
            raise InputError("expected one of --resume and --overwrite, got both")
        check_backend(self.backend)
        if self.index != "exact":
            if self.backend is not None:
                raise OptionError("backend", f" {self.backend!r} is for ", "index", f" exact, got {self.index}")
            import_faiss(self.index)
        if self.mining.include_positives and self.format != "n-tuple":
            text = " is for a ranking in one row: expected "
            raise OptionError("include_positives", text, "format", f" n-tuple, got {self.format}")
        if self.suffix not in SUFFIXES:
            text = " has an unknown ending: expected .jsonl or .tsv, and .gz after it to pack it"
            raise OptionError("output", f" {self.output!r}{text}")
        if self.suffix == ".tsv" and self.format == "labeled-list":
            text = f" {self.output!r} cannot hold the lists of "
            raise OptionError("output", text, "format", " labeled-list: expected .jsonl")

    @property
    def suffix(self) -> str:
        """The ending of the output's name, without `.gz`."""
        return Path(self.output.removesuffix(".gz")).suffix

    def identity(self) -> dict[str, Any]:
        """What decides the output: options, and the content of the text files."""
        chosen = {name: value for name, value in flat(self).items() if name not in FREE}
        chosen["sampling"] = chosen.pop("sampling_strategy")
        for name in TEXT:
            path = getattr(self, name)
            chosen[name + SHA256] = path and sha256_of(path)
        return chosen


@command(MineOptions)
def mine(given: dict[str, Any], as_json: Json = False) -> None:
    """Mine hard negatives: for each anchor of --pairs or --corpus, near texts that are not its positives.

    The output is read by fastcse train --hard-negatives and by sentence-transformers' Trainer. A stopped run loses
    nothing that was encoded: add --resume.
    """
    options = build(MineOptions, given)
    with quiet_stdout():
        from ..mining.report import report_table
        from .mine_run import run_mine

        report, mined = run_mine(options, lambda line: print(line, file=sys.stderr))
        tables = [] if mined is None else [report_table(mined)]
    show(report, as_json, *tables, _facts(report, options))


def _facts(report: dict[str, Any], options: MineOptions) -> Table:
    mined = f"{report['negatives']:,} for {report['queries']:,} anchors among {report['candidates']:,} candidates"
    facts = {
        "negatives": mined,
        "backend": report["backend"],
        "time": f"{report['seconds']:.0f} s",
    }
    if options.cache_folder is not None:
        facts["embeddings"] = f"kept in {options.cache_folder}"
    return facts_table(facts | {"written": f"{report['output']}, {report['rows']:,} rows of --format {options.format}"})
