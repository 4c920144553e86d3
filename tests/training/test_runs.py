"""Every recipe trained for a few real steps: what a run leaves, and that it can be resumed."""

import io
import os

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_encoder import WIDTH

from fastcse.cli.train import table_of
from fastcse.retrieval.index import CorpusIndex
from fastcse.training.checkpoints import last_checkpoint
from fastcse.training.options import options_of
from fastcse.training.recipes import RECIPES
from fastcse.training.report import draw
from fastcse.training.run import train
from fastcse.training.trainer import Progress

every_recipe = pytest.mark.parametrize("name", RECIPES)
# What of the log tells that a recipe's own part ran, and its files in a checkpoint.
TELLS = {"hsimcse": "quadruplet", "clusterns": "margin", "sncse": "soft_similarity", "sscl": "extended"}
STATES = {"hsimcse": ["bank"], "clusterns": ["clusters.pt"], "moco-queue": ["queue.pt"]}


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@every_recipe
def test_a_recipe_trains(run_of, encoder_path, name):
    report, folder = run_of(name).report, run_of(name).folder
    assert (report.steps, report.new_steps, report.backend, report.sentences) == (8, 8, "cpp", 40)
    assert (report.options["recipe"], report.options["objective"]) == (name, RECIPES[name].objective)
    assert 0 <= report.accuracy <= 1
    entries = [entry for entry in run_of(name).log if "loss" in entry]
    assert [(entry["step"], entry["loss"]) for entry in entries] == report.loss
    assert TELLS.get(name, "loss") in entries[-1]
    # The model that is left is an ordinary one: layers of training are off it, and it was trained.
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.encode(["the dog runs"]).shape == (1, WIDTH)
    assert len(list(model)) == 2
    first = SentenceTransformer(encoder_path, device="cpu")[0].model.embeddings.word_embeddings.weight
    assert not torch.equal(model[0].model.embeddings.word_embeddings.weight, first)
    kept = sorted(folder.glob("checkpoint-*"))
    assert len(kept) == 2
    for checkpoint in kept:
        there = [one for one in ("bank", "clusters.pt", "queue.pt") if (checkpoint / one).exists()]
        assert there == STATES.get(name, [])


@pytest.mark.parametrize("name", ["simcse-unsup", "hsimcse", "clusterns", "sncse", "diffcse", "sscl", "moco-queue"])
def test_a_resumed_run_has_the_same_losses(run_of, cut, name, monkeypatch):
    whole = run_of(name)
    folder = cut(whole)
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "trainer_state.json").write_text('{"half', encoding="utf-8")
    left = 5 if name == "simcse-unsup" else 6
    assert last_checkpoint(folder).name == f"checkpoint-{left}"
    made = []
    monkeypatch.setattr(Progress, "on_step_end", lambda self, args, state, *_, **__: made.append(state.global_step))
    resumed = train(options_of(whole.given | {"output_dir": str(folder), "resume": True}))
    assert made == list(range(left + 1, 9))
    assert resumed.loss == whole.report.loss
    assert (resumed.steps, resumed.new_steps) == (8, 8 - left)
    assert same(weights(folder), weights(whole.folder))
    for state in ("clusters.pt", "queue.pt"):
        if (folder / "checkpoint-8" / state).exists():
            torch.testing.assert_close(
                *(torch.load(one / "checkpoint-8" / state, weights_only=True) for one in (folder, whole.folder)),
                rtol=0, atol=0,
            )  # fmt: skip


@pytest.mark.parametrize("refresh", ["never", "write-through"])
def test_a_bank_is_in_every_checkpoint_and_stored_once_where_it_is_the_same(run_of, cut, refresh, tmp_path):
    given = run_of("hsimcse").given | {"refresh": refresh}
    whole = run_of("hsimcse")._replace(given=given, folder=tmp_path / "whole")
    report = train(options_of(given | {"output_dir": str(whole.folder)}))
    assert (report.stats["active_share"], report.bank) == (1.0, 40)
    files = [{path.name: os.stat(path).st_ino for path in (whole.folder / f"checkpoint-{step}" / "bank").iterdir()}
             for step in (6, 8)]  # fmt: skip
    rows = [CorpusIndex.load(whole.folder / f"checkpoint-{step}" / "bank").rows(range(40)) for step in (6, 8)]
    assert torch.equal(*rows) == (files[0] == files[1]) == (refresh == "never")
    folder = cut(whole)
    resumed = train(options_of(given | {"output_dir": str(folder), "resume": True}))
    assert resumed.loss == report.loss
    kept = CorpusIndex.load(folder / "checkpoint-8" / "bank")
    assert torch.equal(kept.rows(range(40)), rows[1])


def test_the_report_of_a_scored_run(run_of):
    run = run_of("simcse-sup")
    report, document = run.report, run.report.as_dict()
    assert [step for step, _ in report.dev] == [3, 6, 8]
    assert report.dev_best == max(score for _, score in report.dev) == dict(report.dev)[report.best_step]
    assert len(report.spread) == 3
    assert np.isfinite(report.dev_before)
    assert document["options"]["objective_options"] == {"temperature": 0.05}
    assert document["options"]["pairs"] == run.given["pairs"]
    assert same(weights(run.folder / f"checkpoint-{report.best_step}"), weights(run.folder))
    stats = run_of("clusterns").report.stats
    assert {"margin", "false_share", "largest_cluster", "empty_clusters", "infonce"} <= stats.keys()
    assert 2 <= stats["largest_cluster"] <= 8
    state = torch.load(run_of("clusterns").folder / "checkpoint-8" / "clusters.pt", weights_only=True)
    assert bool(state["started"])
    assert state["centroids"].shape == (3, WIDTH)


@pytest.mark.parametrize(
    ("name", "inches", "words"),
    [
        ("simcse-sup", 13, ["infonce (temperature 0.05)", "8 of batch 8", "before", "at step", "recipe"]),
        ("hsimcse", 6, ["40 texts, mean of 3 behind 0, refreshed every 3 steps", "corpus negative", "mode raw"]),
        ("clusterns", 6, ["3, adamw 0.1; in the last batch largest", "alpha 0", "not measured: no --sts-dir"]),
    ],
)
def test_table_and_picture_show_what_ran(run_of, tmp_path, name, inches, words):
    shown = io.StringIO()
    Console(width=240, file=shown).print(table_of(run_of(name).report))
    for word in words:
        assert word in shown.getvalue()
    draw(run_of(name).report.as_dict(), tmp_path / "summary.png")
    assert int.from_bytes((tmp_path / "summary.png").read_bytes()[16:20], "big") == 150 * inches, "scores, if any"


def test_a_run_that_has_ended_is_not_trained_further(run_of, cut):
    whole = run_of("simcse-unsup")
    folder = cut(whole, last=99)
    before = (folder / "log.jsonl").read_text()
    again = train(options_of(whole.given | {"output_dir": str(folder), "resume": True}))
    assert (again.steps, again.new_steps, again.loss) == (8, 0, whole.report.loss)
    assert (folder / "log.jsonl").read_text() == before
