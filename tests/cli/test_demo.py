"""The demo on a small package written for it: honest pairs, an honest split, and the whole job."""

import json
import sys

import pytest
import torch
from tiny_encoder import WORDS, sentences
from typer.testing import CliRunner

import fastcse
from fastcse.cli import app, demo_job
from fastcse.cli.demo import DemoOptions
from fastcse.cli.demo_job import load_encoder, loss_cost, run_demo
from fastcse.cli.demo_text import Pair, collect_pairs, group, shingles, split_docstring, split_pairs
from fastcse.errors import InputError

MODULES, DOCSTRINGS = 12, 20


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that must not be imported, whose summaries share words with the text under them."""
    monkeypatch.syspath_prepend(str(tmp_path / "src"))
    return write_package(tmp_path / "src" / "parsed_only")


def write_package(folder):
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    summaries = sentences(MODULES * DOCSTRINGS, seed=1, words=9)
    others = sentences(MODULES * DOCSTRINGS, seed=2, words=4)
    for module in range(MODULES):
        place = slice(module * DOCSTRINGS, (module + 1) * DOCSTRINGS)
        functions = [
            f'def f{i}():\n    """{a}\n\n    {" ".join(reversed(a.split()))} {b}\n    """\n'
            for i, (a, b) in enumerate(zip(summaries[place], others[place]))
        ]
        (folder / f"part{module}.py").write_text("\n".join(functions), encoding="utf-8")
    return folder


def pairs_of(package, module, count, seed):
    text = sentences(2 * count, seed=seed, words=12)
    return [Pair(a, b, package, module) for a, b in zip(text[:count], text[count:])]


# The pairs


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Return the mean of x.\n\nIt is the sum of the items over their number.", "as it is"),
        ("Return the mean\n    of x.\n\n    It is the sum of the items\n\n    over their number.", "as it is"),
        ("Return ``the`` mean of x.\n\nIt is the :func:`~m.sum` of the items over their number.\n>>> m(x)\n", "markup"),
        ("Return the mean of x.", None),
        ("Mean.\n\nIt is the sum of the items over their number.", None),
        ("Return the mean of x.\n\nThe sum.", None),
        ("Return the {{name}} of some x.\n\nIt is the sum of the items over their number.", None),
    ],
)
def test_summary_and_rest_in_prose(text, parts):
    rest = {"as it is": "It is the sum of the items over their number.",
            "markup": "It is the m.sum of the items over their number."}  # fmt: skip
    expected = None if parts is None else ("Return the mean of x.", rest[parts])
    assert split_docstring(text) == expected


def test_docstrings_are_parsed_and_not_imported(package):
    (package / "zz_broken.py").write_text("def f(:\n", encoding="utf-8")
    first = (package / "part0.py").read_text(encoding="utf-8")
    (package / "zz_copy.py").write_text(first.replace("the", "The,"), encoding="utf-8")
    other = first.replace("dog", "lake").replace("cat", "hill").replace("a", "e")
    (package / "zz_generated.py").write_text("# automatically generated from x\n" + other, encoding="utf-8")
    (package / "tests").mkdir()
    (package / "tests" / "test_x.py").write_text(other, encoding="utf-8")
    docstring = f'"""One two three four five.\n\n{"six " * 9}"""'
    nested = f"class A:\n    if True:\n        def f():\n            {docstring}\n"
    (package / "zz_nested.py").write_text(nested, encoding="utf-8")
    pairs = collect_pairs(("parsed_only", "not_installed_anywhere"))
    assert "parsed_only" not in sys.modules
    assert len(pairs) == MODULES * DOCSTRINGS + 1
    assert {pair.module for pair in pairs} == {f"part{i}" for i in range(MODULES)} | {"zz_nested"}
    assert len({pair.summary.lower() for pair in pairs}) == len({pair.rest.lower() for pair in pairs}) == len(pairs)


def test_the_standard_library_has_enough():
    pairs = collect_pairs(("stdlib",))
    assert 1500 < len(pairs) < 5000
    assert {"asyncio.tasks", "json.decoder"} <= {pair.module for pair in pairs}
    assert not any(pair.module.startswith(("test.", "site-packages")) for pair in pairs)


# The split


def test_whole_modules_are_held_out_of_every_package():
    names = [(package, f"m{i}.sub") for package in ("p", "q") for i in range(10)]
    pairs = [pair for seed, (p, m) in enumerate(names) for pair in pairs_of(p, m, 10, seed)]
    split = split_pairs(pairs, held_out=1000, seed=0)
    inside, outside = ({group(pair) for pair in side} for side in (split.train, split.held_out))
    assert not inside & outside
    assert split.dropped == 0
    assert {name.partition(".")[0] for name in outside} == {"p", "q"}
    assert 20 <= len(split.held_out) <= 60
    assert split == split_pairs(pairs, held_out=1000, seed=0)
    assert outside != {group(pair) for pair in split_pairs(pairs, held_out=1000, seed=1).held_out}
    few = split_pairs(pairs, held_out=7, seed=0)
    assert len(few.held_out) == 7
    assert few.train == split.train  # what is not sampled of a held-out module is not trained on either


def test_a_private_twin_goes_with_its_module():
    assert group(Pair("", "", "stdlib", "_pydecimal")) == group(Pair("", "", "stdlib", "pydecimal.x"))


def test_copies_of_held_out_text_are_not_trained_on():
    pairs = [pair for i in range(12) for pair in pairs_of("p", f"m{i}", 10, i)]
    clean = split_pairs(pairs, held_out=1000, seed=0)
    assert clean.dropped == 0
    victim, place = clean.held_out[0], clean.train[0].module
    copies = [
        Pair("something else entirely and new here", f"Note: {victim.rest} indeed", "p", place),
        Pair(victim.summary.upper() + "!", "nothing in this text was ever written before it", "p", place),
    ]
    split = split_pairs([*pairs, *copies], held_out=1000, seed=0)
    assert split.dropped == 2
    held_out = set().union(*(shingles(text) for pair in split.held_out for text in (pair.summary, pair.rest)))
    for pair in split.train:
        for text in (pair.summary, pair.rest):
            assert len(shingles(text) & held_out) < 0.3 * len(shingles(text))


# The cost


@pytest.mark.whole
def test_cost_is_measured_on_what_ran():
    options = DemoOptions(cost_rows=2048, cost_repeats=3, backend="reference")
    measured = loss_cost(options, 16, "cpu")
    assert measured["backend"] == "reference"
    assert (measured["rows"], measured["width"], measured["repeats"]) == (2048, 16, 3)
    assert min(measured["fused_ms"], measured["eager_ms"]) > 0
    if measured["eager_mib"] is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert 16 < measured["eager_mib"] < 500  # the (2048, 2048) float32 matrix has 16 MiB, and eager keeps a dozen


# The job


def small(encoder_path, folder, **changes):
    options = {
        "output_dir": str(folder), "model": encoder_path, "packages": ("parsed_only",), "max_steps": 30,
        "batch_size": 16, "lr": 5e-3, "held_out": 40, "cost_rows": 64, "cost_repeats": 1, **changes,
    }  # fmt: skip
    return DemoOptions(**options)


def test_the_whole_job(encoder_path, package, tmp_path):
    said = []
    report = run_demo(small(encoder_path, tmp_path / "a"), said.append)
    assert "parsed_only" not in sys.modules
    assert len(said) == 5
    assert report["after"]["mrr_at_10"] > report["before"]["mrr_at_10"] + 0.05
    assert report["after"]["recall_at_1"] > report["before"]["recall_at_1"]
    assert len(report["training"]["loss"]) == 30
    assert report["backend"] in fastcse.backends()
    assert report["cost"]["loss_difference"] < 1e-4
    assert report["cost"]["gradient_difference"] < 1e-3
    assert report["data"]["train"] + report["data"]["held_out"] <= MODULES * DOCSTRINGS
    assert json.loads((tmp_path / "a" / "demo.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    picture = (tmp_path / "a" / "demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    saved = load_encoder(str(tmp_path / "a" / "model"))
    assert saved.encode(WORDS[:3]).shape == (3, 32)

    torch.manual_seed(99)  # whatever ran before must not matter
    again = run_demo(small(encoder_path, tmp_path / "b"), said.append)
    for part in ("before", "after", "training"):
        assert again[part] == report[part]


def test_too_little_text_is_one_sentence(encoder_path, package, tmp_path):
    with pytest.raises(InputError, match=r"--batch-size 4096 is more than the [0-9]+ training pairs"):
        run_demo(small(encoder_path, tmp_path / "c", batch_size=4096), print)


def test_the_command_prints_tables_or_json(monkeypatch):
    scores = {"mrr_at_10": 0.5, "recall_at_1": 0.25, "alignment": 0.3, "uniformity": -2.0}
    cost = {"rows": 64, "width": 32, "device": "cpu", "fused_ms": 1.0, "eager_ms": 2.5, "fused_mib": None,
            "eager_mib": None}  # fmt: skip
    report = {"before": scores, "after": {**scores, "mrr_at_10": 0.75}, "cost": cost, "backend": "cpp", "seconds": 61.2,
              "data": {"held_out": 20, "train": 200}, "training": {"step": [1, 2], "loss": [2.5, 1.25]},
              "options": {"batch_size": 8}, "files": {"demo.png": "out/demo.png"}}  # fmt: skip
    asked = []
    monkeypatch.setattr(demo_job, "run_demo", lambda options, say: asked.append(options) or report)
    arguments = ["demo", "--output-dir", "out", "--model", "m", "--max-steps", "2", "--batch-size", "8", "--held-out",
                 "20", "--seed", "3", "--backend", "cpp"]  # fmt: skip
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0, table.output
    for words in ("MRR@10", "recall@1", "alignment", "uniformity", "+0.2500", "2.5 x", "2.5000 first, 1.2500 last",
                  "200 pairs, 2 steps of 8", "cpp", "61 s", "out/demo.png"):  # fmt: skip
        assert words in table.stdout
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout) == report
    options = DemoOptions("out", "m", seed=3, max_steps=2, batch_size=8, held_out=20, backend="cpp")
    assert asked == [options, options]
