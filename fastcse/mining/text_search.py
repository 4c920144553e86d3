"""Mining among texts: their rows, by a model or as given, and the second model that looks at pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encoding import accepted, encode_texts
from ..ops import checks
from ..retrieval.arguments import OPTIONS as KINDS
from ..retrieval.arguments import check_settings
from ..retrieval.arrays import as_rows
from ..retrieval.index import CorpusIndex
from .negatives import MinedNegatives, mine_negatives
from .options import MiningOptions
from .pair_texts import PairTexts
from .rescoring import Rescore

# The model's own similarity, for rows of length 1, on which the dot product is the cosine.
METRICS = {None: "cosine", "cosine": "cosine", "dot": "cosine", "euclidean": "l2"}


@dataclass(frozen=True)
class Encoding:
    """How texts become rows; or rows that are there already, one for each of the distinct `queries` and texts of the
    `corpus` of `PairTexts`.
    """

    query_prompt_name: str | None = None
    query_prompt: str | None = None
    corpus_prompt_name: str | None = None
    corpus_prompt: str | None = None
    batch_size: int = 32
    cache_folder: str | None = None
    query_embeddings: Tensor | np.ndarray | None = None
    corpus_embeddings: Tensor | np.ndarray | None = None


def mine_texts(
    texts: PairTexts,
    model: Any,
    options: MiningOptions,
    encoding: Encoding,
    *,
    cross_encoder: Any = None,
    backend: str | None = None,
    index: str | None = None,
    progress: bool = True,
) -> MinedNegatives:
    """`mine_hard_negatives` without the way from a dataset and back to one; the arguments mean the same."""
    if index is not None:
        checks.check_choice("index", index, tuple(KINDS))
        check_settings("cosine", index, None, backend, {})
    metric = _metric_of(model)
    query, rows = _embed(model, texts, encoding, progress)
    if metric == "l2":
        query, rows = (torch.nn.functional.normalize(x.float(), dim=1) for x in (query, rows))
    device = torch.device(getattr(model, "device", None) or query.device)
    query, rows = query.to(device), rows.to(device)
    where = {"metric": metric, "backend": backend}
    if index is not None:
        rows, where = CorpusIndex(rows, kind=index, **where), {}
    rescore = None if cross_encoder is None else _rescorer(cross_encoder, texts, encoding.batch_size)
    return mine_negatives(
        query, rows, texts.positives, exclude=texts.own, rescore=rescore, progress=progress, **vars(options), **where
    )


def _metric_of(model: Any) -> str:
    similarity = getattr(model, "similarity_fn_name", None)
    if similarity not in METRICS:
        known = ", ".join(name for name in METRICS if name)
        raise ValueError(f"model must compare rows by one of {known}, got similarity_fn_name={similarity!r}")
    return METRICS[similarity]


def _embed(model: Any, texts: PairTexts, encoding: Encoding, progress: bool) -> tuple[Tensor, Tensor]:
    """Rows of the distinct queries and of the distinct texts of the corpus."""
    options = {"batch_size": encoding.batch_size, "cache_folder": encoding.cache_folder, "progress": progress}
    query, rows = encoding.query_embeddings, encoding.corpus_embeddings
    # What is given is checked before anything is encoded.
    if query is not None:
        query = _as_given("query_embeddings", query, len(texts.queries))
    if rows is not None:
        rows = _as_given("corpus_embeddings", rows, len(texts.corpus))
    if query is None:
        prompt = {"prompt_name": encoding.query_prompt_name, "prompt": encoding.query_prompt}
        query = encode_texts(model, texts.queries.to_pylist(), kind="query", **prompt, **options)
    if rows is None:
        prompt = {"prompt_name": encoding.corpus_prompt_name, "prompt": encoding.corpus_prompt}
        rows = encode_texts(model, texts.corpus.to_pylist(), kind="document", **prompt, **options)
    return query, rows


def _as_given(name: str, rows: Tensor | np.ndarray, count: int) -> Tensor:
    rows, _ = as_rows(name, rows)
    if rows.shape[0] != count:
        raise ValueError(f"{name} must have {count} rows, one for each distinct text, got {rows.shape[0]}")
    return rows


def of_distinct(
    texts: PairTexts, query: Tensor | np.ndarray | None, corpus: Tensor | np.ndarray | None
) -> tuple[Tensor | None, Tensor | None]:
    """Rows of the distinct texts, from rows of all the dataset's anchors, and of the corpus and then all positives."""
    if query is not None:
        query = _chosen("query_embeddings", query, texts.query_place, (texts.rows,))
    if corpus is not None:
        counts = (texts.more + texts.rows,)
        if int(texts.corpus_place.max()) < texts.more:  # the corpus holds all positives
            counts += (texts.more,)
        corpus = _chosen("corpus_embeddings", corpus, texts.corpus_place, counts)
    return query, corpus


def _chosen(name: str, rows: Tensor | np.ndarray, place: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The rows of distinct texts, or all of them, not copied, where no text comes twice."""
    rows, _ = as_rows(name, rows)
    if rows.shape[0] not in counts:
        expected = " or ".join(map(str, counts))
        raise ValueError(f"{name} must have {expected} rows, one for each text, got {rows.shape[0]}")
    if place.shape[0] == rows.shape[0] and torch.equal(place, torch.arange(place.shape[0], device=place.device)):
        return rows
    return rows[place.to(rows.device)]


def _rescorer(cross_encoder: Any, texts: PairTexts, batch_size: int) -> Rescore:
    import pyarrow as pa

    options = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_tensor": True}
    options = accepted(cross_encoder.predict, options)

    def of(source: pa.Array, rows: Tensor) -> list[str]:
        return source.take(pa.array(rows.cpu().numpy())).to_pylist()

    def rescore(query: Tensor, rows: Tensor) -> Any:
        return cross_encoder.predict(list(zip(of(texts.queries, query), of(texts.corpus, rows))), **options)

    return rescore
