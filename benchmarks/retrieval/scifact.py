"""Training on SciFact's claims with in-batch negatives alone, with random and with mined ones; scored on its test."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import set_seed

from fastcse.bench.machine import machine
from fastcse.evaluation.encoding import encode_distinct
from fastcse.integrations.sentence_transformers import FusedContrastiveLoss
from fastcse.losses.infonce import infonce_loss
from fastcse.training.trainer import make_trainer

from .collection import Collection
from .negatives import Filters, drawn, mined

METHODS = ("in-batch", "random", "mined")
FILTERS = Filters(relative_margin=0.05)
SETTINGS = {
    "model": "minilm", "batch_size": 32, "epochs": 1, "lr": 2e-5, "temperature": 0.05, "train_tokens": 128,
    "score_tokens": 128, "negatives": 1, "filters": FILTERS._asdict(),
}  # fmt: skip
# Encoded once; the model's own limit.
MINING_ROWS = {"model": "minilm", "tokens": 256}
SCORES = {"ndcg_at_10": "ndcg@10", "recall_at_100": "recall@100"}


class Scorer(InformationRetrievalEvaluator):
    """sentence-transformers' evaluator with one progress bar; the rows of queries and documents are kept for later."""

    def __init__(self, data: Collection, label: str, batch_size: int = 32):
        super().__init__(
            data.queries, data.corpus, {query: set(found) for query, found in data.relevant.items()},
            corpus_chunk_size=len(data.corpus), batch_size=batch_size, ndcg_at_k=[10], precision_recall_at_k=[100],
            mrr_at_k=[10], accuracy_at_k=[1], map_at_k=[100], main_score_function="cosine", name="test",
            write_csv=False,
        )  # fmt: skip
        self.label, self.rows = label, {}

    def embed_inputs(self, model: SentenceTransformer, sentences: list[str], encode_fn_name=None, **kwargs) -> Tensor:
        with tqdm(total=len(set(sentences)), desc=f"{self.label}: {encode_fn_name}", dynamic_ncols=True) as progress:
            rows = encode_distinct(model, sentences, batch_size=self.batch_size, progress=progress)
        self.rows[encode_fn_name] = rows
        return rows

    def scores(self, model: SentenceTransformer) -> dict[str, float]:
        """nDCG@10 and recall@100."""
        metrics = self(model)
        return {name: round(float(metrics[f"test_cosine_{key}"]), 4) for name, key in SCORES.items()}


def before(model: SentenceTransformer, test: Collection) -> dict[str, Any]:
    """Scores of the untrained model."""
    start = time.perf_counter()
    model.max_seq_length = SETTINGS["score_tokens"]
    scores = Scorer(test, "before").scores(model)
    return {**scores, "seconds": round(time.perf_counter() - start, 1)}


def mining_rows(model: SentenceTransformer, train: Collection) -> dict[str, Tensor]:
    """Rows of the training claims and of the corpus by the untrained model."""
    model.max_seq_length = MINING_ROWS["tokens"]
    texts = {"query": list(train.queries.values()), "corpus": list(train.corpus.values())}
    with tqdm(total=sum(len(set(x)) for x in texts.values()), desc="encode to mine", dynamic_ncols=True) as progress:
        return {name: encode_distinct(model, x, progress=progress) for name, x in texts.items()}


def training_rows(method: str, seed: int, train: Collection, rows: dict[str, Tensor]) -> Dataset:
    """Claims and abstracts; a third column of negatives where the method has any, without the rows that have none."""
    queries, documents = list(train.queries), list(train.corpus)
    number = {document: i for i, document in enumerate(documents)}
    known = [[number[document] for document in train.relevant.get(query, [])] for query in queries]
    pairs = torch.tensor([(queries.index(query), number[document]) for query, document in train.pairs])
    columns = {"anchor": pairs[:, 0].tolist(), "positive": pairs[:, 1].tolist()}
    if method != "in-batch":
        count = SETTINGS["negatives"]
        negative = (drawn(len(documents), pairs, known, count, seed) if method == "random"
                    else mined(rows["query"], rows["corpus"], pairs, known, FILTERS, count))  # fmt: skip
        columns |= {f"negative_{i + 1}": column.tolist() for i, column in enumerate(negative.T)}
    whole = [row for row in zip(*columns.values()) if min(row) >= 0]
    texts = [list(train.queries.values()), *[list(train.corpus.values())] * (len(columns) - 1)]
    chosen = {name: [text[i] for i in column] for name, text, column in zip(columns, texts, zip(*whole))}
    return Dataset.from_dict(chosen)


def run(
    model: SentenceTransformer, method: str, seed: int, train: Collection, test: Collection, rows: dict[str, Tensor]
) -> dict[str, Any]:
    """One training and its scores."""
    s, label = SETTINGS, f"{method}, seed {seed}"
    set_seed(seed)
    dataset = training_rows(method, seed, train, rows)
    steps = s["epochs"] * (len(dataset) // s["batch_size"])
    loss = FusedContrastiveLoss(model, infonce_loss, temperature=s["temperature"])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            model, dataset, loss, output_dir=Path(folder), batch_size=s["batch_size"], max_steps=steps, lr=s["lr"],
            max_length=s["train_tokens"], seed=seed, save_steps=None, label=label,
        )  # fmt: skip
        trainer.train()
    trained = time.perf_counter() - start
    model.max_seq_length = s["score_tokens"]
    scores = Scorer(test, label).scores(model)
    facts = machine("cpu")
    return {
        "method": method, "seed": seed, **scores, "pairs": len(dataset), "steps": steps, "backend": loss.used_backend,
        "train_seconds": round(trained, 1), "seconds": round(time.perf_counter() - start, 1),
        "threads": facts["threads"], "commit": facts["commit"], "time": facts["time"],
    }  # fmt: skip
