"""Hard negatives of a dataset of texts, in the way of sentence-transformers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..encoding import accepted, encode_texts
from ..ops import checks
from ..options import check, option
from ..retrieval.arguments import OPTIONS as KINDS
from ..retrieval.arguments import check_settings
from ..retrieval.arrays import as_rows
from ..retrieval.index import CorpusIndex
from .candidates import Rerank
from .formats import FORMATS, as_table, check_format
from .negatives import MinedNegatives, mine
from .options import MiningOptions
from .pair_texts import PairTexts, read_pairs
from .report import report_table

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

# The model's own similarity, for rows of length 1, on which the dot product is the cosine.
METRICS = {None: "cosine", "cosine": "cosine", "dot": "cosine", "euclidean": "l2"}
Rows = Tensor | np.ndarray

_encode = functools.partial(option, panel="Encoding and search")


@dataclass(frozen=True)
class EncodingOptions:
    """How texts become rows."""

    query_prompt: str | None = _encode(None, "Put before every anchor.", metavar="TEXT")
    query_prompt_name: str | None = _encode(None, "The same, by its name in the model.", metavar="NAME")
    corpus_prompt: str | None = _encode(None, "Put before every candidate.", metavar="TEXT")
    corpus_prompt_name: str | None = _encode(None, "The same, by its name in the model.", metavar="NAME")
    batch_size: int = _encode(32, "Texts encoded at once.", least=1)

    def __post_init__(self):
        check(self)

    def prompts(self, side: str) -> dict[str, str | None]:
        """Of the "query" or the "corpus"."""
        return {name: getattr(self, f"{side}_{name}") for name in ("prompt", "prompt_name")}


def mine_hard_negatives(
    dataset: Dataset,
    model: Any,
    anchor_column_name: str | None = None,
    positive_column_name: str | None = None,
    corpus: Sequence[str] | None = None,
    cross_encoder: Any = None,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    num_negatives: int = 3,
    sampling_strategy: str = "top",
    query_prompt_name: str | None = None,
    query_prompt: str | None = None,
    corpus_prompt_name: str | None = None,
    corpus_prompt: str | None = None,
    include_positives: bool = False,
    output_format: str = "triplet",
    output_scores: bool = False,
    batch_size: int = 32,
    cache_folder: str | None = None,
    verbose: bool = True,
    *,
    seed: int = 0,
    query_embeddings: Tensor | np.ndarray | None = None,
    corpus_embeddings: Tensor | np.ndarray | None = None,
    backend: str | None = None,
    index: str | None = None,
) -> Dataset:
    r"""Add hard negatives to a dataset of (anchor, positive) pairs: near texts that are not positives of the anchor.

    Distinct anchors are the queries; rows with the same anchor are all positives of it. The corpus is `corpus` and all
    positives, each text once. Names, defaults, meanings, columns and the order of rows are those of
    `sentence_transformers.util.mine_hard_negatives` (6.2), and the result is the same but for the differences below;
    what each filter does is in `mine_negatives`.

    Args:
        dataset:   `datasets.Dataset`, or an `IterableDataset`, which is read to its end.
        model:     a SentenceTransformer, or anything with `encode(texts)`; not used where both embeddings are given,
                   and may be None then. Rows are compared by its `similarity_fn_name`, after they were normalised: the
                   cosine, or minus the Euclidean distance.
        anchor_column_name, positive_column_name: of the texts; None: the first and the second column.
        corpus:    further texts that may become negatives.
        cross_encoder: a CrossEncoder, or anything with `predict(pairs)`, whose scores replace the model's.
        range_min, range_max, max_score, min_score, absolute_margin, relative_margin, num_negatives, sampling_strategy:
                   as in `mine_negatives`.
        query_prompt, corpus_prompt, and their names in the model: put before texts that are encoded.
        include_positives: keep positives among the candidates, for reranking sets; the format is "n-tuple" then.
        output_format: with (a, p) for the names of the two columns, and what `output_scores` adds or puts in its place:
                   "triplet":      a, p, negative                 + scores [positive, negative]
                   "n-tuple":      a, p, negative_1, ...          + scores [positive, negative_1, ...]
                   "labeled-pair": a, p, label (1 or 0)           score
                   "labeled-list": a, [p, ...], labels [1, 0..]   scores
        cache_folder: keep embeddings there, as in `encode_texts`: a stopped run continues, and a changed model, prompt
                   or text is noticed.
        verbose:   show bars, and at the end a table of what each filter dropped and of scores, on stderr.
        seed:      of sampling_strategy "random".
        query_embeddings: a row for each row of `dataset`, by any model.
        corpus_embeddings: a row for each text of `corpus`, then a row for each positive of `dataset`; the latter may be
                   left out where `corpus` holds all positives.
        backend:   of the search, as in `topk`.
        index:     None or "exact": exact; "flat" (for use_faiss=True), "ivf", "hnsw": FAISS, as in `CorpusIndex`.

    Returns:
        `datasets.Dataset`. An anchor without enough negatives has fewer rows, or in "n-tuple" none.

    Raises:
        ValueError: as `mine_negatives`; an empty dataset, an unknown column or format, something that is no text, or
            embeddings of another number.

    Differences from sentence-transformers 6.2:
        An anchor's own text is never its negative. Without range_max the window widens until an anchor has its
        negatives; with it, depth and filters are the same. Random sampling follows `seed`. Ties go to the text that
        is first. A cross-encoder is also used without any filter, over the wide window. A repeated pair
        counts once for the depth of the window. Scores are exact in float32, where products of float32 rows are off by
        1e-7. Unknown column names are an error, not the first columns. In counts, "of" are the candidates that reached
        a filter. Not there, because nothing here needs them: faiss_batch_size, use_faiss (`index`),
        use_multi_process, and the deprecated as_triplets and margin.

    Example:
        >>> from datasets import Dataset
        >>> pairs = Dataset.from_dict({"question": ["a", "b"], "answer": ["one", "two"]})
        >>> mined = mine_hard_negatives(pairs, None, num_negatives=1, verbose=False,
        ...     query_embeddings=torch.eye(2), corpus_embeddings=torch.eye(2))
        >>> mined[0]
        {'question': 'a', 'answer': 'one', 'negative': 'two'}
    """
    options = MiningOptions.among(locals())
    encoding = EncodingOptions(query_prompt, query_prompt_name, corpus_prompt, corpus_prompt_name, batch_size)
    checks.check_choice("output_format", output_format, FORMATS)
    if include_positives and output_format != "n-tuple":
        warnings.warn(
            f"include_positives needs output_format 'n-tuple', which keeps the ranking: it replaces {output_format!r}",
            stacklevel=2,
        )
        output_format = "n-tuple"
    texts = read_pairs(dataset, anchor_column_name, positive_column_name, corpus)
    check_format(output_format, texts.names)
    mined = mine_texts(
        texts,
        model,
        options,
        encoding,
        embeddings=of_distinct(texts, query_embeddings, corpus_embeddings),
        cross_encoder=cross_encoder,
        cache_folder=cache_folder,
        backend=backend,
        index=index,
        progress=verbose,
    )
    if verbose:
        from rich.console import Console

        Console(stderr=True).print(report_table(mined))
    from datasets import Dataset

    return Dataset(as_table(mined, texts, output_format, output_scores))


def mine_texts(
    texts: PairTexts,
    model: Any,
    options: MiningOptions,
    encoding: EncodingOptions,
    *,
    embeddings: tuple[Tensor | None, Tensor | None] = (None, None),
    cross_encoder: Any = None,
    cache_folder: str | None = None,
    backend: str | None = None,
    index: str | None = None,
    progress: bool = True,
) -> MinedNegatives:
    """`mine_hard_negatives` of texts that are read, with options that are built; the arguments mean the same.

    Args:
        embeddings: a row for each of the distinct `queries`, and for each text of the `corpus`, of `texts`.
    """
    if index is not None:
        checks.check_choice("index", index, tuple(KINDS))
        check_settings("cosine", index, None, backend, {})
    similarity = getattr(model, "similarity_fn_name", None)
    if similarity not in METRICS:
        known = ", ".join(name for name in METRICS if name)
        raise ValueError(f"model must compare rows by one of {known}, got similarity_fn_name={similarity!r}")
    query, corpus = embeddings
    how = {"batch_size": encoding.batch_size, "cache_folder": cache_folder, "progress": progress}
    if query is None:
        query = encode_texts(model, texts.queries.to_pylist(), kind="query", **encoding.prompts("query"), **how)
    if corpus is None:
        corpus = encode_texts(model, texts.corpus.to_pylist(), kind="document", **encoding.prompts("corpus"), **how)
    if METRICS[similarity] == "l2":
        query, corpus = (torch.nn.functional.normalize(x.float(), dim=1) for x in (query, corpus))
    device = torch.device(getattr(model, "device", None) or query.device)
    query, corpus = query.to(device), corpus.to(device)
    where = {"metric": METRICS[similarity], "backend": backend}
    if index is not None:
        corpus, where = CorpusIndex(corpus, kind=index, **where), {}
    rerank = None if cross_encoder is None else _reranker(cross_encoder, texts, encoding.batch_size)
    return mine(query, corpus, texts.positives, options, texts.own, rerank=rerank, progress=progress, **where)


def of_distinct(texts: PairTexts, query: Rows | None, corpus: Rows | None) -> tuple[Tensor | None, Tensor | None]:
    """Rows of the distinct texts, from rows of all the dataset's anchors, and of the corpus and then all positives."""
    if query is not None:
        query = _chosen("query_embeddings", query, texts.query_place, (texts.rows,))
    if corpus is not None:
        counts = (texts.more + texts.rows,)
        if int(texts.corpus_place.max()) < texts.more:  # the corpus holds all positives
            counts += (texts.more,)
        corpus = _chosen("corpus_embeddings", corpus, texts.corpus_place, counts)
    return query, corpus


def _chosen(name: str, rows: Rows, place: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The rows of distinct texts, or all of them, not copied, where all texts are distinct."""
    rows, _ = as_rows(name, rows)
    if rows.shape[0] not in counts:
        expected = " or ".join(map(str, counts))
        raise ValueError(f"{name} must have {expected} rows, one for each text, got {rows.shape[0]}")
    if place.shape[0] == rows.shape[0] and torch.equal(place, torch.arange(place.shape[0], device=place.device)):
        return rows
    return rows[place.to(rows.device)]


def _reranker(cross_encoder: Any, texts: PairTexts, batch_size: int) -> Rerank:
    import pyarrow as pa

    options = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_tensor": True}
    options = accepted(cross_encoder.predict, options)

    def of(source: pa.Array, rows: Tensor) -> list[str]:
        return source.take(pa.array(rows.cpu().numpy())).to_pylist()

    def rerank(query: Tensor, rows: Tensor) -> Any:
        return cross_encoder.predict(list(zip(of(texts.queries, query), of(texts.corpus, rows))), **options)

    return rerank
