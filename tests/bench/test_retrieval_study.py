"""The study of mined negatives, on a handful of rows: what is mined, what is kept, what is reported."""

import gzip
import json
import random
import sys

import pytest
import torch
from tiny_encoder import WORDS, sentences, write_tiny_encoder

from benchmarks.report.mining import mining_figure, scifact_table, vaswani_table
from benchmarks.retrieval import __main__ as study
from benchmarks.retrieval import scifact, vaswani
from benchmarks.retrieval.collection import read_scifact, read_vaswani
from benchmarks.retrieval.kept import kept_json, kept_rows
from benchmarks.retrieval.negatives import Filters, drawn, mined

# Mining


def by_hand(query, corpus, pairs, known, filters, count):
    """The negatives as the words of the documentation say, one by one."""
    unit = torch.nn.functional.normalize
    scores = unit(query.double()) @ unit(corpus.double()).T
    most_positives, found = max(map(len, known)), []
    for q in pairs[:, 0].tolist():
        order = sorted(range(len(corpus)), key=lambda j: (-scores[q, j].item(), j))
        looked_at = order if filters.range_max is None else order[: filters.range_max + most_positives]
        weakest = min(scores[q, j].item() for j in known[q])
        most = min([x for x in (
            filters.max_score,
            None if filters.absolute_margin is None else weakest - filters.absolute_margin,
            None if filters.relative_margin is None else weakest - abs(weakest) * filters.relative_margin,
        ) if x is not None], default=float("inf"))  # fmt: skip
        left = [j for j in looked_at if j not in known[q] and scores[q, j].item() <= most]
        chosen = left[filters.range_min : filters.range_max][:count]
        found.append(chosen + [-1] * (count - len(chosen)))
    return found


@pytest.mark.parametrize(
    "filters",
    [Filters(), Filters(range_min=3), Filters(2, 6), Filters(max_score=0.2), Filters(absolute_margin=0.3),
     Filters(relative_margin=0.5), Filters(1, 20, 0.4, 0.1, 0.2)],
    ids=lambda f: f.text,
)  # fmt: skip
def test_mined_negatives_are_those_that_pass(filters):
    torch.manual_seed(3)
    query, corpus = torch.randn(6, 8), torch.randn(40, 8)
    known = [[q, q + 10] for q in range(5)] + [[7]]
    pairs = torch.tensor([(q, document) for q, documents in enumerate(known) for document in documents])
    got = mined(query, corpus, pairs, known, filters, 4)
    assert got.tolist() == by_hand(query, corpus, pairs, known, filters, 4)
    assert not any(x in known[q] for (q, _), row in zip(pairs.tolist(), got.tolist()) for x in row)


def test_random_negatives_are_others_of_the_corpus_and_follow_the_seed():
    known, pairs = [[0, 1, 2], [3]], torch.tensor([(0, 0), (0, 1), (1, 3)])
    got = drawn(6, pairs, known, 3, seed=1)
    assert got.shape == (3, 3)
    for (q, _), row in zip(pairs.tolist(), got.tolist()):
        assert len(set(row)) == 3
        assert not set(row) & set(known[q])
    assert torch.equal(got, drawn(6, pairs, known, 3, seed=1))
    assert not torch.equal(got, drawn(6, pairs, known, 3, seed=2))


# What is kept


def test_what_was_made_with_other_settings_is_made_again(tmp_path):
    path, made = tmp_path / "a.json", []

    def make():
        made.append(1)
        return {"score": len(made)}

    for settings, score in (({"lr": 1, "where": (1, 2)}, 1), ({"lr": 1, "where": (1, 2)}, 1), ({"lr": 2}, 2)):
        assert kept_json(path, settings, make)["score"] == score
    with pytest.raises(ZeroDivisionError):
        kept_json(path, {"lr": 3}, lambda: 1 / 0)
    assert json.loads(path.read_text())["score"] == 2
    assert [x.name for x in tmp_path.iterdir()] == ["a.json"]


def test_rows_of_other_settings_are_made_again(tmp_path):
    path, made = tmp_path / "a.pt", []
    for tokens in (128, 128, 256):
        rows = kept_rows(path, {"tokens": tokens}, lambda: made.append(1) or {"corpus": torch.full((2,), len(made))})
    assert len(made) == 2
    assert rows["corpus"].tolist() == [2, 2]
    torch.save({"corpus": torch.zeros(2)}, path)  # nobody knows how it was made
    assert kept_rows(path, {"tokens": 256}, lambda: {"corpus": torch.ones(2)})["corpus"].tolist() == [1, 1]


# The whole study


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="\n") as file:
        file.writelines("\t".join(map(str, row)) + "\n" for row in (header, *rows))


@pytest.fixture
def data(tmp_path):
    """Both collections in small: 24 documents, 12 training claims, 4 test claims; 3 queries with 4 relevant each."""
    folder, texts, draw = tmp_path / "data", sentences(24), random.Random(0)
    part = lambda text: " ".join(text.split()[:4])  # noqa: E731
    write_table(folder / "scifact" / "scifact.corpus.tsv.gz", ("doc_id", "title", "text"),
                [(f"d{i}", draw.choice(WORDS), text) for i, text in enumerate(texts)])  # fmt: skip
    splits = ["train"] * 12 + ["test"] * 4
    write_table(folder / "scifact" / "scifact.queries.tsv.gz", ("query_id", "split", "text"),
                [(f"q{i}", split, part(texts[i])) for i, split in enumerate(splits)])  # fmt: skip
    judged = [(f"q{i}", f"d{i}", 1, split, "SUPPORT") for i, split in enumerate(splits)]
    judged.append(("q0", "d20", 1, "train", "SUPPORT"))
    write_table(folder / "scifact" / "scifact.qrels.tsv.gz",
                ("query_id", "doc_id", "relevance", "split", "evidence_label"), judged)  # fmt: skip
    write_table(folder / "vaswani" / "vaswani.corpus.tsv.gz", ("doc_id", "text"),
                [(i, text) for i, text in enumerate(texts)])  # fmt: skip
    write_table(folder / "vaswani" / "vaswani.queries.tsv.gz", ("query_id", "text"),
                [(i, texts[i].upper()) for i in range(3)])  # fmt: skip
    write_table(folder / "vaswani" / "vaswani.qrels.tsv.gz", ("query_id", "doc_id", "relevance"),
                [(i, i + 3 * j, 1) for i in range(3) for j in range(4)] + [(0, 23, 0)])  # fmt: skip
    return folder


def test_collections_are_read_with_one_split_only(data):
    train, test = (read_scifact(data / "scifact", split) for split in ("train", "test"))
    assert (len(train.queries), len(test.queries), len(train.corpus)) == (12, 4, 24)
    assert train.relevant["q0"] == ["d0", "d20"]
    assert not set(train.relevant) & set(test.relevant)
    assert len(train.pairs) == 13
    found = read_vaswani(data / "vaswani")
    assert found.relevant["0"] == ["0", "3", "6", "9"]
    assert found.queries["1"] == found.queries["1"].lower()


@pytest.fixture
def small(monkeypatch, tmp_path, data):
    """The study over those collections with a tiny model; returns how to run it."""
    settings = {**scifact.SETTINGS, "model": write_tiny_encoder(tmp_path / "tiny"), "batch_size": 4, "score_tokens": 32,
                "filters": Filters(relative_margin=0.001)._asdict()}  # fmt: skip
    monkeypatch.setattr(scifact, "SETTINGS", settings)
    monkeypatch.setattr(scifact, "MINING_ROWS", {"model": settings["model"], "tokens": 32})
    monkeypatch.setattr(scifact, "FILTERS", Filters(relative_margin=0.001))
    monkeypatch.setattr(vaswani, "SETTINGS", {**vaswani.SETTINGS, "model": settings["model"], "tokens": 32,
                                              "negatives": 3, "draws": [1, 2]})  # fmt: skip

    def run(*arguments):
        common = ["retrieval", "--data", data, "--work", tmp_path / "work", "--output", tmp_path / "r.json"]
        monkeypatch.setattr(sys, "argv", [str(x) for x in (*common, *arguments)])
        study.main()
        return json.loads((tmp_path / "r.json").read_text())

    return run


def test_the_study_runs_continues_and_is_reported(small, tmp_path, monkeypatch):
    first = small("--seeds", "1", "--methods", "in-batch", "random")
    assert [run["method"] for run in first["scifact"]["runs"]] == ["in-batch", "random"]
    ran = []
    real = scifact.run
    monkeypatch.setattr(scifact, "run", lambda *a: ran.append(a[1:3]) or real(*a))
    report = small("--seeds", "1")
    assert ran == [("mined", 1)]  # what lay there was not made again
    kept = {run["method"]: run for run in report["scifact"]["runs"]}
    assert kept["in-batch"] == first["scifact"]["runs"][0]
    for run in kept.values():
        assert 0 <= run["ndcg_at_10"] <= 1
        assert run["recall_at_100"] == 1  # the corpus has fewer than 100
        assert run["steps"] == run["pairs"] // 4
    assert (kept["in-batch"]["pairs"], kept["random"]["pairs"]) == (13, 13)
    rows = report["vaswani"]["rows"]
    assert rows[0]["filters"] == "none"
    assert (rows[0]["queries"], rows[0]["wanted"], rows[0]["negatives"]) == (6, 18, 18)
    assert 0 < rows[0]["false"] <= 18
    assert report["machine"]["cpu"]
    assert "| and one mined | 1 | " in scifact_table(report)
    assert f"| none | 18 | 100% | {rows[0]['false']} |" in vaswani_table(report)
    mining_figure(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_mined_rows_hold_no_known_positive(small, data):
    train = read_scifact(data / "scifact", "train")
    rows = {"query": torch.randn(12, 8), "corpus": torch.randn(24, 8)}
    for method in ("random", "mined"):
        dataset = scifact.training_rows(method, 1, train, rows)
        assert dataset.column_names == ["anchor", "positive", "negative_1"]
        texts = {text: query for query, text in train.queries.items()}
        for row in dataset:
            positives = {train.corpus[document] for document in train.relevant[texts[row["anchor"]]]}
            assert row["positive"] in positives
            assert row["negative_1"] not in positives
    assert scifact.training_rows("in-batch", 1, train, rows).column_names == ["anchor", "positive"]


def test_a_pair_without_a_negative_is_left_out(small, data, monkeypatch):
    train = read_scifact(data / "scifact", "train")
    monkeypatch.setattr(scifact, "mined", lambda *a: torch.tensor([[22], [-1], *[[23]] * 11]))
    dataset = scifact.training_rows("mined", 1, train, {"query": None, "corpus": None})
    assert len(dataset) == 12
    assert set(dataset["negative_1"]) == {train.corpus["d22"], train.corpus["d23"]}


def test_an_interrupted_run_leaves_what_was_done(small, tmp_path, monkeypatch):
    real = scifact.run
    monkeypatch.setattr(scifact, "run", lambda *a: real(*a) if a[1] == "in-batch" else (_ for _ in ()).throw(
        KeyboardInterrupt()))  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        small("--part", "scifact", "--seeds", "1")
    assert [run["method"] for run in json.loads((tmp_path / "r.json").read_text())["scifact"]["runs"]] == ["in-batch"]
    assert not list((tmp_path / "work").glob("*.part"))


def test_without_a_report_nothing_is_measured():
    assert "not measured" in scifact_table(None)
    assert "not measured" in vaswani_table({"scifact": {}})
