"""The studies on a handful of rows: what is mined, cached and written."""

import gzip
import json
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_encoder import WORDS, sentences, write_tiny_encoder

from benchmarks.studies import objectives, retrieval, sts
from benchmarks.studies.cache import cached
from benchmarks.studies.retrieval import Filters, drawn, mined, read_collection

# Negatives


@pytest.mark.parametrize("filters", [Filters(), Filters(range_min=2, max_score=0.2)])
def test_each_pair_has_the_negatives_of_its_query(filters):
    """What passes is the miner's matter; which row belongs to which pair is this study's."""
    torch.manual_seed(3)
    query, corpus = torch.randn(6, 8), torch.randn(40, 8)
    known = [[q, q + 10] for q in range(5)] + [[7]]
    pairs = torch.tensor([(q, document) for q, documents in enumerate(known) for document in documents])
    scores = torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(corpus).T
    for (q, _), found in zip(pairs.tolist(), mined(query, corpus, pairs, known, filters, 4).tolist(), strict=True):
        order = [j for j in scores[q].argsort(descending=True).tolist() if j not in known[q]]
        left = [j for j in order if filters.max_score is None or scores[q, j] <= filters.max_score]
        assert found == left[filters.range_min :][:4]


def test_random_negatives_are_others_of_the_corpus_and_follow_the_seed():
    known, pairs = [[0, 1, 2], [3]], torch.tensor([(0, 0), (0, 1), (1, 3)])
    got = drawn(6, pairs, known, 3, seed=1)
    assert got.shape == (3, 3)
    for (q, _), row in zip(pairs.tolist(), got.tolist()):
        assert len(set(row)) == 3
        assert not set(row) & set(known[q])
    assert torch.equal(got, drawn(6, pairs, known, 3, seed=1))
    assert not torch.equal(got, drawn(6, pairs, known, 3, seed=2))


# Cache


@pytest.mark.parametrize("name", ["a.json", "a.pt"])
def test_a_result_of_other_settings_is_made_again(tmp_path, name):
    path, made = tmp_path / name, []

    def make():
        made.append(1)
        return {"score": len(made)}

    for settings, score in (({"lr": 1, "where": (1, 2)}, 1), ({"lr": 1, "where": (1, 2)}, 1), ({"lr": 2}, 2)):
        assert cached(path, settings, make)["score"] == score
    with pytest.raises(ZeroDivisionError):
        cached(path, {"lr": 3}, lambda: 1 / 0)
    assert cached(path, {"lr": 2}, make)["score"] == 2
    assert [x.name for x in tmp_path.iterdir()] == [name]


# Retrieval


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="\n") as file:
        file.writelines("\t".join(map(str, row)) + "\n" for row in (header.split(), *rows))


@pytest.fixture
def data(tmp_path):
    """Both collections in small: 24 documents, 12 training claims, 4 test claims; 3 queries with 4 relevant each."""
    folder, texts, draw = tmp_path / "data", sentences(24), random.Random(0)
    claims = [(f"q{i}", "train" if i < 12 else "test", " ".join(texts[i].split()[:4])) for i in range(16)]
    judged = [(query, f"d{i}", 1, split) for i, (query, split, _) in enumerate(claims)] + [("q0", "d20", 1, "train")]
    relevant = [(i, i + 3 * j, 1) for i in range(3) for j in range(4)] + [(0, 23, 0)]
    for name, header, rows in (
        ("scifact.corpus", "doc_id title text", [(f"d{i}", draw.choice(WORDS), text) for i, text in enumerate(texts)]),
        ("scifact.queries", "query_id split text", claims),
        ("scifact.qrels", "query_id doc_id relevance split", judged),
        ("vaswani.corpus", "doc_id text", list(enumerate(texts))),
        ("vaswani.queries", "query_id text", [(i, texts[i].upper()) for i in range(3)]),
        ("vaswani.qrels", "query_id doc_id relevance", relevant),
    ):
        write_table(folder / name.partition(".")[0] / f"{name}.tsv.gz", header, rows)
    return folder


def test_collections_are_read_with_one_split_only(data):
    train, test = (read_collection(data / "scifact", split) for split in ("train", "test"))
    assert (len(train.queries), len(test.queries), len(train.corpus)) == (12, 4, 24)
    assert len(train.corpus["d0"].split()) == 7  # title and text
    assert train.relevant["q0"] == ["d0", "d20"]
    assert not set(train.relevant) & set(test.relevant)
    assert len(train.pairs) == 13
    found = read_collection(data / "vaswani")
    assert found.relevant["0"] == ["0", "3", "6", "9"]
    assert found.queries["1"] == found.queries["1"].lower()


@pytest.fixture
def study(monkeypatch, tmp_path, data):
    """Runs the study over those collections with a tiny model."""
    model, filters = write_tiny_encoder(tmp_path / "tiny"), Filters(relative_margin=0.001)
    monkeypatch.setattr(retrieval, "FILTERS", filters)
    monkeypatch.setattr(retrieval, "MINING_ROWS", {"model": model, "tokens": 32})
    small = {"model": model, "batch_size": 4, "score_tokens": 32, "filters": filters._asdict()}
    monkeypatch.setattr(retrieval, "SCIFACT", {**retrieval.SCIFACT, **small})
    small = {"model": model, "tokens": 32, "negatives": 3, "draws": [1, 2]}
    monkeypatch.setattr(retrieval, "VASWANI", {**retrieval.VASWANI, **small})

    def run(*arguments):
        files = ["--data", data, "--work", tmp_path / "work", "--output", tmp_path / "r.json"]
        monkeypatch.setattr(sys, "argv", ["retrieval", *map(str, files), *arguments])
        retrieval.main()
        return json.loads((tmp_path / "r.json").read_text())

    return run


def test_an_interrupted_study_continues(study, tmp_path, monkeypatch):
    ran, real = [], retrieval.train_and_score

    def interrupted(method, seed, *rest):
        ran.append(method)
        if ran == ["in-batch", "random"]:
            raise KeyboardInterrupt
        return real(method, seed, *rest)

    monkeypatch.setattr(retrieval, "train_and_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study("--part", "scifact", "--seeds", "1")
    first = json.loads((tmp_path / "r.json").read_text())["scifact"]["runs"]
    assert [run["method"] for run in first] == ["in-batch"]
    assert not list((tmp_path / "work").glob("*.part"))

    report = study("--seeds", "1")
    assert ran == ["in-batch", "random", "random", "mined"]
    found = {run["method"]: run for run in report["scifact"]["runs"]}
    assert found["in-batch"] == first[0]
    for run in found.values():
        assert 0 <= run["ndcg_at_10"] <= 1
        assert run["recall_at_100"] == 1  # the corpus has fewer than 100
        assert run["steps"] == run["pairs"] // 4
    assert (found["in-batch"]["pairs"], found["random"]["pairs"]) == (13, 13)
    rows = report["vaswani"]["rows"]
    assert rows[0]["filters"] == "none"
    assert (rows[0]["queries"], rows[0]["wanted"], rows[0]["negatives"]) == (6, 18, 18)
    assert 0 < rows[0]["false"] <= 18


def test_training_rows_hold_no_known_positive_and_no_pair_without_a_negative(study, data, monkeypatch):
    train = read_collection(data / "scifact", "train")
    rows = {"query": torch.randn(12, 8), "corpus": torch.randn(24, 8)}
    texts = {text: query for query, text in train.queries.items()}
    assert retrieval.training_rows("in-batch", 1, train, rows).column_names == ["anchor", "positive"]
    for method in ("random", "mined"):
        for row in retrieval.training_rows(method, 1, train, rows):
            positives = {train.corpus[document] for document in train.relevant[texts[row["anchor"]]]}
            assert row["positive"] in positives
            assert row["negative_1"] not in positives
    monkeypatch.setattr(retrieval, "mined", lambda *a: torch.tensor([[22], [-1], *[[23]] * 11]))
    dataset = retrieval.training_rows("mined", 1, train, rows)
    assert len(dataset) == 12
    assert set(dataset["negative_1"]) == {train.corpus["d22"], train.corpus["d23"]}


# STS


def test_sts_runs_are_joined_with_earlier_ones_and_scored_on_further_sets(tmp_path, monkeypatch):
    header = "split\tscore\tsentence1\tsentence2\tin_stsb"
    for name in ("stsb.dev", "stsb.test"):
        write_table(tmp_path / f"{name}.tsv.gz", header, [("x", 1, "a", "b", "-")])
    write_table(tmp_path / "sts15.tsv.gz", header, [("x", 1, "a", "b", "-"), ("x", 2, "c", "d", "train")])
    (tmp_path / "corpus.txt").write_text("one\ntwo\n")
    monkeypatch.setattr(sts, "RESULT", tmp_path / "sts.json")
    sts.RESULT.write_text(
        json.dumps({"runs": [{"objective": "focal", "seed": 1}, {"objective": "hsimcse", "seed": 1}]})
    )
    commands = []

    def run(command, **options):
        commands.append(command[3:])
        trained = dict(backend="cpp", seconds=1.0, best_step=25, dev_before=79.0, dev=[80.0])
        scores = {"stsb.dev": 84.0, "stsb.test": 78.0, "sts15": 80.0, "sts15.apart": 70.0}
        files = [dict(name=f"{x}.tsv", spearman=scores[x], alignment=0.1, uniformity=-2.0) for x in scores]
        return SimpleNamespace(stdout=json.dumps(trained if command[3] == "train" else {"files": files}))

    monkeypatch.setattr(sts, "environment", lambda device: {"cpu": "planted"})
    monkeypatch.setattr(sts.subprocess, "run", run)
    work = tmp_path / "work"
    paths = f"--corpus {tmp_path / 'corpus.txt'} --sts-dir {tmp_path} --work {work} --more {tmp_path / 'sts15.tsv.gz'}"
    monkeypatch.setattr(sys, "argv", ["sts", *paths.split(), "--seeds", "1", "--objectives", "hsimcse --margin 0.2"])
    sts.main()
    runs = json.loads(sts.RESULT.read_text())["runs"]
    assert [(x["objective"], x["seed"]) for x in runs] == [("focal", 1), ("hsimcse", 1), ("hsimcse --margin 0.2", 1)]
    assert (runs[-1]["dev"], runs[-1]["test"], runs[-1]["more"]) == (84.0, 78.0, {"sts15": 80.0, "sts15.apart": 70.0})
    assert (work / "sets" / "sts15.apart.tsv").read_text().splitlines() == [header, "x\t1\ta\tb\t-"]
    assert commands[0][commands[0].index("--bank") + 1] == str(work / "bank.txt")
    assert (work / "bank.txt").read_text() == "one\ntwo\n"
    # The bank that this run encoded is another argument, and no reason to train again.
    (work / "hsimcse-margin 0.2-1" / "checkpoint-25" / "bank").mkdir(parents=True)
    sts.main()
    assert len(commands) == 2


# Objectives


def test_parts_of_an_objective_stand_beside_infonce_and_float64(tmp_path, monkeypatch, capsys):
    for name, third, parts in (
        ("clusterns", "--clusters", ["infonce", "centroids alone", "whole", "margin over active pairs"]),
        (
            "hsimcse",
            "--bank",
            ["infonce", "infonce with statistics", "hinge alone", "whole", "adversarial step", "search"],
        ),
    ):
        out = tmp_path / f"{name}.json"
        command = f"objectives {name} --n 60 --d 16 {third} 40 --repeat 1 --output {out}"
        monkeypatch.setattr(sys, "argv", command.split())
        objectives.main()
        assert "x infonce" in capsys.readouterr().out
        (result,) = json.loads(out.read_text())["results"]
        assert [row["part"] for row in result["rows"]] == parts
        assert result["rows"][0]["to_infonce"] == 1
        if name == "clusterns":
            assert all(0 <= row["gradient_error"] < 1e-5 and row["loss_error"] < 1e-5 for row in result["rows"])


def test_every_pair_of_a_cluster_has_a_gradient(monkeypatch):
    seen = []
    noted = lambda *rows, **options: seen.append((rows, options)) or rows[0].sum() + rows[1].sum()  # noqa: E731
    monkeypatch.setattr(objectives.fastcse, "clusterns_loss", noted)
    objectives.clusterns(40, 8, 4)
    rows, options = seen[0]
    assert options["alpha"] == options["beta"]
    assert rows[4].sum() == 40
    assert rows[2].max() < 4


def test_a_wrong_objective_is_not_written():
    leaves = [torch.randn(6, 4, requires_grad=True) for _ in range(2)]
    right = lambda a, c: (a * c).sum()  # noqa: E731
    assert max(objectives.against_float64("right", right, *leaves)) < 1e-6
    wrong = lambda a, c: right(a, c) * (1.001 if a.dtype == torch.float32 else 1)  # noqa: E731
    with pytest.raises(objectives.WrongAnswer, match=r"wrong misses float64 by 1\.0e-03"):
        objectives.against_float64("wrong", wrong, *leaves)
