"""What mined hard negatives are worth: SciFact after training with and without them, and Vaswani as a mining stress.

    python -m benchmarks.studies.retrieval --data FOLDER [--part scifact] [--seeds 1 2 3] [--methods mined]

SciFact: training on its claims with in-batch negatives alone, with random and with mined ones. Vaswani: mining with ONE
known positive a query where there are 22: how many of the mined negatives are relevant by the judgements.

FOLDER holds `scifact` and `vaswani`. Whatever lies in --work with the same settings is not made again, so that an
interrupted study continues, and two processes may share the folder. Writes benchmarks/results/retrieval.json after each
run.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import set_seed

from fastcse.bench.environment import environment
from fastcse.encoding import encode_texts
from fastcse.files import read_lines, write_json
from fastcse.integrations.sentence_transformers import FusedContrastiveLoss
from fastcse.losses.infonce import infonce_loss
from fastcse.mining.negatives import mine_negatives
from fastcse.mining.positives import Positives
from fastcse.training.encoders import load_encoder
from fastcse.training.trainer import make_trainer

from .cache import cached, read_cached

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "retrieval.json"
COMMAND = "python -m benchmarks.studies.retrieval --data FOLDER"
METHODS = ("in-batch", "random", "mined")
WHAT = {
    "scifact": "SciFact, 300 test claims: nDCG@10 and recall@100 of all-MiniLM-L6-v2 before and after one epoch of "
    "InfoNCE on the 919 pairs of the training claims",
    "vaswani": "Vaswani, 93 queries with 22 relevant documents each, of which the miner knows one: how many mined "
    "negatives are relevant by the judgements",
}


class Collection(NamedTuple):
    """`corpus` and `queries` are id -> text; `relevant` is query id -> ids of its relevant documents, in file order."""

    corpus: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, list[str]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every (query id, relevant document's id)."""
        return [(query, document) for query, documents in self.relevant.items() for document in documents]

    @property
    def known(self) -> list[list[int]]:
        """The rows of each query's relevant documents."""
        row = {document: i for i, document in enumerate(self.corpus)}
        return [[row[document] for document in self.relevant.get(query, [])] for query in self.queries]


def read_collection(folder: Path, split: str | None = None) -> Collection:
    """A collection as published, gzip'd tables with one header row and no quoting; of one split, where it has any.

    Documents are title and text where they have a title. Vaswani's queries, published in capitals, are put in small
    letters like its documents.
    """

    def rows(name: str) -> list[dict[str, str]]:
        path = folder / f"{folder.name}.{name}.tsv.gz"
        header, *lines = (line.split("\t") for line in read_lines(path, "--data"))
        return [dict(zip(header, line, strict=True)) for line in lines]

    corpus = {row["doc_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in rows("corpus")}
    asked, judged = ([row for row in rows(name) if row.get("split") == split] for name in ("queries", "qrels"))
    relevant: dict[str, list[str]] = {}
    for row in judged:
        if int(row["relevance"]) > 0:
            relevant.setdefault(row["query_id"], []).append(row["doc_id"])
    lower = str.lower if folder.name == "vaswani" else str
    return Collection(corpus, {row["query_id"]: lower(row["text"]) for row in asked}, relevant)


class Filters(NamedTuple):
    """Which of the nearest documents may be negatives: options of `mine_negatives`."""

    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None

    @property
    def text(self) -> str:
        """The options that are set, to read."""
        chosen = [f"{name} {value:g}" for name, value in self._asdict().items() if value != self._field_defaults[name]]
        return ", ".join(chosen) or "none"


def mined(query: Tensor, corpus: Tensor, pairs: Tensor, known: list[list[int]], filters: Filters, count: int) -> Tensor:
    """(P, count) the best documents that pass, of each pair (query row, positive row); -1 where there are fewer.

    `known` holds every query's known positives: none of them is a negative.
    """
    numbers = [(q, document) for q, documents in enumerate(known) for document in documents]
    positives = Positives.from_pairs(*zip(*numbers), queries=len(query))
    found = mine_negatives(query, corpus, positives, num_negatives=count, **filters._asdict())
    return found.indices[pairs[:, 0]]


def drawn(documents: int, pairs: Tensor, known: list[list[int]], count: int, seed: int) -> Tensor:
    """(P, count) documents drawn without replacement, the query's known positives left out."""
    draw = random.Random(seed)
    rows = [(q, draw.sample(range(documents), count + len(known[q]))) for q in pairs[:, 0].tolist()]
    return torch.tensor([[x for x in row if x not in known[q]][:count] for q, row in rows])


def encoded(data: Collection, settings: dict[str, Any], label: str) -> dict[str, Tensor]:
    """Rows of queries and documents by the untrained model; `settings` has `model` and `tokens`."""
    model = load_encoder(settings["model"])
    model.max_seq_length = settings["tokens"]
    texts = {"query": list(data.queries.values()), "corpus": list(data.corpus.values())}
    with tqdm(total=sum(len(x) for x in texts.values()), desc=label, dynamic_ncols=True) as progress:
        return {name: encode_texts(model, x, progress=progress) for name, x in texts.items()}


# SciFact

FILTERS = Filters(relative_margin=0.05)
SCIFACT = {
    "model": "minilm", "batch_size": 32, "epochs": 1, "lr": 2e-5, "temperature": 0.05, "train_tokens": 128,
    "score_tokens": 128, "negatives": 1, "filters": FILTERS._asdict(),
}  # fmt: skip
MINING_ROWS = {"model": "minilm", "tokens": 256}  # encoded once, at the model's own limit
SCORES = {"ndcg_at_10": "ndcg@10", "recall_at_100": "recall@100"}


class Scorer(InformationRetrievalEvaluator):
    """sentence-transformers' evaluator with one progress bar."""

    def __init__(self, data: Collection, label: str, batch_size: int = 32):
        relevant = {query: set(found) for query, found in data.relevant.items()}
        super().__init__(
            data.queries, data.corpus, relevant, corpus_chunk_size=len(data.corpus), batch_size=batch_size,
            ndcg_at_k=[10], precision_recall_at_k=[100], mrr_at_k=[10], accuracy_at_k=[1], map_at_k=[100],
            main_score_function="cosine", name="test", write_csv=False,
        )  # fmt: skip
        self.label = label

    def embed_inputs(self, model: SentenceTransformer, sentences: list[str], encode_fn_name=None, **kwargs) -> Tensor:
        with tqdm(total=len(sentences), desc=f"{self.label}: {encode_fn_name}", dynamic_ncols=True) as progress:
            return encode_texts(model, sentences, batch_size=self.batch_size, progress=progress)


def scores(model: SentenceTransformer, test: Collection, label: str) -> dict[str, float]:
    """nDCG@10 and recall@100."""
    model.max_seq_length = SCIFACT["score_tokens"]
    metrics = Scorer(test, label)(model)
    return {name: round(float(metrics[f"test_cosine_{key}"]), 4) for name, key in SCORES.items()}


def before(test: Collection) -> dict[str, Any]:
    """Scores of the untrained model."""
    start = time.perf_counter()
    found = scores(load_encoder(SCIFACT["model"]), test, "before")
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def training_rows(method: str, seed: int, train: Collection, rows: dict[str, Tensor]) -> Dataset:
    """Claims and abstracts; a third column of negatives where the method has any, without the rows that have none."""
    queries, documents, known = list(train.queries), list(train.corpus), train.known
    pairs = torch.tensor([(queries.index(query), documents.index(document)) for query, document in train.pairs])
    columns = {"anchor": pairs[:, 0].tolist(), "positive": pairs[:, 1].tolist()}
    if method != "in-batch":
        count = SCIFACT["negatives"]
        if method == "random":
            negative = drawn(len(documents), pairs, known, count, seed)
        else:
            negative = mined(rows["query"], rows["corpus"], pairs, known, FILTERS, count)
        columns |= {f"negative_{i + 1}": column.tolist() for i, column in enumerate(negative.T)}
    whole = [row for row in zip(*columns.values()) if min(row) >= 0]
    texts = [list(train.queries.values()), *[list(train.corpus.values())] * (len(columns) - 1)]
    chosen = {name: [text[i] for i in column] for name, text, column in zip(columns, texts, zip(*whole))}
    return Dataset.from_dict(chosen)


def train_and_score(
    method: str, seed: int, train: Collection, test: Collection, rows: dict[str, Tensor]
) -> dict[str, Any]:
    """One training and its scores."""
    s, label = SCIFACT, f"{method}, seed {seed}"
    model = load_encoder(s["model"])
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
    found = scores(model, test, label)
    seconds = {"train_seconds": round(trained, 1), "seconds": round(time.perf_counter() - start, 1)}
    facts = {key: value for key, value in environment("cpu").items() if key in ("threads", "commit", "time")}
    run = {"method": method, "seed": seed, **found, "pairs": len(dataset), "steps": steps}
    return {**run, "backend": loss.used_backend, **seconds, **facts}


def run_scifact(data: Path, work: Path, result: Path, methods: list[str], seeds: list[int]) -> None:
    """The untrained model, then every method with every seed."""
    train, test = (read_collection(data / "scifact", split) for split in ("train", "test"))
    untrained = {name: SCIFACT[name] for name in ("model", "score_tokens")}
    cached(work / "scifact-before.json", untrained, lambda: before(test))
    make_rows = lambda: {"rows": encoded(train, MINING_ROWS, "encode to mine")}  # noqa: E731
    rows = cached(work / "scifact-rows.pt", MINING_ROWS, make_rows)["rows"]
    gather(work, result)
    for seed in seeds:
        for method in methods:
            run = lambda: train_and_score(method, seed, train, test, rows)  # noqa: B023, E731
            cached(work / f"scifact-{method}-{seed}.json", SCIFACT, run)
            gather(work, result)


# Vaswani

STRESSED = (
    Filters(),
    *(Filters(range_min=n) for n in (10, 30, 50)),
    *(Filters(max_score=x) for x in (0.8, 0.6, 0.5)),
    *(Filters(absolute_margin=x) for x in (0.05, 0.1, 0.2)),
    *(Filters(relative_margin=x) for x in (0.05, 0.1, 0.2, 0.3)),
    Filters(range_min=10, relative_margin=0.05),
    Filters(range_min=10, relative_margin=0.2),
)
VASWANI = {"model": "minilm", "tokens": 256, "negatives": 10, "range_max": 100, "draws": [1, 2, 3, 4, 5]}


def count_false(data: Collection, rows: dict[str, Tensor], filters: Filters) -> dict[str, Any]:
    """What is mined with one setting of the filters over all draws of the known positive, and how much of it is
    relevant by the judgements."""
    relevant, wanted = data.known, VASWANI["negatives"]
    negatives = false = short = 0
    for draw in VASWANI["draws"]:
        choose = random.Random(draw)
        known = [[choose.choice(documents)] for documents in relevant]
        pairs = torch.tensor([(query, positive) for query, (positive,) in enumerate(known)])
        ranked = filters._replace(range_max=VASWANI["range_max"])
        found = mined(rows["query"], rows["corpus"], pairs, known, ranked, wanted)
        kept = [[x for x in row if x >= 0] for row in found.tolist()]
        negatives += sum(map(len, kept))
        false += sum(x in relevant[query] for query, row in enumerate(kept) for x in row)
        short += sum(len(row) < wanted for row in kept)
    queries = len(relevant) * len(VASWANI["draws"])
    counts = {"wanted": queries * wanted, "negatives": negatives, "false": false, "queries": queries}
    return {**ranked._asdict(), "filters": filters.text, **counts, "short_queries": short}


def run_vaswani(data: Path, work: Path, result: Path) -> None:
    """Encode once, mine with every setting of the filters."""
    found, models = read_collection(data / "vaswani"), {name: VASWANI[name] for name in ("model", "tokens")}
    rows = cached(work / "vaswani-rows.pt", models, lambda: {"rows": encoded(found, models, "vaswani")})["rows"]

    def stress() -> dict[str, Any]:
        start = time.perf_counter()
        table = [count_false(found, rows, filters) for filters in STRESSED]
        return {"rows": table, "seconds": round(time.perf_counter() - start, 1)}

    cached(work / "vaswani.json", {**VASWANI, "filters": [f.text for f in STRESSED]}, stress)
    gather(work, result)


# Both


def gather(work: Path, result: Path) -> None:
    """All results in the folder, as one document."""
    report: dict[str, Any] = {"command": COMMAND, "machine": environment("cpu")}
    settings = json.loads(json.dumps(SCIFACT))
    runs = [read_cached(path) for path in sorted(work.glob("scifact-*-*.json"))]
    runs = [_without_settings(run) for run in runs if run["settings"] == settings]
    if (untrained := read_cached(work / "scifact-before.json")) is not None:
        report["scifact"] = {
            "what": WHAT["scifact"],
            "settings": {**SCIFACT, "mining_rows": MINING_ROWS},
            "before": _without_settings(untrained),
            "runs": runs,
        }
    if (stress := read_cached(work / "vaswani.json")) is not None:
        report["vaswani"] = {"what": WHAT["vaswani"], **stress}
    write_json(result, report)


def _without_settings(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "settings"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.retrieval", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of scifact and vaswani")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "retrieval", help="what was done already")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--part", nargs="+", choices=tuple(WHAT), default=list(WHAT))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if "vaswani" in a.part:
        run_vaswani(a.data, a.work, a.output)
    if "scifact" in a.part:
        run_scifact(a.data, a.work, a.output, a.methods, a.seeds)


if __name__ == "__main__":
    main()
