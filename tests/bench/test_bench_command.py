"""`fastcse bench loss` from the command line to its files."""

import csv
import json
import math

import pytest
from typer.testing import CliRunner

import fastcse
from fastcse.bench import measure as frame
from fastcse.bench.output import LIGER_COLUMNS
from fastcse.bench.peers import PEERS, Peer
from fastcse.bench.problem import plain_loss
from fastcse.cli import app

QUICK = ["bench", "loss", "--device", "cpu", "--n", "48", "--d", "33", "--repeat", "2", "--no-memory"]


def invoke(*arguments):
    return CliRunner().invoke(app, [*QUICK, *map(str, arguments)])


@pytest.fixture(autouse=True)
def few_peers(monkeypatch):
    """Without those that compile or load libraries, but with one that is absent; as few rounds as asked for."""
    for name in set(PEERS) - {"fastcse", "eager", "chunked eager", "flex_attention"}:
        monkeypatch.delitem(PEERS, name)
    absent = Peer("Nobody", plain_loss, modules=("no_such_library",), install="pip install nobody")
    monkeypatch.setitem(PEERS, "Nobody", absent)
    monkeypatch.setattr(frame, "rounds", lambda problem, repeat: repeat)


def test_from_the_command_line_to_the_files(tmp_path):
    files = {option: tmp_path / "made" / name for option, name in
             (("--output", "a.json"), ("--csv", "a.csv"), ("--plot", "a.png"))}  # fmt: skip
    done = invoke(*(x for pair in files.items() for x in pair), "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads(files["--output"].read_text())
    (result,) = report["results"]
    assert result["backend"] in fastcse.backends()
    assert (result["n"], result["d"], result["repeat"]) == (48, 33, 2)
    rows = {row["provider"]: row for row in result["rows"]}
    assert result["rows"][0]["provider"] == "bare products"
    assert result["rows"][0]["to_products"] == 1.0
    assert rows["fastcse"]["status"] == rows["eager"]["status"] == "measured"
    assert rows["fastcse"]["ms"] > 0
    assert rows["fastcse"]["gradient_error"] < 1e-5
    assert rows["Nobody"] == {**rows["Nobody"], "status": "absent", "ms": None,
                              "reason": "no_such_library is not installed: pip install nobody"}  # fmt: skip
    assert report["machine"]["cpu"]
    assert report["machine"]["versions"]["torch"]
    _check_csv(files["--csv"], rows)
    picture = files["--plot"].read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 15_000
    assert sorted(x.name for x in (tmp_path / "made").iterdir()) == ["a.csv", "a.json", "a.png"]


def _check_csv(path, rows):
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert tuple(lines[0]) == LIGER_COLUMNS
    assert len(LIGER_COLUMNS) == 15
    assert {len(line) for line in lines} == {15}
    named = [dict(zip(lines[0], line)) for line in lines[1:]]
    speed = {line["kernel_provider"]: line for line in named if line["metric_name"] == "speed"}
    assert set(speed) == {name for name, row in rows.items() if row["status"] == "measured"}
    assert float(speed["fastcse"]["y_value_50"]) == rows["fastcse"]["ms"]
    assert {line["x_value"] for line in named} == {"48"}


def test_the_table_fits_80_columns_and_names_everyone(monkeypatch):
    long = "sentence-transformers cached large"
    monkeypatch.setitem(PEERS, long, Peer(long, plain_loss, note="whole matrix"))
    monkeypatch.setenv("COLUMNS", "80")
    done = invoke("--loss", "infonce,focal")
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    absent = "Nobody absent: no_such_library is not installed: pip install nobody"
    for text in (long, "bare products", "fastcse", absent, "flex_attention unsuitable: runs on CUDA only"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peers", "nobody-knows"], "--peers is 'nobody-knows': expected one of fastcse"),
        (["--loss", "hinge"], "--loss is 'hinge': expected one of infonce, focal, symmetric"),
        (["--data", "poems"], "--data is 'poems'"),
        (["--stage", "never"], "--stage is 'never'"),
        (["--mode", "half"], "--mode is 'half'"),
        (["--dtype", "int8"], "--dtype is 'int8'"),
        (["--n", "0"], "--n is 0: each must be at least 1"),
        (["--n", "many"], "--n is 'many': expected whole numbers"),
        (["--d", "8,"], "--d is '8,': expected whole numbers"),
        (["--m", "47"], "--m is 47 and --n is 48: infonce needs at least as many candidates"),
        (["--m", "50", "--loss", "symmetric"], "--m is 50 and --n is 48: symmetric needs exactly as many"),
        (["--repeat", "0"], "--repeat is 0: expected at least 1"),
        (["--temperature", "0"], "--temperature must be above 0, got 0.0"),
        (["--temperature", "nan"], "--temperature must be above 0, got nan"),
        (["--device", "cuda"], "torch finds no GPU here"),
        (["--device", "abacus"], "--device is 'abacus'"),
        (["--backend", "abacus"], "--backend 'abacus' is unknown"),
        (["--output", "{file}/a.json"], "its folder cannot be made"),
        (["--csv", "{file}/a.csv"], "its folder cannot be made"),
        (["--plot", "{folder}"], "is a folder: expected a file"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, arguments, says):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(frame, "measure", lambda *a, **k: pytest.fail("measured before the mistake was found"))
    file, folder, wanted = tmp_path / "file", tmp_path / "folder", tmp_path / "wanted.json"
    file.write_text("")
    folder.mkdir()
    output = [] if "--output" in arguments else ["--output", wanted]
    done = invoke(*output, *(text.format(file=file, folder=folder) for text in arguments))
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [file, folder]


@pytest.mark.parametrize("factor", [2.0, math.nan])
def test_a_wrong_gradient_ends_with_code_1_and_nothing_written(tmp_path, monkeypatch, factor):
    def doubled(problem):
        plain = plain_loss(problem)
        return lambda a, c: (x := plain(a, c)) * factor - x.detach() * (factor - 1)

    monkeypatch.setitem(PEERS, "fastcse", Peer("fastcse", doubled))
    done = invoke("--output", tmp_path / "a.json", "--csv", tmp_path / "a.csv", "--plot", tmp_path / "a.png", "--json")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "Error: fastcse's gradient error" in done.stderr
    assert "nothing is reported" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_failed_peer_and_a_missing_number_are_shown(tmp_path, monkeypatch):
    def broken(problem):
        raise RuntimeError("planted [red]fault[/]")

    monkeypatch.setitem(PEERS, "broken", Peer("broken", broken))
    monkeypatch.setitem(PEERS, "lost", Peer("lost", lambda p: lambda a, c: plain_loss(p)(a, c) * math.nan))
    path = tmp_path / "a.json"
    done = invoke("--output", path, "--csv", tmp_path / "a.csv", "--plot", tmp_path / "a.png")
    assert done.exit_code == 0, done.output
    assert "broken failed: RuntimeError: planted [red]fault[/]" in done.stdout
    (lost,) = [line for line in done.stdout.splitlines() if line.startswith("lost")]
    assert lost.split()[-2:] == ["nan", "nan"]
    rows = {row["provider"]: row for row in json.loads(path.read_text())["results"][0]["rows"]}
    assert rows["lost"]["gradient_error"] == "nan"
    assert rows["broken"]["status"] == "failed"


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    from fastcse.bench import output

    monkeypatch.setattr(output, "_liger_lines", lambda *a: 1 / 0)
    assert invoke("--csv", tmp_path / "a.csv").exit_code == 1
    assert not list(tmp_path.iterdir())


def stopping_at(n, error):
    """fastcse, but `error` at the problem of this size."""

    def build(problem):
        if problem.n == n:
            raise error
        return plain_loss(problem)

    return Peer("fastcse", build)


def test_an_interrupt_keeps_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(PEERS, "fastcse", stopping_at(20, KeyboardInterrupt()))
    done = invoke("--n", "16,20,24", "--output", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    assert done.exit_code == 130
    assert "Stopped after 1 of 3 problems." in done.stderr
    assert "N = 16" in done.stdout
    assert [result["n"] for result in json.loads((tmp_path / "a.json").read_text())["results"]] == [16]
    assert (tmp_path / "a.csv").read_text().count("fastcse") > 0


def test_an_interrupt_before_anything_was_measured_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(PEERS, "fastcse", stopping_at(16, KeyboardInterrupt()))
    done = invoke("--n", "16,20", "--output", tmp_path / "a.json")
    assert done.exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_a_file_stands_after_each_problem(tmp_path, monkeypatch):
    seen = []

    def build(problem):
        seen.append((tmp_path / "a.json").exists())
        return plain_loss(problem)

    monkeypatch.setitem(PEERS, "fastcse", Peer("fastcse", build))
    assert invoke("--n", "16,20", "--output", tmp_path / "a.json").exit_code == 0
    assert seen == [False, True]


def test_a_wrong_gradient_later_takes_the_files_away_again(tmp_path, monkeypatch):
    monkeypatch.setitem(PEERS, "fastcse", stopping_at(20, RuntimeError("planted")))
    done = invoke("--n", "16,20", "--output", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    assert done.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_gradient_at_once_leaves_an_earlier_file_alone(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("earlier")
    monkeypatch.setitem(PEERS, "fastcse", stopping_at(16, RuntimeError("planted")))
    assert invoke("--n", "16", "--output", tmp_path / "a.json").exit_code == 1
    assert (tmp_path / "a.json").read_text() == "earlier"


@pytest.mark.parametrize("loss", ["infonce", "focal", "symmetric"])
@pytest.mark.parametrize("n", [1, 3])
def test_one_row_and_three(loss, n):
    done = invoke("--n", n, "--loss", loss, "--json")
    assert done.exit_code == 0, done.output
    rows = {row["provider"]: row for row in json.loads(done.stdout)["results"][0]["rows"]}
    assert rows["fastcse"]["status"] == "measured"
    assert rows["fastcse"]["loss_error"] < 1e-5
    assert rows["fastcse"]["gradient_error"] < 1e-5
