"""Retrieval over pairs: for each anchor, find its own positive among all positives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from tqdm.auto import tqdm

from ..encoding import encode_texts
from ..losses.alignment_uniformity import alignment, uniformity


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
        super().__init__(
            dict(zip(ids, anchors)), dict(zip(ids, positives)), {i: {i} for i in ids}, batch_size=batch_size,
            mrr_at_k=[10], ndcg_at_k=[10], accuracy_at_k=[1], precision_recall_at_k=[1], map_at_k=[10],
            main_score_function="cosine", name="pairs",
        )  # fmt: skip
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
