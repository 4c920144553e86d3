"""Hard negatives of a dataset of texts, in the way of sentence-transformers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..ops import checks
from .formats import FORMATS, as_dataset, check_format
from .options import MiningOptions
from .pair_texts import read_pairs
from .report import report_table
from .text_search import Encoding, mine_texts, of_distinct

if TYPE_CHECKING:
    from datasets import Dataset


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
        model:     a SentenceTransformer, or anything with `encode(texts)`; not asked where both embeddings are given,
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
        comes first. A cross-encoder is also used without any filter, over the wide window. A pair that comes twice
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
    options = MiningOptions(
        range_min, range_max, max_score, min_score, absolute_margin, relative_margin, num_negatives, sampling_strategy,
        seed, include_positives,
    )  # fmt: skip
    checks.check_choice("output_format", output_format, FORMATS)
    if include_positives and output_format != "n-tuple":
        warnings.warn(
            f"include_positives needs output_format 'n-tuple', which keeps the ranking: it replaces {output_format!r}",
            stacklevel=2,
        )
        output_format = "n-tuple"
    texts = read_pairs(dataset, anchor_column_name, positive_column_name, corpus)
    check_format(output_format, texts.names)
    encoding = Encoding(
        query_prompt_name, query_prompt, corpus_prompt_name, corpus_prompt, batch_size, cache_folder,
        *of_distinct(texts, query_embeddings, corpus_embeddings),
    )  # fmt: skip
    mined = mine_texts(
        texts, model, options, encoding, cross_encoder=cross_encoder, backend=backend, index=index, progress=verbose
    )
    if verbose:
        from rich.console import Console

        Console(stderr=True).print(report_table(mined))
    return as_dataset(mined, texts, output_format, output_scores)
