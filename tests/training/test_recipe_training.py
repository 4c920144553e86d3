"""Every recipe trained for a few real steps, resumed, and in two processes."""

import json
import os
import shutil

import pytest
import torch
from ranks import together
from sentence_transformers import SentenceTransformer
from tiny_encoder import WIDTH, sentences, write_tiny_encoder
from typer.testing import CliRunner

from fastcse.cli import app
from fastcse.errors import InputError
from fastcse.training.options import TrainOptions
from fastcse.training.recipes import RECIPES, get_recipe
from fastcse.training.run import train

BACKEND = "cpp"
# What a recipe needs smaller for eight sentences a batch, and what of the log tells that its own part ran.
SMALLER = {"clusterns": ["--clusters", "3", "--cluster-threshold", "1.0"], "moco-queue": ["--queue", "20"]}
TELLS = {
    "hsimcse": "quadruplet", "clusterns": "margin", "sncse": "soft_similarity", "sscl": "extended",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    texts = sentences(120)
    (folder / "corpus.txt").write_text("\n".join(texts[:40]) + "\n")
    rows = zip(texts[:40], texts[40:80], texts[80:])
    (folder / "triplets.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    mined = [{"anchor": a, "positive": a, "negative": n} for a, n in zip(texts[:40], texts[80:])]
    (folder / "mined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mined))
    write_tiny_encoder(folder / "dropout")
    write_tiny_encoder(folder / "without", dropout=0.0)
    return folder


def text_of(name, data):
    if name == "simcse-sup":
        return ["--pairs", str(data / "triplets.tsv")]
    more = ["--hard-negatives", str(data / "mined.jsonl")] if name == "cards" else []
    return ["--corpus", str(data / "corpus.txt"), *more]


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments), "--json"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(data, tmp_path, name):
    encoder = data / "dropout" / "encoder"
    common = ["--recipe", name, "--model", encoder, "--batch-size", 8, "--lr", "1e-3", *SMALLER.get(name, [])]
    done = run("--output-dir", tmp_path / "out", "--max-steps", 4, "--eval-steps", 2, *common, *text_of(name, data))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["steps"], report["backend"], report["options"]["recipe"]) == (4, BACKEND, name)
    assert report["options"]["objective"] == RECIPES[name].objective
    if name in TELLS:
        assert TELLS[name] in json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[3])
    # The model that is left is an ordinary one: layers of training are off it, and it was trained.
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert model.encode(["the dog runs"]).shape == (1, WIDTH)
    assert len(list(model)) == 2
    first = SentenceTransformer(str(encoder), device="cpu")[0].model.embeddings.word_embeddings.weight
    assert not torch.equal(model[0].model.embeddings.word_embeddings.weight, first)


@pytest.mark.parametrize("name", ["moco-queue", "diffcse", "sscl", "sncse"])
def test_a_recipe_goes_on_where_it_was(data, tmp_path, name):
    def options(folder, **more):
        given = {"output_dir": str(tmp_path / folder), "model": str(data / "dropout" / "encoder"), "batch_size": 8,
                 "max_steps": 6, "eval_steps": 3, "lr": 1e-3, "corpus": str(data / "corpus.txt")}  # fmt: skip
        if name == "moco-queue":
            given["queue"] = 20
        return TrainOptions(**get_recipe(name).fill({**given, **more}), recipe=name)

    whole = train(options("whole"))
    train(options("cut"))
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    again = train(options("cut", resume=True))
    assert again.new_steps == 3
    assert again.loss == whole.loss


def test_the_queue_holds_what_the_following_encoder_made(data, tmp_path):
    given = {"output_dir": str(tmp_path / "out"), "model": str(data / "without" / "encoder"), "batch_size": 8,
             "max_steps": 4, "eval_steps": 4, "lr": 1e-2, "pairs": str(data / "triplets.tsv")}  # fmt: skip
    train(TrainOptions(**given, objective="infonce", queue=20, queue_momentum=1.0, head="none"))
    state = torch.load(tmp_path / "out" / "queue-4", weights_only=True)
    # An encoder that keeps all of itself is the one that the run began with.
    first = SentenceTransformer(str(data / "without" / "encoder"), device="cpu")
    kept = {name.removeprefix("encoder."): value for name, value in state["encoder"].items()}
    assert all(torch.equal(value, kept[name]) for name, value in first.state_dict().items())
    rows = state["rows"]["rows"]
    texts = [line.split("\t")[1] for line in (data / "triplets.tsv").read_text().splitlines()]
    known = torch.nn.functional.normalize(first.encode(texts, convert_to_tensor=True), dim=1)
    nearest = (torch.nn.functional.normalize(rows, dim=1) @ known.T).amax(1)
    torch.testing.assert_close(nearest, torch.ones(20), rtol=0, atol=1e-5)


RANKED = ["moco-queue", "sscl", "sncse", "simcse-sup"]


def ranked_options(name, data, folder):
    given = {"output_dir": str(folder / name), "model": str(data / "without" / "encoder"), "batch_size": 8,
             "max_steps": 4, "eval_steps": 2, "lr": 1e-3, "view": "none",
             "pairs": str(data / "triplets.tsv")}  # fmt: skip
    if name == "moco-queue":
        given |= {"queue": 20, "mini_batch_size": 3}
    return TrainOptions(**get_recipe(name).fill(given), recipe=name)


def every_ranked(rank, ranks, data, folder, port):
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return [train(ranked_options(name, data, folder)).loss for name in RANKED]


def test_two_processes_train_recipes_as_one_does(data, tmp_path):
    one = [train(ranked_options(name, data, tmp_path / "one")).loss for name in RANKED]
    for (answers,) in together(tmp_path, 2, [(every_ranked, data, tmp_path / "two", 29561)]):
        for name, expected, got in zip(RANKED, one, answers):
            assert [step for step, _ in got] == [step for step, _ in expected]
            losses = [loss for _, loss in got]
            assert losses == pytest.approx([loss for _, loss in expected], rel=1e-3), name  # AdamW makes much of little


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"head": "cubic"}, "--head 'cubic' is unknown: expected tanh or batchnorm, or none"),
        ({"view": "upside-down"}, "--view 'upside-down' is unknown: expected case-switch or negation, or none"),
        ({"view_rate": 1.5}, "--view-rate is 1.5: expected 0 to 1"),
        ({"queue": -1}, "--queue is -1: expected at least 0"),
        ({"queue": 5, "objective": "sscl"}, "--queue 5 means nothing to --objective sscl"),
        ({"head": "batchnorm", "mini_batch_size": 2}, "--head batchnorm with --mini-batch-size 2"),
        ({"objective": "soft-negative"}, "--objective soft-negative needs a third column of text"),
        ({"mini_batch_size": 9}, "--mini-batch-size is 9: expected at most the 8 of --batch-size"),
        ({"max_gathered_bytes": 5, "objective": "sscl"}, "--max-gathered-bytes 5 means nothing to --objective sscl"),
        (
            {"objective": "angular", "objective_options": {"margin": 3.0}},
            "--margin is 3.0: expected an angle from 0 to pi / 2",
        ),
        ({"patience": 3}, "--patience 3 needs --sts-dir"),
        (
            {"max_gathered_bytes": 5, "objective": "hsimcse"},
            "--max-gathered-bytes 5 means nothing to --objective hsimcse",
        ),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, changes, says):
    with pytest.raises(InputError) as caught:
        TrainOptions(**{"output_dir": str(tmp_path), "objective": "infonce", "corpus": "c", "batch_size": 8} | changes)
    assert str(caught.value).startswith(says)


def test_pairs_without_a_third_column_are_told(data, tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{a}\t{b}\n" for a, b in zip(sentences(40)[:20], sentences(40)[20:])))
    done = run("--recipe", "sncse", "--view", "none", "--pairs", pairs, "--output-dir", tmp_path / "out", "--model",
               data / "dropout" / "encoder", "--batch-size", 8)  # fmt: skip
    assert done.exit_code == 2
    assert "--objective soft-negative needs a third column of text" in done.stderr
    unknown = run("--recipe", "simcse", "--pairs", pairs, "--output-dir", tmp_path / "out")
    assert unknown.exit_code == 2
    assert "Error: --recipe 'simcse' is unknown: expected simcse-unsup or" in unknown.stderr
