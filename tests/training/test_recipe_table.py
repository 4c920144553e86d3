"""The recipes: a whole table, defaults that an option of the caller overrides, and the command that lists them."""

import doctest
import json

import pytest
from typer.testing import CliRunner

from fastcse.cli import app
from fastcse.errors import InputError
from fastcse.training.objectives import OBJECTIVES
from fastcse.training.options import TrainOptions
from fastcse.training.recipes import RECIPES, get_recipe
from fastcse.training.recipes import recipe as recipe_module
from fastcse.training.recipes.objectives import RECIPE_OBJECTIVES

NAMES = [
    "simcse-unsup", "simcse-sup", "focal", "hsimcse", "clusterns", "cards", "sncse", "diffcse", "sscl", "adapacse",
    "moco-queue",
]  # fmt: skip
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
KNOWN = {**RECIPE_OBJECTIVES, **OBJECTIVES}


def call(*arguments):
    return CliRunner().invoke(app, ["recipes", *arguments])


def given_options(recipe, **more):
    text = "pairs" if "--pairs" in recipe.example else "corpus"
    return {"output_dir": "out", text: "text.txt", "lr": None, "batch_size": None, **more}


def test_the_names():
    assert list(RECIPES) == NAMES
    assert all(name == recipe.name for name, recipe in RECIPES.items())


@every_recipe
def test_a_recipe_is_whole(recipe):
    assert recipe.url.startswith("https://")
    assert recipe.objective in KNOWN
    assert recipe.published
    assert all(s.name and s.value and s.source for s in recipe.published)
    assert recipe.not_reproduced
    assert all(sentence.endswith(".") for sentence in recipe.not_reproduced)
    assert f"fastcse train --recipe {recipe.name} " in recipe.example
    assert set(recipe.options.get("objective_options", {})) <= set(KNOWN[recipe.objective].options)


@every_recipe
def test_what_is_published_of_the_objective_is_what_is_set(recipe):
    # A setting whose value is a number alone is the one that is set, under the same name.
    options = {**recipe.options, **recipe.options.get("objective_options", {}),
               **recipe.options.get("cluster_options", {})}  # fmt: skip
    aliases = {"batch": "batch_size", "length": "max_length"}
    compared = 0
    for setting in recipe.published:
        name = aliases.get(setting.name, setting.name.replace(" ", "_"))
        try:
            value = float(setting.value.replace(",", ""))
        except ValueError:
            continue
        if name in options and recipe.name != "moco-queue":
            assert options[name] == value, setting
            compared += 1
    assert compared or recipe.name in ("sscl", "moco-queue")


@every_recipe
def test_the_options_are_those_of_a_run(recipe, monkeypatch):
    monkeypatch.setattr("fastcse.training.objectives.OBJECTIVES", KNOWN)
    options = TrainOptions(**recipe.fill(given_options(recipe)))
    assert options.objective == recipe.objective
    for name, value in recipe.options.items():
        got = getattr(options, name)
        if name == "patience":  # of scores, which this run has none of
            assert got is None
        else:
            assert got == value or value.items() <= got.items()


@every_recipe
def test_the_caller_overrides(recipe):
    chosen = {"temperature": 0.07, **dict.fromkeys(("margin", "alpha"))}
    filled = recipe.fill(given_options(recipe, lr=1e-6, model="minilm", objective_options=chosen))
    assert (filled["lr"], filled["model"], filled["objective_options"]["temperature"]) == (1e-6, "minilm", 0.07)
    assert filled["batch_size"] == recipe.options["batch_size"]
    rest = {k: v for k, v in recipe.options["objective_options"].items() if k != "temperature"}
    assert rest.items() <= filled["objective_options"].items()
    assert recipe.options["objective_options"]["temperature"] == 0.05, "the table itself is not written to"


def test_a_switch_that_is_off_was_not_asked_for():
    given = {"bank_options": {"parity": False, "neighbours": None, "skip": 2}}
    filled = get_recipe("hsimcse").fill(given)["bank_options"]
    assert filled == {"neighbours": 3, "refresh": "never", "parity": True, "skip": 2}


def test_another_objective_is_a_contradiction():
    with pytest.raises(InputError, match=r"--objective 'focal'.*--recipe cards.*'infonce'"):
        get_recipe("cards").fill({"objective": "focal"})
    assert get_recipe("cards").fill({"objective": "infonce"})["objective"] == "infonce"
    with pytest.raises(InputError, match=r"'simcse'.*simcse-unsup or simcse-sup"):
        get_recipe("simcse")


def test_what_stands_around_an_objective_is_an_option():
    assert get_recipe("diffcse").fill({})["head"] == "batchnorm"
    assert get_recipe("moco-queue").fill({"queue": 7})["queue"] == 7
    assert get_recipe("sncse").fill({})["view"] == "negation"
    assert get_recipe("clusterns").fill({"sts_dir": "STS"})["patience"] == 3
    assert "patience" not in get_recipe("clusterns").fill({}), "without scores there is nothing to wait for"


def test_the_command_lists_them():
    listed = call("--json")
    assert listed.exit_code == 0, listed.output
    every = json.loads(listed.stdout)["recipes"]
    assert [one["name"] for one in every] == NAMES
    assert {"value": "0.3", "name": "margin", "source": every[2]["published"][0]["source"]} in every[2]["published"]
    table = call().stdout
    assert all(name in table for name in NAMES)


@every_recipe
def test_the_command_shows_one(recipe):
    one = call(recipe.name, "--json")
    assert json.loads(one.stdout) == json.loads(json.dumps(recipe.as_dict()))
    text = "".join(call(recipe.name).stdout.replace("│", "").split())
    for wanted in (recipe.url, recipe.not_reproduced[-1][:12], recipe.published[0].name):
        assert "".join(wanted.split()) in text


def test_an_unknown_name_is_one_sentence():
    failed = call("simcse")
    assert failed.exit_code == 2
    assert "--recipe 'simcse' is unknown" in failed.stderr
    assert failed.stdout == ""


def test_the_example_runs():
    assert doctest.testmod(recipe_module).failed == 0
