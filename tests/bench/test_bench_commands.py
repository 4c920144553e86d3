"""Every command of `fastcse bench` once, from its arguments to its files; committed files; mistakes."""

import json
import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from tiny_encoder import sentences, write_tiny_encoder
from typer.testing import CliRunner

from fastcse.bench.benchmarks import BENCHMARKS
from fastcse.bench.output import read_results
from fastcse.cli import app

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"

QUICK = {
    "loss": "--n 24 --d 16,8 --loss infonce,symmetric --peers eager",
    "topk": "--n 20 --m 90 --d 16 --k 3,4 --metric ip,l2 --peers FlashLib",
    "rows": "--n 20 --d 16 --peers eager",
    "kmeans": "--n 70 --k 6 --d 8 --metric euclidean,cosine --peers FlashLib",
    "mining": "--n 60 --d 16 --peers fastcse",
    "train --stage loss": "--batch-sizes 40 --mini-batch-size 16,8 --d 8 --providers fastcse",
    "train": "--batch-sizes 12 --mini-batch-size 3 --providers",
}
COMMITTED = {"loss": "loss_infonce_cpu", "train --stage loss": "train_loss_cpu"}
CASES = {"loss": 4, "topk": 4, "rows": 3, "kmeans": 6, "mining": 1, "train --stage loss": 2, "train": 1}


def invoke(name, *arguments):
    once = ["--steps" if name.startswith("train") else "--repeat", "1"]
    device = [] if name == "mining" else ["--device", "cpu"]
    memory = [] if name.startswith("train") else ["--no-memory"]
    return CliRunner().invoke(app, ["bench", *name.split(), *device, *memory, *once, *map(str, arguments)])


@pytest.mark.parametrize("name", QUICK)
def test_a_command_writes_the_keys_that_are_committed(name, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcse.bench.measure.rounds", lambda case, repeat: repeat)
    arguments = QUICK[name].split()
    if name == "train":
        (tmp_path / "texts.txt").write_text("\n".join(sentences(12)) + "\n")
        encoder = write_tiny_encoder(tmp_path / "tiny")
        arguments += ["fastcse cached", "--corpus", tmp_path / "texts.txt", "--model", encoder]
    files = ["--output", tmp_path / "a.json"] + (["--plot", tmp_path / "a.png"] if name == "topk" else [])
    done = invoke(name, *arguments, *files, "--json")
    assert done.exit_code == 0, done.output
    made = json.loads((tmp_path / "a.json").read_text())
    assert json.loads(done.stdout) == made
    assert len(made["results"]) == CASES[name]
    committed = json.loads((RESULTS / f"{COMMITTED.get(name, f'{name}_cpu')}.json").read_text())
    assert set(made) == set(committed)
    assert set(committed["machine"]) <= set(made["machine"])
    for result in made["results"]:
        assert set(result) == set(committed["results"][0])
        assert {tuple(sorted(row)) for row in result["rows"]} == {tuple(sorted(committed["results"][0]["rows"][0]))}
        (ours,) = [row for row in result["rows"] if row["provider"] == BENCHMARKS[name].case.ours]
        assert (ours["status"], ours["ms"] > 0) == ("measured", True)
    if name == "train":
        assert made["results"][0]["corpus"] == "texts.txt"


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_committed_results_are_read_and_written_as_they_are(path):
    labels = json.loads(path.read_text())
    if "machine" not in labels or not all("rows" in one and "backend" in one for one in labels.get("results", [{}])):
        pytest.skip("of another program")
    found = read_results(path)
    for result, one in zip(found.results, labels["results"], strict=True):
        written = result.labels()
        assert {**written, "rows": None} == {**one, "rows": None}
        for got, row in zip(written["rows"], one["rows"], strict=True):
            kept = {key: None if value in ("nan", "inf") else value for key, value in row.items() if key != "note"}
            assert {key: value for key, value in got.items() if key != "note"} == kept


MISTAKES = {
    "loss": [
        ("--peers nobody-knows", "--peers 'nobody-knows' is unknown: expected fastcse, eager"),
        ("--d 8,", "--d is '8,': expected whole numbers"),
        ("--n 48 --m 47", "--m is 47: infonce needs at least as many candidates as --n, which is 48"),
        ("--temperature 0", "--temperature is 0.0: expected a finite number above 0"),
        ("--device cuda", "--device is cuda, and torch finds no GPU here"),
        ("--device abacus", "--device 'abacus' is unknown: expected cpu or cuda"),
        ("--repeat 0", "--repeat is 0: expected at least 1"),
        ("--output {file}/a.json", "its folder cannot be made"),
        ("--plot {folder}", "is a folder: expected a file"),
        ("--csv a.csv", "No such option"),
    ],
    "topk": [
        ("--k 91 --m 90", "--k is 91: expected at most the rows of the corpus, --m = 90"),
    ],
    "kmeans": [
        ("--k 71 --n 70", "--k is 71: expected at most as many clusters as points, --n = 70"),
    ],
    "mining": [
        ("--range-min 5 --range-max 7", "--range-max is 7: expected at least --range-min 5 + --negatives 3"),
        ("--n 3", "--n is 3: expected more than --range-min 0 + --negatives 3"),
    ],
    "train": [
        ("--batch-sizes 13 --corpus {texts}", "--batch-sizes is 13 and texts.txt has 12 distinct sentences"),
        ("--batch-sizes 2 --corpus {texts} --providers torch", "--providers 'torch' is unknown"),
        ("--steps 0", "--steps is 0: expected at least 1"),
    ],
}


@pytest.mark.parametrize(
    ("name", "arguments", "says"), chain(*([(name, *one) for one in found] for name, found in MISTAKES.items()))
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, name, arguments, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("fastcse.bench.measure.measure", lambda *a, **k: pytest.fail("measured before the mistake"))
    places = {word: tmp_path / word for word in ("file", "folder")} | {"texts": tmp_path / "texts.txt"}
    places["folder"].mkdir()
    places["file"].write_text("")
    places["texts"].write_text("\n".join(sentences(12)) + "\n")
    output = [] if "--output" in arguments else ["--output", tmp_path / "wanted.json"]
    typed = [text.format(**places) for text in arguments.split()]
    done = CliRunner().invoke(app, ["bench", name, *map(str, output), *typed])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    plain = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())
    assert says in plain
    if "No such" not in says:
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == sorted(places.values())


def test_the_options_of_old_are_all_there():
    for name, flags in {
        "loss": "n m d loss dtype device data stage mode temperature peers backend repeat memory seed output plot json",
        "topk": "n m d k metric dtype device data peers backend repeat memory seed output plot json",
        "rows": "op n d dtype device data mode peers backend repeat memory seed output plot json",
        "kmeans": "what n k d iterations metric dtype device data peers backend repeat memory seed output plot json",
        "mining": "n d negatives range-min range-max relative-margin peers repeat memory seed output plot json",
        "train": "stage batch-sizes mini-batch-size model corpus max-length memory-limit-gib d providers steps device "
        "seed output plot json",
    }.items():
        text = CliRunner().invoke(app, ["bench", name, "--help"], env={"COLUMNS": "200"}).stdout
        found = set(re.findall(r"--([a-z-]+)", re.sub(r"--no-memory", "", text))) - {"help", "what"}
        assert found == set(flags.split()) - {"what"}, name
