"""The gate of `make bench`: which ratios fail, which files are refused, and what is said."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import regression
from benchmarks.test_ratios import CASES
from fastcse.bench.benchmarks import case_of
from fastcse.bench.environment import environment
from fastcse.bench.loss import LossCase

CASE, OTHER = LossCase(n=64, d=16, loss="focal"), LossCase(n=64, d=16)


@pytest.fixture(scope="module")
def facts():
    return environment("cpu")


@pytest.fixture
def suite(tmp_path, facts):
    """Writes what pytest-benchmark would, with these ratios of CASE and OTHER."""

    def write(to_products=2.0, to_eager=0.5, **changed):
        entries = [
            {
                "fullname": f"test_ratios[{case.loss}]",
                "extra_info": {
                    "problem": case.labels(),
                    "machine": {**facts, **changed},
                    "ratios": {"fastcse/products": ratio, "fastcse/eager": to_eager},
                },
            }
            for case, ratio in ((CASE, to_products), (OTHER, 2.0))
        ]
        path = tmp_path / "bench.json"
        path.write_text(json.dumps({"benchmarks": entries}))
        return path

    return write


@pytest.fixture
def folder(tmp_path, suite):
    """Baselines of 2.0 and 0.5."""
    assert regression.run(suite(), True, tmp_path / "baselines") == 0
    return tmp_path / "baselines"


@pytest.mark.parametrize(("change", "code", "word"), [(1.2, 1, "worse"), (1.1, 0, "same"), (0.7, 0, "better")])
@pytest.mark.parametrize("which", ["to_products", "to_eager"])
def test_a_ratio_that_is_20_percent_worse_fails(suite, folder, capsys, which, change, code, word):
    path = suite(**{which: change * {"to_products": 2.0, "to_eager": 0.5}[which]})
    assert regression.run(path, False, folder, again=None) == code
    out = capsys.readouterr().out
    assert word in out
    assert ("20% worse than its baseline" in out) == bool(code)


def test_a_worse_ratio_is_measured_again_by_its_test_before_it_fails(suite, folder, capsys):
    asked = []

    def quiet(test):
        asked.append(test)
        return {"fastcse/products": 2.1, "fastcse/eager": 0.5}

    assert regression.run(suite(to_products=3.0), False, folder, again=quiet) == 0
    assert asked == ["test_ratios[focal]"]
    assert "same, measured again" in capsys.readouterr().out
    slow = {"fastcse/products": 2.1, "fastcse/eager": 0.9}
    assert regression.run(suite(to_products=3.0), False, folder, again=lambda test: slow) == 1


def test_no_number_is_worse_than_any():
    assert regression.Verdict("a", "fastcse/eager", float("nan"), 1.0).worse


def test_a_machine_without_a_baseline_is_told_how_to_save_one(suite, folder, capsys):
    capsys.readouterr()
    assert regression.run(suite(to_products=9.0, threads=977), False, folder) == 0
    out = capsys.readouterr().out
    assert "9.00" in out
    assert "977 threads yet" in out
    assert "`make baseline` saves one" in out


def test_machines_of_different_kinds_have_files_of_their_own(facts, tmp_path):
    kinds = [facts, {**facts, "threads": 977}, {**facts, "cpp": "C++ module, other"}, {**facts, "cpu": "other"}]
    files = {regression.baseline_file(kind, tmp_path).name for kind in [*kinds, {**facts, "gpu": "NVIDIA H100 80GB"}]}
    assert len(files) == 5
    assert "nvidia-h100-80gb.json" in files


def test_a_baseline_says_where_it_comes_from_and_keeps_what_was_not_measured(suite, folder, facts):
    (path,) = folder.iterdir()
    saved = json.loads(path.read_text())["problems"]
    assert set(saved) == {CASE.title, OTHER.title}
    origin = {"date": facts["time"], "commit": facts["commit"], "torch": facts["versions"]["torch"]}
    assert saved[CASE.title] == {**origin, "ratios": {"fastcse/products": 2.0, "fastcse/eager": 0.5}}
    regression.save(facts, [regression.Reading("a", OTHER.title, {"fastcse/eager": 0.8})], folder)
    saved = json.loads(path.read_text())["problems"]
    assert saved[CASE.title]["ratios"]["fastcse/products"] == 2.0
    assert saved[OTHER.title]["ratios"] == {"fastcse/eager": 0.8}


def test_a_case_that_is_new_is_shown_and_passes(suite, folder, capsys):
    (path,) = folder.iterdir()
    document = json.loads(path.read_text())
    del document["problems"][CASE.title]
    path.write_text(json.dumps(document))
    assert regression.run(suite(to_products=99.0), False, folder, again=None) == 0
    assert "no baseline" in capsys.readouterr().out


def test_the_committed_baselines_are_of_the_cases_that_are_measured():
    titles = {case_of(case.labels()).title for case in CASES}
    for path in Path(regression.BASELINES).iterdir():
        assert set(regression.read_baseline(path)) <= titles


def refused(monkeypatch, capsys, *arguments):
    """The sentence that ends the command."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["regression", *map(str, arguments)])
    assert regression.main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"problems": 1}', '{"problems": {"x": {}}}', '{"problems": {"x": {"ratios": {"a": "b"}}}}',
     '{"problems": {"x": {"ratios": {"a": 0}}}}', '{"problems": {"x": {"ratios": {"a": NaN}}}}'],
)  # fmt: skip
def test_a_damaged_baseline_is_one_sentence(suite, folder, monkeypatch, capsys, text):
    (path,) = folder.iterdir()
    path.write_text(text)
    monkeypatch.setattr(regression.run, "__defaults__", (folder, None))
    for arguments in ([], ["--save"]):
        assert "make baseline" in refused(monkeypatch, capsys, "--file", suite(), *arguments)
        assert path.read_text() == text


@pytest.mark.parametrize("text", [None, "", "{}", '{"benchmarks": []}', '{"benchmarks": [{"extra_info": {}}]}'])
def test_a_run_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, capsys, text):
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    assert str(path) in refused(monkeypatch, capsys, "--file", path)


@pytest.mark.whole
def test_a_test_that_runs_again_gives_its_ratios():
    ratios = regression.run_again("benchmarks/test_ratios.py::test_ratios[focal, N = 64, D = 384]")
    assert set(ratios) == {"fastcse/products", "fastcse/eager"}
    assert all(value > 0 for value in ratios.values())
