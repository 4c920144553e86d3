"""The gate of `make bench`: which ratios fail, which files are refused, and what is said."""

import json
import sys

import pytest

from benchmarks import gate
from fastcse.bench.environment import environment
from fastcse.bench.loss import LossCase

PROBLEM = LossCase(64, 64, 16, "focal")
OTHER = LossCase(64, 64, 16)


@pytest.fixture(scope="module")
def facts():
    return environment("cpu")


@pytest.fixture
def suite(tmp_path, facts):
    """Writes what pytest-benchmark would, with these ratios of PROBLEM and OTHER."""

    def write(to_products=2.0, to_eager=0.5, **changed):
        entries = [
            {"extra_info": {"problem": p.labels(), "machine": {**facts, **changed},
                            "ratios": {"fastcse/products": ratio, "fastcse/eager": to_eager}}}
            for p, ratio in ((PROBLEM, to_products), (OTHER, 2.0))
        ]  # fmt: skip
        path = tmp_path / "bench.json"
        path.write_text(json.dumps({"benchmarks": entries}))
        return path

    return write


@pytest.fixture
def folder(tmp_path, suite):
    """Baselines of 2.0 and 0.5."""
    assert gate.run(suite(), True, tmp_path / "baselines") == 0
    return tmp_path / "baselines"


@pytest.mark.parametrize(("change", "code", "word"), [(1.2, 1, "worse"), (1.1, 0, "same"), (0.7, 0, "better")])
@pytest.mark.parametrize("which", ["to_products", "to_eager"])
def test_a_ratio_that_is_20_percent_worse_fails(suite, folder, capsys, which, change, code, word):
    path = suite(**{which: change * {"to_products": 2.0, "to_eager": 0.5}[which]})
    assert gate.run(path, False, folder, again=None) == code
    out = capsys.readouterr().out
    assert word in out
    assert ("20% worse than its baseline" in out) == bool(code)


def test_a_worse_ratio_is_measured_again_before_it_fails(suite, folder, capsys):
    asked = []

    def quiet(problem):
        asked.append(problem)
        return {"fastcse/products": 2.1, "fastcse/eager": 0.5}

    assert gate.run(suite(to_products=3.0), False, folder, again=quiet) == 0
    assert asked == [PROBLEM]
    assert "same, measured again" in capsys.readouterr().out
    slow = {"fastcse/products": 2.1, "fastcse/eager": 0.9}
    assert gate.run(suite(to_products=3.0), False, folder, again=lambda problem: slow) == 1


def test_measuring_again_gives_the_same_ratios():
    ratios = gate.measure_again(PROBLEM)
    assert set(ratios) == {"fastcse/products", "fastcse/eager"}
    assert all(value > 0 for value in ratios.values())


def test_no_number_is_worse_than_any():
    assert gate.Verdict(PROBLEM, "fastcse/eager", float("nan"), 1.0).worse


def test_a_machine_without_a_baseline_is_told_how_to_save_one(suite, folder, capsys):
    capsys.readouterr()
    assert gate.run(suite(to_products=9.0, threads=977), False, folder) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "977 threads" in out
    assert "`make baseline` saves one" in out


def test_machines_of_different_kinds_have_files_of_their_own(facts, tmp_path):
    kinds = [facts, {**facts, "threads": 977}, {**facts, "cpp": "C++ module, other"}, {**facts, "cpu": "other"},
             {**facts, "gpu": "NVIDIA H100 80GB HBM3"}]  # fmt: skip
    files = {gate.baseline_file(kind, tmp_path).name for kind in kinds}
    assert len(files) == 5
    assert "nvidia-h100-80gb-hbm3.json" in files


def test_a_baseline_says_where_it_comes_from_and_keeps_what_was_not_measured(suite, folder, facts, tmp_path):
    (path,) = folder.iterdir()
    saved = json.loads(path.read_text())["problems"]
    assert set(saved) == {PROBLEM.title, OTHER.title}
    assert saved[PROBLEM.title] == {
        "date": facts["time"], "commit": facts["commit"], "torch": facts["versions"]["torch"],
        "ratios": {"fastcse/products": 2.0, "fastcse/eager": 0.5},
    }  # fmt: skip
    gate.save(facts, [gate.Reading(OTHER, {"fastcse/eager": 0.8})], folder)
    saved = json.loads(path.read_text())["problems"]
    assert saved[PROBLEM.title]["ratios"]["fastcse/products"] == 2.0
    assert saved[OTHER.title]["ratios"] == {"fastcse/eager": 0.8}


def test_a_problem_that_is_new_is_shown_and_passes(suite, folder, facts, capsys):
    (path,) = folder.iterdir()
    document = json.loads(path.read_text())
    del document["problems"][PROBLEM.title]
    path.write_text(json.dumps(document))
    assert gate.run(suite(to_products=99.0), False, folder, again=None) == 0
    assert "no baseline" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"problems": 1}', '{"problems": {"x": {}}}', '{"problems": {"x": {"ratios": {"a": "b"}}}}',
     '{"problems": {"x": {"ratios": {"a": 0}}}}', '{"problems": {"x": {"ratios": {"a": NaN}}}}'],
)  # fmt: skip
def test_a_damaged_baseline_is_one_sentence(suite, folder, monkeypatch, capsys, text):
    (path,) = folder.iterdir()
    path.write_text(text)
    monkeypatch.setattr(gate.run, "__defaults__", (folder, None))
    for arguments in ([], ["--save"]):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["gate", "--file", str(suite()), *arguments])
        assert gate.main() == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("Error: ")
        assert told.err.count("\n") == 1
        assert "make baseline" in told.err
        assert path.read_text() == text


@pytest.mark.parametrize("text", [None, "", "{}", '{"benchmarks": []}', '{"benchmarks": [{"extra_info": {}}]}'])
def test_a_run_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, capsys, text):
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["gate", "--file", str(path)])
    assert gate.main() == 2
    told = capsys.readouterr().err
    assert told.startswith("Error: ")
    assert told.count("\n") == 1
    assert str(path) in told


def test_a_file_of_the_command_line_is_read_too(tmp_path, facts):
    row = {"provider": "fastcse", "status": "measured", "ms": 3.0, "to_products": 1.5}
    rows = [row, {**row, "provider": "eager", "ms": 6.0}, {"provider": "x", "status": "absent"}]
    result = {**PROBLEM.labels(), "repeat": 3, "backend": "cpp", "rows": rows}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"command": "", "machine": facts, "results": [result]}))
    found_facts, (reading,) = gate.read_run(path)
    assert found_facts == json.loads(json.dumps(facts))
    assert reading == (PROBLEM, {"fastcse/products": 1.5, "fastcse/eager": 0.5})
