"""The job, whole: texts, model, embeddings, negatives, files."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Router

from ...encoding import encode_texts
from ...errors import InputError
from ...mining.formats import as_dataset
from ...mining.negatives import MinedNegatives
from ...mining.pair_texts import PairTexts, read_pairs
from ...mining.report import summarize
from ...mining.text_search import Encoding, mine_texts
from ...ops.dispatch import last_backend
from ...training.encoders import load_encoder
from .options import PROMPTS, TEXT, MineOptions, as_flags
from .text import Texts, read_texts, row_writer
from .workspace import Workspace


class MineReport(NamedTuple):
    """`document` is what `--json` prints; `mined` is None where an earlier run had done it all."""

    document: dict[str, Any]
    mined: MinedNegatives | None


def run_mine(options: MineOptions, say: Callable[[str], None]) -> MineReport:
    """Mine, write the output and the report beside it, and return the report.

    Args:
        say: receives a line about what else there is to know.

    Raises:
        InputError: a file, model or option is not what it should be, or the filters leave no negative at all. What was
            encoded until then is kept for `resume`.
    """
    start = time.perf_counter()
    workspace = Workspace(options)
    texts = read_texts(options)
    identity = options.identity()
    finished = workspace.finished(identity)
    if finished is not None:
        say(f"{options.output} is complete, nothing was left to do.")
        return MineReport(finished, None)
    _check_enough(texts, options)
    model, cross_encoder = _load_model(options), _load_cross_encoder(options)
    cache = str(workspace.start(identity))
    try:
        pairs = read_pairs(Dataset.from_dict({"anchor": texts.anchor, "positive": texts.positive}), None, None,
                           texts.corpus)  # fmt: skip
        mined = _mine(options, pairs, model, cross_encoder, cache)
        dataset = as_dataset(mined, pairs, options.format, options.scores)
        if not len(dataset):
            raise InputError(_nothing_left(mined, options))
        document = {
            **{name: getattr(options, name) for name in ("output", *TEXT)},
            "rows": len(dataset), "candidates": len(pairs.corpus), **summarize(mined), "options": identity,
            "backend": last_backend() if options.index == "exact" else f"faiss {options.index}",
            "seconds": round(time.perf_counter() - start, 1),
        }  # fmt: skip
        return MineReport(workspace.finish(row_writer(dataset, options), document), mined)
    except KeyboardInterrupt:
        if workspace.leave():
            say(f"What was encoded is in {cache}: {'run it again' if workspace.kept else 'add --resume'} to go on.")
        raise
    except InputError:
        workspace.leave()
        raise
    except OSError as error:
        workspace.leave()
        raise InputError(f"{str(error.filename or cache)!r} cannot be written: {error.strerror or error}") from None


def _check_enough(texts: Texts, options: MineOptions) -> None:
    candidates = len({*texts.positive, *(texts.corpus or ())})
    if options.num_negatives + options.range_min > candidates - 1:
        raise InputError(f"--num-negatives {options.num_negatives} after --range-min {options.range_min} is more than "
                         f"there is: {candidates} distinct candidates, one of them the positive")  # fmt: skip


def _load_model(options: MineOptions) -> SentenceTransformer:
    model = load_encoder(options.model)
    for name in ("query_prompt_name", "corpus_prompt_name"):
        value = getattr(options, name)
        if value is not None and value not in model.prompts:
            known = ", ".join(map(repr, model.prompts)) or "none"
            raise InputError(f"--{name.replace('_', '-')} is {value!r}, but the prompts of --model {options.model!r} "
                             f"are {known}")  # fmt: skip
    if options.max_length is not None:
        most = getattr(model.tokenizer, "model_max_length", options.max_length)
        if options.max_length > most:
            raise InputError(f"--max-length is {options.max_length}: --model {options.model!r} takes at most {most}")
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
    options: MineOptions, pairs: PairTexts, model: SentenceTransformer, cross_encoder: CrossEncoder | None, cache: str
) -> MinedNegatives:
    encoding = {"batch_size": options.batch_size, "cache_folder": cache}
    try:
        if options.pairs is None and _is_symmetric(model, options):
            # The lines of a corpus are both sides: one encoding serves as queries and as candidates.
            rows = encode_texts(model, pairs.corpus.to_pylist(), kind="document", **encoding)
            encoding |= {"query_embeddings": rows, "corpus_embeddings": rows}
        encoding |= {name: getattr(options, name) for name in PROMPTS}
        return mine_texts(
            pairs, model, options.mining, Encoding(**encoding), cross_encoder=cross_encoder, backend=options.backend,
            index=None if options.index == "exact" else options.index,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(as_flags(str(error))) from error


def _is_symmetric(model: SentenceTransformer, options: MineOptions) -> bool:
    """Whether a text has the same row as a query and as a document."""
    prompts = [getattr(options, name) for name in PROMPTS] + list(model.prompts.values())
    return not any(prompts) and not any(isinstance(module, Router) for module in model.modules())


def _nothing_left(mined: MinedNegatives, options: MineOptions) -> str:
    dropped = [f"{name} dropped {some:,} of {all:,}" for name, (some, all) in mined.counts.items() if some]
    enough = f"{options.num_negatives} negatives" if options.format == "n-tuple" else "a negative"
    kept = "" if options.cache_folder else ", and add --resume because what was encoded is kept"
    return f"no anchor is left with {enough} ({', '.join(dropped)}): change the options{kept}"
