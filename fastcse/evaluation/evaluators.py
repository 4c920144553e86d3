"""Scores of an encoder: on STS sets, Spearman x 100 over all pairs of a set; on pairs, retrieval of an anchor's own
positive among all positives; with alignment and uniformity of both."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from tqdm.auto import tqdm

from ..encoding import encode_texts
from ..losses.alignment_uniformity import alignment, uniformity
from .sts import StsSet

CLOSE = 4.0  # alignment is taken over pairs whose gold score is above this, on the 0 to 5 scale (strictly)


@dataclass(frozen=True)
class StsResult:
    """What one file scored. None where the value is undefined: no pair above 4, or one score only."""

    name: str
    pairs: int
    spearman: float | None  # x 100, rounded to two decimals as in the SimCSE tables
    alignment: float | None
    uniformity: float | None


class StsEvaluator(EmbeddingSimilarityEvaluator):
    """sentence-transformers' evaluator with uniformity, and alignment if a pair is close, among its scores. Each
    distinct sentence is encoded once."""

    def __init__(self, pairs: StsSet, *, name: str, batch_size: int = 64, progress: tqdm | None = None):
        columns = pairs.sentence1, pairs.sentence2, pairs.score
        super().__init__(*columns, batch_size=batch_size, main_similarity="cosine", name=name)
        self.progress = progress
        self.close = torch.tensor(pairs.score) > CLOSE

    def __call__(self, model: SentenceTransformer, *args, **kwargs) -> dict[str, float]:
        both = self.sentences1 + self.sentences2
        with self._bar(len(both)) as progress:
            rows = encode_texts(model, both, batch_size=self.batch_size, check=False, progress=progress)
        self.rows1, self.rows2 = rows[: len(self.sentences1)], rows[len(self.sentences1) :]
        scores = super().__call__(model, *args, **kwargs)
        scores[f"{self.name}_uniformity"] = float(uniformity(rows))
        if self.close.any():
            scores[f"{self.name}_alignment"] = float(alignment(self.rows1[self.close], self.rows2[self.close]))
        return scores

    def _bar(self, total: int):
        """The bar that was given, left open, or one of its own that disappears."""
        if self.progress is not None:
            return contextlib.nullcontext(self.progress)
        return tqdm(total=total, desc=f"score {self.name}", unit=" sentences", leave=False, dynamic_ncols=True)

    def embed_inputs(self, model: SentenceTransformer, sentences: list[str], **kwargs) -> np.ndarray:
        """The rows that were made at the start of the call."""
        # By identity: the two sides may hold equal text.
        return (self.rows1 if sentences is self.sentences1 else self.rows2).numpy()


def evaluate_sts(model: SentenceTransformer, sets: list[StsSet], *, batch_size: int = 64) -> list[StsResult]:
    """Score a model on each set. One progress bar, on stderr, counts sentences over all sets.

    Spearman is over all pairs of a set together (SimCSE's setting "all"). With unit rows x, y:

        alignment  = mean over pairs with score > 4 of |x - y|^2
        uniformity = log mean over all a < b of exp(-2 |x_a - x_b|^2), both sides concatenated

    Example:
        >>> results = evaluate_sts(model, find_sts("sts"))        # doctest: +SKIP
        >>> print(results[0].name, results[0].spearman)           # doctest: +SKIP
        stsb.dev.tsv.gz 79.7
    """
    total = sum(2 * len(one.score) for one in sets)
    with tqdm(total=total, desc="encode", unit=" sentences", dynamic_ncols=True) as progress:
        return [_evaluate(model, one, batch_size, progress) for one in sets]


def _evaluate(model: SentenceTransformer, pairs: StsSet, batch_size: int, progress: tqdm) -> StsResult:
    progress.set_postfix_str(pairs.name)
    scores = StsEvaluator(pairs, name="sts", batch_size=batch_size, progress=progress)(model)
    spearman, aligned = 100 * scores["sts_spearman_cosine"], scores.get("sts_alignment", math.nan)
    spread = (_finite(aligned, 4), _finite(scores["sts_uniformity"], 4))
    return StsResult(pairs.name, len(pairs.score), _finite(spearman, 2), *spread)


def _finite(value: float, digits: int) -> float | None:
    """A rounded float, or None: JSON has no NaN."""
    return round(float(value), digits) if math.isfinite(value) else None


@dataclass(frozen=True)
class RetrievalResult:
    """Scores in [0, 1], higher is better; alignment and uniformity, lower is better."""

    pairs: int
    mrr_at_10: float
    recall_at_1: float
    alignment: float
    uniformity: float


class PairRetrievalEvaluator(InformationRetrievalEvaluator):
    """sentence-transformers' retrieval evaluator over (anchor, positive) rows; the embeddings are kept for later.

    After a call, `anchor` and `positive` are the (pairs, D) float32 embeddings of the two sides.
    """

    def __init__(self, anchors: list[str], positives: list[str], *, batch_size: int = 64, progress: tqdm | None = None):
        # Ids of equal width, so that the evaluator's order of ties (by id) is the order of the rows.
        ids = [f"{i:08d}" for i in range(len(anchors))]
        depths = {"mrr_at_k": [10], "ndcg_at_k": [10], "map_at_k": [10]}
        depths |= {"accuracy_at_k": [1], "precision_recall_at_k": [1]}
        texts = dict(zip(ids, anchors)), dict(zip(ids, positives)), {i: {i} for i in ids}
        super().__init__(*texts, batch_size=batch_size, main_score_function="cosine", name="pairs", **depths)
        self.progress = progress

    def embed_inputs(self, model: SentenceTransformer, sentences: list[str], *, encode_fn_name=None, **kwargs):
        """(len(sentences), D) rows; one call for the anchors, one for the positives."""
        rows = encode_texts(model, sentences, batch_size=self.batch_size, check=False, progress=self.progress)
        setattr(self, "anchor" if encode_fn_name == "query" else "positive", rows)
        return rows


def evaluate_retrieval(
    model: SentenceTransformer, anchors: list[str], positives: list[str], *, batch_size: int = 64, label: str = "encode"
) -> RetrievalResult:
    """MRR@10 and recall@1 of finding `positives[i]` with `anchors[i]` by cosine, with alignment and uniformity.

    Example:
        >>> evaluate_retrieval(model, ["a cat"], ["a small animal"]).recall_at_1       # doctest: +SKIP
        1.0
    """
    with tqdm(total=2 * len(anchors), desc=label, unit=" sentences", dynamic_ncols=True) as progress:
        evaluator = PairRetrievalEvaluator(anchors, positives, batch_size=batch_size, progress=progress)
        metrics = evaluator(model)
    return RetrievalResult(
        pairs=len(anchors),
        mrr_at_10=round(float(metrics["pairs_cosine_mrr@10"]), 4),
        recall_at_1=round(float(metrics["pairs_cosine_recall@1"]), 4),
        alignment=round(float(alignment(evaluator.anchor, evaluator.positive)), 4),
        uniformity=round(float(uniformity(torch.cat([evaluator.anchor, evaluator.positive]))), 4),
    )
