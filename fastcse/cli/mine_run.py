"""A run of `fastcse mine`: text files in; model, embeddings, negatives; and the files that it leaves on the disk."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Router

from ..encoding import encode_texts
from ..errors import InputError, OptionError, flag
from ..files import SHA256, check_same_run, read_json, sha256_of, write_atomic, write_json
from ..mining.formats import as_table
from ..mining.negatives import MinedNegatives
from ..mining.pair_texts import PairTexts, pair_texts, text_column
from ..mining.report import summarize
from ..mining.texts import EncodingOptions, mine_texts
from ..ops.dispatch import last_backend
from ..training.data import read_corpus, read_pairs
from ..training.encoders import load_encoder
from .mine import TEXT, MineOptions

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

MANIFEST = "fastcse_mine.json"  # in the cache: which run it belongs to, and that it may be removed
ROWS_AT_ONCE = 1000
PROMPTS = tuple(name for name in EncodingOptions.__dataclass_fields__ if "prompt" in name)
# These decide the embeddings: the rest of a run can be changed without encoding anything again.
EMBEDDING = {"model", "max_length", *PROMPTS, *(name + SHA256 for name in TEXT)}


def run_mine(options: MineOptions, say: Callable[[str], None]) -> tuple[dict[str, Any], MinedNegatives | None]:
    """Mine, write the output and the report beside it, and return the report, and what was mined: None where an earlier
    run had done it all.

    Args:
        say: called with a line for the user.

    Raises:
        InputError: a file, model or option is not what it should be, or the filters leave no negative at all. What was
            encoded until then is kept for `resume`.
    """
    start = time.perf_counter()
    files = RunFiles(options)
    texts = read_texts(options)
    identity = options.identity()
    finished = files.finished(identity)
    if finished is not None:
        say(f"{options.output} is complete, nothing was left to do.")
        return finished, None
    if options.mining.enough > len(texts.corpus) - 1:
        raise InputError(
            f"--num-negatives {options.mining.num_negatives} after --range-min {options.mining.range_min} is more than "
            f"there is: {len(texts.corpus)} distinct candidates, one of them the positive"
        )
    model, cross_encoder = _load_model(options), _load_cross_encoder(options)
    cache = str(files.start(identity))
    try:
        mined = _mine(options, texts, model, cross_encoder, cache)
        table = as_table(mined, texts, options.format, options.scores)
        if not table.num_rows:
            raise InputError(_nothing_left(mined, options))
        document = {
            **{name: getattr(options, name) for name in ("output", *TEXT)},
            "rows": table.num_rows,
            "candidates": len(texts.corpus),
            **summarize(mined),
            "options": identity,
            "backend": last_backend() if options.index == "exact" else f"faiss {options.index}",
            "seconds": round(time.perf_counter() - start, 1),
        }
        return files.finish(row_writer(table, options), document), mined
    except KeyboardInterrupt:
        if files.discard_if_empty():
            say(f"What was encoded is in {cache}: {'run it again' if files.kept else 'add --resume'} to go on.")
        raise
    except InputError:
        files.discard_if_empty()
        raise
    except OSError as error:
        files.discard_if_empty()
        raise InputError(f"{str(error.filename or cache)!r} cannot be written: {error.strerror or error}") from None


def read_texts(options: MineOptions) -> PairTexts:
    """The texts of a run.

    Raises:
        InputError: a file that is missing, empty or no text, or a text that the output cannot hold.
    """
    lines = None if options.corpus is None else _column(read_corpus(options.corpus), "anchor", "corpus", options)
    if options.pairs is None:
        return pair_texts(lines, lines)
    pairs = read_pairs(options.pairs)
    if not len(pairs):
        raise InputError(f"--pairs {options.pairs!r} holds no pair below its header")
    return pair_texts(*(_column(pairs, name, "pairs", options) for name in ("anchor", "positive")), lines)


def _column(dataset: Dataset, column: str, name: str, options: MineOptions) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    texts, file = text_column(dataset, column), f"{flag(name)} {getattr(options, name)!r}"
    for wrong, is_refused in (("\0", True), ("\t", options.suffix == ".tsv")):
        found = texts.filter(pc.match_substring(texts, wrong)) if is_refused else ()
        if len(found) and wrong == "\0":
            raise InputError(f"{file} is binary: the text {found[0].as_py()[:20]!r} holds a zero byte")
        if len(found):
            cannot = f"which --output {options.output!r} cannot: expected an --output in .jsonl"
            raise InputError(f"{file} holds a tab in {found[0].as_py()[:40]!r}, {cannot}")
    return texts


def row_writer(table: pa.Table, options: MineOptions) -> Callable[[BinaryIO], None]:
    """A function that writes `table` to a binary file, as JSON lines or as a table with a header, packed for `.gz`.

    The same rows give the same bytes. A list of scores is written to a table as JSON.
    """
    is_table, is_packed = options.suffix == ".tsv", options.output.endswith(".gz")

    def line(row: dict[str, Any]) -> str:
        if not is_table:
            return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        cells = (cell if isinstance(cell, str) else json.dumps(cell, allow_nan=False) for cell in row.values())
        return "\t".join(cells) + "\n"

    def write(file: BinaryIO) -> None:
        packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if is_packed else contextlib.nullcontext(file)
        with packed as lines:
            if is_table:
                lines.write(("\t".join(table.column_names) + "\n").encode())
            for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
                lines.write("".join(map(line, batch.to_pylist())).encode())

    return write


def _load_model(options: MineOptions) -> SentenceTransformer:
    model = load_encoder(options.model)
    for name in ("query_prompt_name", "corpus_prompt_name"):
        value = getattr(options.encoding, name)
        if value is not None and value not in model.prompts:
            known = ", ".join(map(repr, model.prompts)) or "none"
            raise OptionError(name, f" is {value!r}, but the prompts of ", "model", f" {options.model!r} are {known}")
    if options.max_length is not None:
        most = getattr(model.tokenizer, "model_max_length", options.max_length)
        if options.max_length > most:
            text = f" is {options.max_length}: "
            raise OptionError("max_length", text, "model", f" {options.model!r} takes at most {most}")
        model.max_seq_length = options.max_length
    return model


def _load_cross_encoder(options: MineOptions) -> CrossEncoder | None:
    if options.cross_encoder is None:
        return None
    try:
        return CrossEncoder(options.cross_encoder)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"--cross-encoder {options.cross_encoder!r} cannot be loaded: {reason[0]}") from None


def _mine(
    options: MineOptions, texts: PairTexts, model: SentenceTransformer, cross_encoder: CrossEncoder | None, cache: str
) -> MinedNegatives:
    how = {"cache_folder": cache, "backend": options.backend, "cross_encoder": cross_encoder}
    if options.index != "exact":
        how["index"] = options.index
    try:
        if options.pairs is None and _is_symmetric(model, options):
            # The lines of a corpus are both sides: one encoding serves as queries and as candidates.
            encoding = {"batch_size": options.encoding.batch_size, "cache_folder": cache}
            how["embeddings"] = (encode_texts(model, texts.corpus.to_pylist(), kind="document", **encoding),) * 2
        return mine_texts(texts, model, options.mining, options.encoding, **how)
    except ValueError as error:
        raise InputError(str(error)) from error


def _is_symmetric(model: SentenceTransformer, options: MineOptions) -> bool:
    """Whether a text has the same row as a query and as a document."""
    prompts = [getattr(options.encoding, name) for name in PROMPTS] + list(model.prompts.values())
    return not any(prompts) and not any(isinstance(module, Router) for module in model.modules())


def _nothing_left(mined: MinedNegatives, options: MineOptions) -> str:
    dropped = [f"{name} dropped {some:,} of {all:,}" for name, (some, all) in mined.counts.items() if some]
    enough = f"{options.mining.num_negatives} negatives" if options.format == "n-tuple" else "a negative"
    kept = "" if options.cache_folder else ", and add --resume because what was encoded is kept"
    return f"no anchor is left with {enough} ({', '.join(dropped)}): change the options{kept}"


class RunFiles:
    """The files of one run: the output, a report beside it, and a cache of embeddings until it is finished.

    Raises:
        InputError: the output is a folder or stands in none, or is there already; a cache of an earlier run that the
            options do not mention; one that `resume` cannot continue.
    """

    def __init__(self, options: MineOptions):
        self.options = options
        self.output = Path(options.output)
        self.report = self.output.with_name(self.output.name + ".report.json")
        self.kept = options.cache_folder is not None
        self.cache = Path(options.cache_folder) if self.kept else self.output.with_name(self.output.name + ".cache")
        # Of the run that the default cache belongs to: what decides its output.
        self.unfinished = None if self.kept else read_json(self.cache / MANIFEST)
        if self.output.is_dir():
            raise InputError(f"--output {options.output!r} is a folder: expected a file")
        if not self.output.parent.is_dir():
            raise InputError(f"--output {options.output!r}: its folder {str(self.output.parent)!r} does not exist")
        for name in TEXT:
            source = getattr(options, name)
            if source is not None and self.output.exists() and Path(source).exists() and self.output.samefile(source):
                raise InputError(f"--output {options.output!r} is the file of --{name}: it would be lost")
        if self.cache.exists() and not (self.cache.is_dir() and (self.kept or self.unfinished is not None)):
            raise InputError(f"{str(self.cache)!r} is in the way of the cache: move it, or name another --cache-folder")

    def finished(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The report of the run if `resume` finds it finished, or None if there is work to do."""
        name, options, unfinished = self.options.output, self.options, self.unfinished
        if self.output.exists() and not options.overwrite:
            if not options.resume:
                raise InputError(f"--output {name!r} exists: add --overwrite to replace it")
            report = read_json(self.report)
            if report is None and unfinished is None:
                without = f"without its {self.report.name}: add --overwrite instead to replace it"
                raise InputError(f"--resume finds --output {name!r} {without}")
            if report is not None and report["output_sha256"] == sha256_of(self.output):
                remedy = ": add --overwrite instead of --resume to replace it"
                check_same_run(report["options"], identity, f"the run that made --output {name!r}", remedy)
                return report
        if unfinished is None and options.resume and not self.kept:
            raise InputError(f"--resume finds no unfinished run of --output {name!r}: leave it out to start one")
        if unfinished is not None and not (options.resume or options.overwrite):
            ways = "add --resume to go on with it, or --overwrite to start anew"
            raise InputError(f"--output {name!r} has an unfinished run in {self.cache.name!r}: {ways}")
        if unfinished is not None and options.resume:
            needed = {name: value for name, value in identity.items() if name in EMBEDDING}
            check_same_run(unfinished, needed, "the run that --resume continues")
        return None

    def start(self, identity: dict[str, Any]) -> Path:
        """Make the cache, or take over that of the run that is continued, and return its folder."""
        try:
            if not self.kept and self.options.overwrite and self.cache.exists():
                shutil.rmtree(self.cache)
            self.cache.mkdir(parents=True, exist_ok=True)
            if not self.kept:
                write_json(self.cache / MANIFEST, identity)
        except OSError as error:
            raise InputError(f"the cache {str(self.cache)!r} cannot be written: {error.strerror}") from None
        return self.cache

    def discard_if_empty(self) -> bool:
        """Remove a cache that holds no embeddings yet, and return whether there are embeddings to resume from."""
        encoded = any(self.cache.rglob("*.npy"))
        if not (encoded or self.kept):
            shutil.rmtree(self.cache, ignore_errors=True)
        return encoded

    def finish(self, write: Callable[[BinaryIO], None], report: dict[str, Any]) -> dict[str, Any]:
        """Write the output, then the report, then remove the cache unless `cache_folder` keeps it."""
        write_atomic(self.output, write)
        report = {**report, "output_sha256": sha256_of(self.output)}
        write_json(self.report, report)
        if not self.kept:
            shutil.rmtree(self.cache)
        return report
