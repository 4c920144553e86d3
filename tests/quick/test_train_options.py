"""Options of training and evaluation: a tree with its checks, the recipes that fill it, and the commands' sentences.

Nothing here loads sentence-transformers.
"""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import fastcse
from fastcse.cli import app
from fastcse.errors import InputError, OptionError
from fastcse.options import flat
from fastcse.training.objectives import OBJECTIVES
from fastcse.training.options import BankOptions, ClusterOptions, ObjectiveOptions, TrainOptions, options_of
from fastcse.training.recipes import RECIPES

every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
NAMES = [
    "simcse-unsup", "simcse-sup", "focal", "hsimcse", "clusterns", "cards", "sncse", "diffcse", "sscl", "adapacse",
    "moco-queue",
]  # fmt: skip


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def given(recipe, **more):
    text = "pairs" if "--pairs" in recipe.text else "corpus"
    return {"recipe": recipe.name, "output_dir": "out", text: "text.txt", **more}


# Each is refused by name with its value, in Python and on the command line alike.
BAD = [
    ({"objective": "triplet"}, "--objective 'triplet' is unknown: expected infonce or focal"),
    ({"pooling": "max"}, "--pooling 'max' is unknown: expected cls or mean"),
    ({"batch_size": 1}, "--batch-size is 1: expected at least 2"),
    ({"mini_batch_size": 9}, "--mini-batch-size is 9: expected at most the 8 of --batch-size"),
    ({"max_steps": 0}, "--max-steps is 0: expected at least 1"),
    ({"eval_steps": 0}, "--eval-steps is 0: expected at least 1"),
    ({"max_length": 2}, "--max-length is 2: expected at least 3"),
    ({"seed": -1}, "--seed is -1: expected at least 0"),
    ({"lr": 0.0}, "--lr is 0.0: expected a finite number above 0"),
    ({"lr": float("nan")}, "--lr is nan: expected a finite number above 0"),
    ({"resume": True, "overwrite": True}, "--resume and --overwrite were both given: expected one"),
    ({"patience": 3}, "--patience 3 needs --sts-dir"),
    ({"backend": "rocm"}, "--backend 'rocm' is unknown: expected triton, cpp, reference"),
    ({"temperature": -1.0}, "--temperature is -1.0: expected a finite number above 0"),
    ({"objective": "focal", "margin": float("inf")}, "--margin is inf: expected a finite number"),
    ({"margin": 0.3}, "--margin 0.3 means nothing to --objective infonce: it has temperature"),
    ({"objective": "focal", "noise": 0.5}, "--noise 0.5 means nothing to --objective focal: it has temperature, mar"),
    ({"objective": "hsimcse", "noise": -1.0}, "--noise is -1.0: expected at least 0"),
    (
        {"objective": "hsimcse", "adversarial_mode": "up"},
        "--adversarial-mode 'up' is unknown: expected raw, l2 or sign",
    ),
    ({"objective": "angular", "margin": 3.0}, "--margin is 3.0: expected an angle from 0 to pi / 2 for --objective an"),
    ({"objective": "soft-negative"}, "--objective soft-negative needs a third column of text: expected --pairs"),
    ({"objective": "hsimcse", "neighbours": 0}, "--neighbours is 0: expected at least 1"),
    ({"objective": "hsimcse", "refresh": "often"}, "--refresh is 'often': expected never, write-through, or a number"),
    ({"objective": "hsimcse", "refresh": "0"}, "--refresh is '0': expected never, write-through, or a number"),
    ({"objective": "hsimcse", "sample": 2}, "--sample is 2: expected at least the 3 of --neighbours"),
    ({"objective": "hsimcse", "max_similarity": float("nan")}, "--max-similarity is nan: expected a finite number"),
    ({"skip": 2}, "--skip 2 means nothing to --objective infonce: it has no bank"),
    ({"skip": 0}, "--objective infonce has no bank, so options of one mean nothing to it"),
    ({"objective": "clusterns", "clusters": 1}, "--clusters is 1: expected at least 2"),
    ({"objective": "clusterns", "clusters": 9}, "--clusters is 9: expected 2 to the 8 of --batch-size"),
    ({"objective": "clusterns", "cluster_mode": "sgd"}, "--cluster-mode 'sgd' is unknown: expected momentum, kmeans"),
    ({"objective": "clusterns", "cluster_rate": 2.0}, "--cluster-rate is 2.0: expected at most 1"),
    ({"objective": "clusterns", "false_negatives": "keep"}, "--false-negatives 'keep' is unknown"),
    ({"clusters": 3}, "--clusters 3 means nothing to --objective infonce: it has no clusters"),
    ({"head": "cubic"}, "--head 'cubic' is unknown: expected tanh, batchnorm or none"),
    ({"head": "batchnorm", "mini_batch_size": 2}, "--head batchnorm with --mini-batch-size 2"),
    ({"view": "upside-down"}, "--view 'upside-down' is unknown: expected case-switch, negation or none"),
    ({"view_rate": 1.5}, "--view-rate is 1.5: expected 0 to 1"),
    ({"queue": -1}, "--queue is -1: expected at least 0"),
    ({"queue": 5, "objective": "sscl"}, "--queue 5 means nothing to --objective sscl"),
    ({"max_gathered_bytes": 5, "objective": "sscl"}, "--max-gathered-bytes 5 means nothing to --objective sscl"),
    ({"max_gathered_bytes": 5, "objective": "hsimcse"}, "--max-gathered-bytes 5 means nothing to --objective hsimcse"),
    ({"corpus": None}, "--corpus is None and --pairs is None: expected one"),
    ({"pairs": "p.tsv"}, "--corpus is 'c' and --pairs is 'p.tsv': expected one"),
    ({"recipe": "simcse"}, "--recipe 'simcse' is unknown: expected simcse-unsup or simcse-sup"),
    ({"recipe": "cards", "objective": "focal"}, "--objective 'focal' contradicts --recipe cards of 'infonce'"),
]


@pytest.mark.parametrize(("changes", "says"), BAD)
def test_a_bad_option_names_itself_and_its_value(changes, says):
    with pytest.raises(OptionError) as caught:
        options_of({"output_dir": "o", "objective": "infonce", "corpus": "c", "batch_size": 8} | changes)
    assert caught.value.spelled({}).startswith(says)


@pytest.mark.parametrize(("changes", "says"), BAD[:: len(BAD) // 4])
def test_the_command_says_the_same_in_one_line(changes, says):
    asked = {"output_dir": "o", "objective": "infonce", "corpus": "c", "batch_size": 8} | changes
    done = call("train", *(f"--{name.replace('_', '-')}={value}" for name, value in asked.items() if value is not None))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {says}")
    assert done.stderr.count("\n") == 1


def test_a_backend_that_cannot_run_says_why(monkeypatch):
    status = fastcse.BackendStatus(False, "no device")
    monkeypatch.setattr("fastcse.ops.dispatch.backends", lambda: {"triton": status})
    with pytest.raises(InputError, match="backend 'triton' cannot run here: no device"):
        TrainOptions("o", corpus="c", backend="triton")


@pytest.mark.parametrize(("steps", "interval"), [(1, 1), (8, 2), (100, 25), (500, 125), (9000, 125)])
def test_evaluations_are_simcses_or_four(steps, interval):
    assert TrainOptions("x", corpus="c", max_steps=steps).eval_steps == interval


def test_the_tree_stays_one():
    parts = {"objective_options": ObjectiveOptions(alpha=0.1), "cluster_options": ClusterOptions(cluster_rate=0.2)}
    tree = TrainOptions("o", objective="clusterns", corpus="c", batch_size=10, lr=1e-3, **parts)
    names = {"output_dir": "o", "objective": "clusterns", "corpus": "c", "batch_size": 10, "lr": 1e-3, "alpha": 0.1}
    assert options_of(names | {"cluster_rate": 0.2}) == tree
    assert tree.arguments == {"temperature": 0.05, "margin_weight": 1e-3, "alpha": 0.1, "beta": 0.3,
                              "false_negatives": "margin"}  # fmt: skip
    assert (tree.cluster_options.clusters, tree.bank_options) == (5, None), "half of a small batch"
    document = json.loads(json.dumps(tree.as_dict()))
    assert document["objective_options"] == tree.arguments
    assert document["cluster_options"] == flat(tree.cluster_options)
    assert document["bank_options"] == {}
    bank = options_of({"output_dir": "o", "objective": "hsimcse", "corpus": "c", "refresh": "7"}).bank_options
    assert bank == BankOptions(refresh=7)


def test_what_a_resumed_run_must_share(tmp_path):
    mined = tmp_path / "mined.jsonl"
    mined.write_text("x")
    first = TrainOptions("a", pairs="p", hard_negatives=str(mined), backend="reference").identity()
    again = TrainOptions("b", pairs="p", hard_negatives=str(mined), resume=True).identity()
    assert first == again
    assert {"margin", "lr", "queue", "hard_negatives_sha256"} <= first.keys()
    mined.write_text("y")
    assert TrainOptions("a", pairs="p", hard_negatives=str(mined)).identity() != first


# Recipes


def test_the_names():
    assert list(RECIPES) == NAMES
    assert all(name == recipe.name for name, recipe in RECIPES.items())


@every_recipe
def test_a_recipe_is_whole(recipe):
    assert recipe.paper.url.startswith("https://")
    assert recipe.published
    assert all(setting.name and setting.value and setting.source for setting in recipe.settings())
    assert recipe.not_reproduced
    assert all(sentence.endswith(".") for sentence in recipe.not_reproduced)
    assert f"fastcse train --recipe {recipe.name} " in recipe.example
    assert not recipe.published.keys() & recipe.chosen.keys(), "an option is set as published, or otherwise"


@every_recipe
def test_a_recipe_fills_what_is_not_given(recipe):
    options = options_of(given(recipe))
    assert (options.objective, options.recipe) == (recipe.objective, recipe.name)
    values = flat(options) | options.arguments
    wanted = {name: value for name, value in recipe.options.items() if name != "patience"}
    assert wanted.items() <= values.items()
    assert values["patience"] is None, "without scores there is nothing to wait for"
    scored = options_of(given(recipe, sts_dir="STS"))
    assert scored.patience == recipe.options.get("patience")


@every_recipe
def test_the_caller_overrides(recipe):
    options = options_of(given(recipe, lr=1e-6, model="minilm", temperature=0.07, head="none", queue=0))
    assert (options.lr, options.model, options.arguments["temperature"]) == (1e-6, "minilm", 0.07)
    assert (options.head, options.queue) == ("none", 0)
    assert options.batch_size == recipe.options.get("batch_size", 64)
    assert recipe.options["temperature"] == 0.05, "the table itself is not written to"


def test_the_command_lists_recipes():
    listed = call("recipes", "--json")
    assert listed.exit_code == 0, listed.output
    every = json.loads(listed.stdout)["recipes"]
    assert every == [json.loads(json.dumps(recipe.as_dict())) for recipe in RECIPES.values()]
    assert {"name": "margin", "value": "0.3", "source": RECIPES["focal"].source} in every[2]["published"]
    assert {"name": "lr", "value": "1e-05", "source": RECIPES["focal"].source} in every[2]["published"]
    table = call("recipes").stdout
    assert all(name in table for name in NAMES)


@pytest.mark.parametrize("name", ["hsimcse", "cards"])
def test_the_command_shows_one(name):
    recipe = RECIPES[name]
    assert json.loads(call("recipes", recipe.name, "--json").stdout) == json.loads(json.dumps(recipe.as_dict()))
    text = "".join(call("recipes", recipe.name).stdout.replace("│", "").split())
    for wanted in (recipe.paper.url, recipe.not_reproduced[-1][:12], recipe.settings()[0].name):
        assert "".join(wanted.split()) in text


def test_every_objective_has_a_citation():
    for objective in OBJECTIVES.values():
        entry = objective.paper.bibtex
        assert entry.strip().startswith(
            f"@{'inproceedings' if objective.paper.venue else 'misc'}{{{objective.paper.key},"
        )
        assert f'title = "{objective.paper.title}",' in entry
        assert entry.count("{") == entry.count("}")


# The commands


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("eval", "minilm", "--sts-dir", "{}/none"), "--sts-dir '{}/none' is missing"),
        (("eval", "minilm", "--sts-dir", "{}", "--pooling", "max"), "--pooling 'max' is unknown"),
        (("eval", "minilm", "--sts-dir", "{}", "--batch-size", "0"), "--batch-size is 0: expected at least 1"),
        (("recipes", "simcse"), "--recipe 'simcse' is unknown"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, arguments, says):
    done = call(*(argument.format(tmp_path) for argument in arguments))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {says.format(tmp_path)}")
    assert done.stderr.count("\n") == 1
