"""`fastcse mine`: files in, files out, runs that are killed, and who reads the result."""

import functools
import gzip
import json
import signal
import subprocess
import sys
import time

import pytest
from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny_encoder import sentences
from typer.testing import CliRunner

import fastcse
from fastcse.cli import app, mine_run
from fastcse.mining import texts
from fastcse.mining.texts import mine_hard_negatives
from fastcse.training.options import TrainOptions
from fastcse.training.run import train

ANCHORS, POSITIVES, MORE = sentences(30), sentences(30, seed=1), sentences(40, seed=2)


@pytest.fixture
def files(tmp_path):
    pairs = [*zip(ANCHORS, POSITIVES), (ANCHORS[0], POSITIVES[5])]  # one anchor has two positives
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}\t{p}\n" for a, p in pairs), encoding="utf-8")
    (tmp_path / "corpus.txt").write_text("\n".join([*MORE, POSITIVES[3], MORE[0]]), encoding="utf-8")
    return tmp_path


@pytest.fixture
def call(files, encoder_path):
    """`fastcse mine` on the pairs into mined.jsonl, unless the arguments say otherwise."""

    def go(*arguments, text=("--pairs", "pairs.tsv"), output="mined.jsonl", model=encoder_path):
        chosen = [str(files / word) if word in ("pairs.tsv", "corpus.txt") else str(word) for word in text]
        chosen += ["--output", str(files / output), "--model", str(model), *map(str, arguments)]
        return CliRunner().invoke(app, ["mine", *chosen])

    return go


def rows_of(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="\n") as file:
        lines = file.read().splitlines()
    if ".tsv" in path.name:
        names = lines[0].split("\t")
        return [dict(zip(names, line.split("\t"), strict=True)) for line in lines[1:]]
    return [json.loads(line) for line in lines]


def left(folder):
    """What a run has left, beside its input."""
    return sorted({path.name for path in folder.iterdir()} - {"pairs.tsv", "corpus.txt"})


def refused(result, says):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert says in last, last


@pytest.fixture
def encoded(monkeypatch):
    """How many texts the model was given, so far."""
    counts, plain = [], SentenceTransformer.encode

    def spy(self, *args, **kwargs):
        counts.append(len(args[0] if args else kwargs["inputs"]))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(SentenceTransformer, "encode", spy)
    return lambda: sum(counts)


# What is mined


def test_a_pair_gets_near_texts_that_are_not_its_positives(call, files):
    outputs, tables = ("m.jsonl", "m.jsonl.gz", "m.tsv", "m.tsv.gz"), []
    for output in outputs:
        assert call("--num-negatives", 2, output=output).exit_code == 0
        tables.append(rows_of(files / output))
        if output.endswith(".gz"):
            assert (files / output).read_bytes()[4:8] == bytes(4)  # no time, so that the same rows are the same bytes
    rows = tables[0]
    assert tables[1:] == [rows] * 3
    assert left(files) == sorted(f"{output}{more}" for output in outputs for more in ("", ".report.json"))
    assert list(rows[0]) == ["anchor", "positive", "negative"]
    assert len(rows) == 2 * 31
    assert {(row["anchor"], row["positive"]) for row in rows} == {*zip(ANCHORS, POSITIVES), (ANCHORS[0], POSITIVES[5])}
    assert not [row for row in rows if row["anchor"] == ANCHORS[0] and row["negative"] in (POSITIVES[0], POSITIVES[5])]
    assert {row["negative"] for row in rows} <= set(POSITIVES)


def test_the_json_and_the_table_say_what_was_filtered_out(call, files):
    filters = ("--max-score", 0.99, "--relative-margin", 0.001)
    report = json.loads(call(*filters, "--json").stdout)
    assert (report["positives"], report["queries"], report["candidates"]) == (31, 30, 30)
    assert report["rows"] == len(rows_of(files / "mined.jsonl"))
    assert report["filters"]["relative_margin"]["of"] > report["filters"]["relative_margin"]["dropped"] > 0
    assert report["scores"]["negative"]["max"] <= 0.99
    assert (report["output"], report["backend"]) == (str(files / "mined.jsonl"), fastcse.last_backend())
    table = call(*filters, "--overwrite")
    for word in ("max_score", "relative_margin", "mean", "positive", "negative"):
        assert word in table.stdout.lower()
    for bar in ("encode query", "encode corpus", "search"):
        assert bar in table.stderr


def test_a_corpus_alone_is_its_own_pairs_and_more_candidates_beside_others(call, files, encoded):
    alone, both = ("--corpus", "corpus.txt"), ("--pairs", "pairs.tsv", "--corpus", "corpus.txt")
    assert call("--num-negatives", 2, text=alone).exit_code == 0
    rows, lines = rows_of(files / "mined.jsonl"), {*MORE, POSITIVES[3]}
    assert {row["anchor"] for row in rows} == lines
    assert all(row["anchor"] == row["positive"] != row["negative"] in lines for row in rows)
    assert len(rows) == 2 * len(lines)  # the line that is there twice is one anchor
    assert encoded() == 41
    assert call("--query-prompt", "the ", "--overwrite", text=alone).exit_code == 0  # now its sides differ
    assert encoded() == 3 * 41
    assert call("--num-negatives", 5, "--overwrite", text=both).exit_code == 0
    rows = rows_of(files / "mined.jsonl")
    assert {row["negative"] for row in rows} & set(MORE)
    assert not [row for row in rows if row["negative"] == row["positive"]]


@pytest.mark.parametrize("format", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
def test_the_rows_are_the_librarys_in_every_format(call, files, encoder, format):
    options = {"num_negatives": 2, "range_min": 1, "relative_margin": 0.01}
    data = Dataset.from_dict({"anchor": [*ANCHORS, ANCHORS[0]], "positive": [*POSITIVES, POSITIVES[5]]})
    expected = mine_hard_negatives(data, encoder, output_format=format, output_scores=True, verbose=False, **options)
    for output in ("m.jsonl", "m.tsv")[: 1 + (format != "labeled-list")]:
        flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        done = call(*flags, "--format", format, "--scores", output=output)
        assert done.exit_code == 0, done.output
        table = rows_of(files / output)
        if output == "m.tsv":
            table = [{k: json.loads(v) if "score" in k else v for k, v in row.items()} for row in table]
        assert table == expected.to_list()


def test_options_reach_the_miner(call, files, monkeypatch):
    def bytes_of(*more):
        assert call(*more, "--overwrite").exit_code == 0
        return (files / "mined.jsonl").read_bytes()

    sampled = [bytes_of("--sampling", "random", "--range-max", 12, "--seed", seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    outputs = {bytes_of(), bytes_of("--query-prompt", "old red moon "), bytes_of("--max-length", 4)}
    assert len(outputs | {bytes_of("--corpus-prompt", "old red moon ")}) == 4
    kinds, make = [], texts.CorpusIndex
    monkeypatch.setattr(texts, "CorpusIndex", lambda *a, **k: kinds.append(k["kind"]) or make(*a, **k))
    for kind in ("flat", "ivf", "hnsw"):
        done = call("--index", kind, "--json", "--overwrite")
        assert done.exit_code == 0, done.output
        assert (kinds.pop(), json.loads(done.stdout)["backend"]) == (kind, f"faiss {kind}")


def test_a_cross_encoder_scores_again(call, files, monkeypatch):
    class Longest:
        """Scores a pair by the length of its second text."""

        def __init__(self, name):
            assert name == "some/reranker"

        def predict(self, pairs, batch_size):
            return [float(len(text)) for _, text in pairs]

    monkeypatch.setattr(mine_run, "CrossEncoder", Longest)
    assert call("--cross-encoder", "some/reranker", "--num-negatives", 1, "--max-score", 25).exit_code == 0
    rows = rows_of(files / "mined.jsonl")
    assert rows
    assert all(len(row["negative"]) <= 25 for row in rows)
    assert any(len(text) > 25 for text in POSITIVES)


def test_include_positives_ranks_them_too(call, files):
    assert call("--include-positives", "--format", "n-tuple", "--num-negatives", 29).exit_code == 0
    ranked = [row["positive"] in [row[f"negative_{i}"] for i in range(1, 30)] for row in rows_of(files / "mined.jsonl")]
    assert sum(ranked) > 20  # all but those that are the farthest of the 30


# Who reads it


def test_sentence_transformers_trains_on_the_file(call, files, encoder):
    assert call("--format", "n-tuple").exit_code == 0
    data = load_dataset("json", data_files=str(files / "mined.jsonl"), split="train", cache_dir=str(files / "hub"))
    arguments = SentenceTransformerTrainingArguments(
        str(files / "st"), per_device_train_batch_size=4, max_steps=3, report_to="none", logging_steps=1
    )
    loss = MultipleNegativesRankingLoss(encoder)
    trainer = SentenceTransformerTrainer(encoder, arguments, train_dataset=data, loss=loss)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [0 < loss < 100 for loss in losses] == [True] * 3


@pytest.mark.parametrize(("text", "output"), [("pairs", "m.jsonl"), ("corpus", "m.tsv.gz")])
def test_fastcse_trains_on_the_file(call, files, encoder_path, text, output):
    source = {"pairs": "pairs.tsv", "corpus": "corpus.txt"}[text]
    assert call("--num-negatives", 2, "--scores", text=(f"--{text}", source), output=output).exit_code == 0
    report = train(TrainOptions(
        str(files / "out"), "infonce", encoder_path, batch_size=4, max_steps=2, hard_negatives=str(files / output),
        **{text: str(files / source)},
    ))  # fmt: skip
    # A line that the corpus holds twice stays there twice.
    assert report.sentences == len(rows_of(files / output)) + (2 if text == "corpus" else 0)
    assert report.notes == []


# Runs that end early


SMALL_SHARDS = """
import functools, sys
from fastcse.cli import main
from fastcse.cli import mine_run
from fastcse.mining import texts
mine_run.encode_texts = texts.encode_texts = functools.partial(texts.encode_texts, shard_rows=64)
main()
"""


def shards(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("rows-*.npy")}


def killed(arguments, cache, monkeypatch):
    """Ends the run by SIGKILL when its first shard is there."""
    process = subprocess.Popen(
        [sys.executable, "-c", SMALL_SHARDS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not shards(cache):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def interrupted(arguments, cache, monkeypatch):
    """Ends the run by Ctrl-C in its third shard."""

    def encode(*given, **options):
        if len(shards(cache)) == 2:
            raise KeyboardInterrupt
        return plain(*given, **options)

    with monkeypatch.context() as patch:
        plain = SentenceTransformer.encode
        patch.setattr(SentenceTransformer, "encode", encode)
        assert CliRunner().invoke(app, arguments).exit_code == 130


@pytest.mark.parametrize(("end", "count"), [(interrupted, 300), pytest.param(killed, 2000, marks=pytest.mark.whole)])
def test_a_run_that_is_stopped_goes_on_where_it_was(files, encoder_path, monkeypatch, encoded, end, count):
    (files / "many.txt").write_text("\n".join(sentences(count, seed=3)), encoding="utf-8")

    def arguments(output, *more):
        text = ["--corpus", str(files / "many.txt"), "--relative-margin", "0.02", "--scores"]
        return ["mine", "--model", encoder_path, "--output", str(files / output), *text, *more]

    small, cache = functools.partial(texts.encode_texts, shard_rows=64), files / "mined.jsonl.cache"
    for module in (mine_run, texts):
        monkeypatch.setattr(module, "encode_texts", small)
    end(arguments("mined.jsonl"), cache, monkeypatch)
    finished = shards(cache)
    assert 1 <= len(finished) < count // 64
    assert "mined.jsonl" not in left(files)

    before = encoded()
    seen, finish = {}, mine_run.RunFiles.finish
    monkeypatch.setattr(
        mine_run.RunFiles, "finish", lambda self, *a: seen.update(shards(self.cache)) or finish(self, *a)
    )

    def mine(*more):
        return CliRunner().invoke(app, arguments(*more))

    refused(mine("mined.jsonl"), "has an unfinished run in 'mined.jsonl.cache': add --resume to go on with")
    refused(
        mine("mined.jsonl", "--resume", "--query-prompt", "the "),
        "--query-prompt is 'the ', but the run that --resume continues had None",
    )
    done = mine("mined.jsonl", "--resume")
    assert done.exit_code == 0, done.output
    assert encoded() - before == count - 64 * len(finished)
    assert {path: seen[path] for path in finished} == finished  # not written again
    assert mine("whole.jsonl").exit_code == 0
    assert (files / "mined.jsonl").read_bytes() == (files / "whole.jsonl").read_bytes()
    assert not [name for name in left(files) if name.endswith((".cache", ".part"))]


def stop_after_encoding(call, error):
    """Lets a run encode, and ends it there."""

    def broken(*_):
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mine_run, "as_table", broken)
        return call()


def test_ctrl_c_says_how_to_go_on(call, files, encoded, monkeypatch):
    stopped = stop_after_encoding(call, KeyboardInterrupt())
    assert stopped.exit_code == 130
    kept = f"What was encoded is in {files}/mined.jsonl.cache: add --resume to go on."
    assert stopped.stderr.splitlines()[-2:] == [kept, "Stopped."]
    assert call("--resume", "--num-negatives", 1).exit_code == 0  # which does not touch the embeddings
    assert encoded() == 60
    before = left(files)
    monkeypatch.setattr(texts, "encode_texts", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert call(output="other.jsonl").stderr.splitlines() == ["Stopped."]  # before anything was encoded
    assert left(files) == before


def test_overwrite_starts_anew(call, files, encoded):
    stop_after_encoding(call, KeyboardInterrupt())
    (files / "mined.jsonl.cache" / "fastcse_mine.json").write_text('{"model": "another"}', encoding="utf-8")
    refused(call(), "has an unfinished run in 'mined.jsonl.cache': add --resume")
    refused(call("--resume"), "but the run that --resume continues had 'another'")
    assert encoded() == 60
    assert call("--overwrite").exit_code == 0
    assert encoded() == 120
    assert left(files) == ["mined.jsonl", "mined.jsonl.report.json"]


def test_a_finished_output_is_not_made_again_and_not_lost(call, files, encoded, monkeypatch):
    first = call("--json")
    content, before = (files / "mined.jsonl").read_bytes(), encoded()
    refused(call(), "mined.jsonl' exists: add --overwrite to replace it")
    monkeypatch.setattr(mine_run, "load_encoder", lambda name: pytest.fail("the model was loaded"))
    again = call("--resume", "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert "is complete, nothing was left to do" in again.stderr
    assert call("--resume").exit_code == 0
    refused(call("--resume", "--num-negatives", 2), "--num-negatives is 2, but the run that made --output")
    (files / "pairs.tsv").write_text("a\tb\nc\td\ne\tf\ng\th\n", encoding="utf-8")
    refused(call("--resume"), "the sha256 of --pairs is ")
    assert (files / "mined.jsonl").read_bytes() == content
    assert encoded() == before
    (files / "mined.jsonl").write_text("cut", encoding="utf-8")
    refused(call("--resume"), "--resume finds no unfinished run of --output")
    (files / "mined.jsonl.report.json").unlink()
    refused(call("--resume"), "without its mined.jsonl.report.json: add --overwrite instead")
    assert (files / "mined.jsonl").read_text() == "cut"
    refused(call("--resume", output="none.jsonl"), "--resume finds no unfinished run of --output")


def test_a_cache_folder_serves_other_runs(call, files, encoded):
    cache = files / "kept" / "here"
    assert call("--cache-folder", cache).exit_code == 0
    assert call("--cache-folder", cache, "--num-negatives", 1, output="other.tsv").exit_code == 0
    assert encoded() == 60
    assert call("--cache-folder", cache, "--corpus-prompt", "the ", output="third.tsv").exit_code == 0
    assert encoded() == 90
    assert shards(cache)
    assert not (files / "mined.jsonl.cache").exists()


def test_what_was_encoded_survives_filters_that_leave_nothing_and_a_full_disk(call, files, encoded, monkeypatch):
    def full(self, write, report):
        raise OSError(28, "No space left on device", str(self.output))

    refused(call("--max-score", -0.99), "no anchor is left with a negative (positive dropped")
    assert left(files) == ["mined.jsonl.cache"]
    with monkeypatch.context() as patch:
        patch.setattr(mine_run.RunFiles, "finish", full)
        refused(call("--resume"), "mined.jsonl' cannot be written: No space left on device")
    assert left(files) == ["mined.jsonl.cache"]
    assert call("--resume").exit_code == 0
    assert encoded() == 60


# Mistakes


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--num-negatives 30", "--num-negatives 30 after --range-min 0 is more than there is: 30 distinct"),
        ("--range-min 27", "--num-negatives 3 after --range-min 27 is more than there is"),
        ("--range-min 5 --range-max 6", "expected at most --range-max - --range-min, which is 1"),
        ("--max-score 0.1 --min-score 0.5", "--max-score is 0.1: expected at least --min-score, which is 0.5"),
        ("--format pairs", "--format 'pairs' is unknown: expected triplet, n-tuple, labeled-pair or labeled-list"),
        ("--index lsh", "--index 'lsh' is unknown: expected exact, flat, ivf or hnsw"),
        ("--index flat --backend cpp", "--backend 'cpp' is for --index exact, got flat"),
        ("--backend rocm", "--backend 'rocm' is unknown"),
        ("--max-length 2", "--max-length is 2: expected at least 3"),
        ("--max-length 65", "--max-length is 65: --model"),
        ("--query-prompt-name web", "--query-prompt-name is 'web', but the prompts of --model"),
        ("--cross-encoder ./nowhere", "--cross-encoder './nowhere' cannot be loaded"),
        ("--include-positives", "--include-positives is for a ranking in one row: expected --format n-tuple"),
        ("--resume --overwrite", "expected one of --resume and --overwrite, got both"),
        ("--output {}/m.csv", "--output '{}/m.csv' has an unknown ending: expected .jsonl or .tsv"),
        ("--output {}/no/m.tsv", "--output '{}/no/m.tsv': its folder '{}/no' does not exist"),
        ("--output {}/a.jsonl", "--output '{}/a.jsonl' is a folder: expected a file"),
        ("--output {}/pairs.tsv --overwrite", "--output '{}/pairs.tsv' is the file of --pairs: it would be lost"),
        ("--output {}/m.tsv --format labeled-list", "cannot hold the lists of --format labeled-list"),
        ("--output {}/b.tsv", "'{}/b.tsv.cache' is in the way of the cache"),
        ("--cache-folder {}/pairs.tsv", "'{}/pairs.tsv' is in the way of the cache"),
        ("--model {}/nowhere", "--model '{}/nowhere' is not a folder"),
        ("--model {}/model", "model must compare rows by one of cosine, dot, euclidean, got"),
        ("--pairs {}/nowhere", "--pairs '{}/nowhere' does not exist"),
        ("--pairs {}/header.tsv", "--pairs '{}/header.tsv' holds no pair below its header"),
        ("--corpus {}/empty.tsv", "--corpus '{}/empty.tsv' is a .tsv file: expected plain text, one text a line"),
        ("--corpus {}/zeros.txt", "--corpus '{}/zeros.txt' is binary"),
        ("--corpus {}/tab.txt --output {}/m.tsv", "--corpus '{}/tab.txt' holds a tab in"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(call, files, encoder, more, says):
    contents = {"empty.tsv": "\n", "header.tsv": "anchor\tpositive\n", "zeros.txt": "a\0b\n", "tab.txt": "a\tb\n"}
    for name, content in contents.items():
        (files / name).write_text(content, encoding="utf-8")
    for name in ("a.jsonl", "b.tsv.cache"):
        (files / name).mkdir()
    (files / "b.tsv.cache" / "mine").write_text("keep", encoding="utf-8")
    if "/model" in more:
        encoder.similarity_fn_name = "manhattan"
        encoder.save_pretrained(str(files / "model"))
    before = sorted(files.rglob("*"))
    result = call(*more.replace("{}", str(files)).split())
    refused(result, says.replace("{}", str(files)))
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error")]) == 1, result.stderr
    assert sorted(files.rglob("*")) == before


def test_text_is_needed(call):
    refused(call(text=()), "expected --pairs, --corpus or both, got neither")
