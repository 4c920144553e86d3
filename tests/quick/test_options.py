"""Options that are typed once: the command line, the check, the error and the flat form of a dataclass."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

import pytest
import typer
from typer.testing import CliRunner

from fastcse.cli.options import command
from fastcse.errors import OptionError
from fastcse.options import build, check, either, flat, leaves, option, part, sweep


@dataclass(frozen=True)
class Inner:
    """A part of the tree."""

    steps: int = option(3, "Steps.", least=1)
    rate: float | None = option(None, "A rate.", above=0, flag="--how-fast")

    def __post_init__(self):
        check(self)
        if self.rate is not None and self.rate > self.steps:
            raise OptionError("rate", f" is {self.rate}: expected at most the {self.steps} of ", "steps")


@dataclass(frozen=True)
class Outer:
    """The whole."""

    source: str = option(help="A file.", argument=True, metavar="FILE")
    mode: str = option("slow", "How.", choices=("slow", "fast"))
    seed: int = option(0, "Seed.", least=0, most=9)
    memory: bool = option(True, "Measure memory.")
    json_only: bool = option(False, "No table.")
    inner: Inner = part(Inner)

    def __post_init__(self):
        check(self)


def run(*arguments):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @command(Outer)
    def job(given, word: str = "x"):
        """Do it."""
        print(json.dumps({"given": given, "word": word, "all": flat(build(Outer, given))}))

    return CliRunner().invoke(app, list(arguments))


def test_what_is_not_typed_is_not_given_and_the_rest_is_default():
    out = json.loads(run("a.txt", "--steps", "2", "--word", "y", "--json-only").stdout)
    assert out["given"] == {"source": "a.txt", "steps": 2, "json_only": True}
    assert out["word"] == "y"
    assert out["all"] == {
        "source": "a.txt", "mode": "slow", "seed": 0, "memory": True, "json_only": True, "steps": 2, "rate": None,
    }  # fmt: skip
    assert json.loads(run("a.txt", "--no-memory").stdout)["all"]["memory"] is False


def test_the_tree_keeps_its_shape():
    made = build(Outer, {"source": "a", "rate": 2.5})
    assert made == Outer("a", inner=Inner(rate=2.5))
    assert [leaf.name for leaf in leaves(Outer)] == list(flat(made))
    with pytest.raises(TypeError, match="Outer has no option 'rates'"):
        build(Outer, {"source": "a", "rates": 1})


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("--steps", "0"), "--steps is 0: expected at least 1"),
        (("--steps", "x"), "'x' is not a whole number"),
        (("--how-fast", "nan"), "--how-fast is nan: expected a finite number above 0"),
        (("--how-fast", "0"), "--how-fast is 0.0: expected a finite number above 0"),
        (("--how-fast", "7"), "--how-fast is 7.0: expected at most the 3 of --steps"),
        (("--mode", "odd"), "--mode 'odd' is unknown: expected slow or fast"),
        (("--seed", "10"), "--seed is 10: expected 0 to 9"),
    ],
)
def test_a_mistake_names_the_flag_and_the_value(typed, says):
    out = run("a.txt", *typed)
    assert out.exit_code == 2
    assert says in out.stderr


def test_python_names_the_field():
    with pytest.raises(OptionError, match=r"^rate is 7: expected at most the 3 of steps$") as caught:
        Inner(rate=7)
    assert caught.value.field == "rate"
    for wrong in (True, 1.5, "3"):
        with pytest.raises(OptionError, match=r"^steps is .*: expected a whole number"):
            Inner(steps=wrong)


def test_help_has_every_option_once():
    text = run("--help").stdout
    for leaf in leaves(Outer):
        assert leaf.rule.help in text
    for spelled in ("FILE", "--mode", "slow|fast", "--how-fast", "--no-memory", "default: (slow)"):
        assert text.count(spelled) >= 1, spelled
    assert "--no-json-only" not in text


@dataclass(frozen=True, kw_only=True)
class Base:
    """What two commands share."""

    seed: int = option(0, "Seed.")
    kind: str = option("a", "Kind.", choices=("a", "b"), several=True)


@dataclass(frozen=True)
class Size(Base):
    """One size."""

    n: int = option(help="Rows.", least=1, several="2,4")
    d: int = option(8, "Width.", least=1, several=True)
    name: str = option("x", "Name.", several="x,y")

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class Run:
    """How it is run."""

    repeat: int = option(5, "Rounds.")
    seed: int = option(9, "Another seed.")


def run_sweep(*arguments):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @command(Size, Run, repeat=7)
    def job(given):
        """Do it."""
        print(json.dumps([given["repeat"], [vars(one) for one in sweep(Size, given)]]))

    return CliRunner().invoke(app, list(arguments))


def test_options_that_take_several_values_make_every_combination():
    repeat, made = json.loads(run_sweep("--n", "3, 5", "--kind", "b,a", "--seed", "1").stdout)
    assert repeat == 7
    found = [(one["name"], one["kind"], one["n"], one["d"]) for one in made]
    assert found == [(name, kind, n, 8) for name in "xy" for kind in "ba" for n in (3, 5)]
    assert {one["seed"] for one in made} == {1}
    assert [leaf.name for leaf in leaves(Size)] == ["n", "d", "name", "seed", "kind"]
    assert [one["n"] for one in json.loads(run_sweep("--name", "x", "--repeat", "2").stdout)[1]] == [2, 4]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("--n", "3,"), "--n is '3,': expected whole numbers with commas between them"),
        (("--n", "3,0"), "--n is 0: expected at least 1"),
        (("--kind", "a,c"), "--kind 'c' is unknown: expected a or b"),
    ],
)
def test_a_mistake_among_several_is_named(typed, says):
    out = run_sweep(*typed)
    assert out.exit_code == 2
    assert says in out.stderr


def test_help_of_several():
    text = " ".join(run_sweep("--help").stdout.replace("│", " ").split())
    for part_of_it in ("INTS Rows. One, or several with commas.", "default: (2,4)", "Kind. a, b. One, or", "(7)"):
        assert part_of_it in text
    assert "Another seed" not in text


def test_either():
    assert either(["a"]) == "a"
    assert len(fields(Outer)) == 6
