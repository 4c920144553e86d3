"""The command line: JSON alone on stdout, one sentence for each mistake, and a quick start."""

import json
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest
from tiny_encoder import sentences, write_tiny_encoder
from typer.testing import CliRunner

import fastcse
from fastcse.cli import app, main
from fastcse.cli.eval import mean_spearman
from fastcse.errors import RunError
from fastcse.evaluation.evaluators import StsResult, evaluate_sts
from fastcse.evaluation.sts import find_sts
from fastcse.training import run
from fastcse.training.encoders import load_encoder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a corpus, two STS files in `sts`, and a model in `tiny/encoder`."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "corpus.txt").write_text("\n".join(sentences(16)), encoding="utf-8")
    (folder / "sts").mkdir()
    for seed, name in ((1, "stsb.dev.tsv"), (3, "sts16.tsv")):
        a, b = sentences(12, seed=seed), sentences(12, seed=seed + 1)
        rows = "".join(f"{x}\t{y}\t{i % 6}\n" for i, (x, y) in enumerate(zip(a, b)))
        (folder / "sts" / name).write_text("sentence1\tsentence2\tscore\n" + rows, encoding="utf-8")
    write_tiny_encoder(folder / "tiny")
    return folder


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(files, *more):
    return call(
        "train", "--corpus", files / "corpus.txt", "--model", files / "tiny" / "encoder", "--output-dir", files / "out",
        "--batch-size", 4, "--max-steps", 4, "--sts-dir", files / "sts", "--margin", 0.2, *more,
    )  # fmt: skip


def test_info_is_truthful(monkeypatch):
    status = {"cpp": fastcse.BackendStatus(True, "built"), "triton": fastcse.BackendStatus(False, "no device")}
    with monkeypatch.context() as patch:
        patch.setattr("fastcse.ops.dispatch.backends", lambda: status)
        assert json.loads(call("info", "--json").stdout)["backends"] == {
            "cpp": {"available": True, "reason": "built"}, "triton": {"available": False, "reason": "no device"},
        }  # fmt: skip
    facts = json.loads(call("info", "--json").stdout)
    assert {name: status["available"] for name, status in facts["backends"].items()} == {
        name: status.available for name, status in fastcse.backends().items()
    }
    assert all(status["reason"] for status in facts["backends"].values())
    assert facts["fastcse"] == fastcse.__version__ == call("--version").stdout.strip()
    assert facts["cpu"]["threads"] >= 1
    table = call("info").stdout
    assert all(name in table for name in ("torch", "triton", "cpp", "reference", facts["cpu"]["capability"]))


def test_train_prints_json_alone_and_eval_scores_the_saved_model(files):
    trained = train(files, "--objective", "focal", "--backend", "reference", "--json")
    assert trained.exit_code == 0, trained.output
    report = json.loads(trained.stdout)
    assert report["options"]["objective_options"] == {"temperature": 0.05, "margin": 0.2}
    assert report["backend"] == "reference"
    assert [step for step, _ in report["dev"]] == [1, 2, 3, 4]
    assert "train focal" in trained.stderr  # the progress bar

    again = train(files)
    assert again.exit_code == 2
    assert "add --resume" in again.stderr
    resumed = train(files, "--resume")
    assert resumed.exit_code == 0, resumed.output
    for word in ("focal (temperature 0.05, margin 0.2)", "4 of batch 4", "before", "at step"):
        assert word in resumed.stdout

    scored = call("eval", files / "out", "--sts-dir", files / "sts", "--json")
    assert scored.exit_code == 0, scored.output
    result = json.loads(scored.stdout)
    by_name = {one["name"]: one["spearman"] for one in result["files"]}
    assert by_name["stsb.dev.tsv"] == report["dev_best"]
    direct = evaluate_sts(load_encoder(str(files / "out")), find_sts(files / "sts"))
    assert by_name == {one.name: one.spearman for one in direct}
    assert result["mean_spearman"] == pytest.approx(sum(by_name.values()) / 2, abs=0.006)
    table = call("eval", files / "out", "--sts-dir", files / "sts", "--pooling", "cls").stdout
    for word in ("stsb.dev.tsv", "sts16.tsv", "Spearman x 100", "alignment", "uniformity", "mean"):
        assert word in table


def test_mean_is_over_rounded_scores_that_exist():
    results = [StsResult("a", 2, 70.01, None, None), StsResult("b", 2, 80.02, None, None)]
    assert mean_spearman([*results, StsResult("c", 2, None, None, None)]) == 75.02  # 75.015, half to even
    assert mean_spearman([]) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("eval", "{}/none", "--sts-dir", "{}/sts"), "MODEL '{}/none' is not a folder"),
        (("eval", "{}/sts", "--sts-dir", "{}/sts"), "MODEL '{}/sts' cannot be loaded"),
        (("train", "--output-dir", "{}/o", "--corpus", "{}/none"), "--corpus '{}/none' does not exist"),
        (("demo", "--output-dir", "{}/o", "--max-steps", "0"), "--max-steps is 0: expected at least 1"),
        (("demo", "--output-dir", "{}/corpus.txt"), "--output-dir '{}/corpus.txt' cannot be made: File exists"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(files, arguments, says):
    result = call(*(argument.format(files) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    sentence = [line for line in result.stderr.splitlines() if not line.startswith("read docstrings")]
    assert len(sentence) == 1
    assert sentence[0].startswith("Error: ")
    assert says.format(files) in sentence[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--output-dir", "o", "--lr", "fast"], "Invalid value for '--lr': 'fast' is not a number"),
        (["train", "--output-dir", "o", "--seed", "1.5"], "Invalid value for '--seed': '1.5' is not a whole number"),
        (["train"], "Missing option '--output-dir'"),
        (["eval", "minilm"], "Missing option '--sts-dir'"),
        (["mine"], "Missing option '--output'"),
        (["mint"], "No such command 'mint'"),
        (["info", "--jsn"], "No such option: --jsn"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_exit_code_2(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fastcse", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    output = capsys.readouterr()
    assert stopped.value.code == 2
    assert output.out == ""
    assert output.err.startswith(f"Error: {says}")
    assert len(output.err.splitlines()) == 1


def test_no_command_prints_the_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fastcse"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("info", "mine", "train", "eval", "demo"))


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ModuleNotFoundError("No module named 'datasets'", name="datasets"), 2, "pip install 'fastcse[train]'"),
        (RunError("a disk is full"), 1, "Error: a disk is full"),
        (KeyboardInterrupt(), 130, "Stopped."),
        (ValueError("a fault of ours"), 1, None),
    ],
)
def test_what_ends_a_command(files, monkeypatch, error, code, says):
    monkeypatch.setattr(run, "train", Mock(side_effect=error))
    result = train(files)
    assert result.exit_code == code
    assert (result.exception is error) == (says is None), "a fault of ours keeps its traceback"
    assert "Error:" not in result.stderr if says is None else result.stderr.splitlines()[-1].endswith(says)


def shell(*command):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)


def test_the_module_runs_as_a_program(files):
    done = shell("-m", "fastcse", "eval", "minilm", "--sts-dir", str(files / "none"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"Error: --sts-dir '{files}/none' is missing")


def test_options_and_recipes_wait_for_no_training_library():
    code = (
        "import sys; from fastcse.cli import main\n"
        "lines = ['train', '--help'], ['train', '--output-dir', 'o'], ['recipes'], ['eval', 'm', '--sts-dir', '/x']\n"
        "for line in lines:\n"
        "    sys.argv = ['fastcse', *line]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "print([x for x in ('transformers', 'sentence_transformers', 'datasets', 'matplotlib') if x in sys.modules])"
    )
    done = shell("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for heading in ("--objective", "Corpus bank of hsimcse", "Clusters of clusterns", "View, head and queue"):
        assert heading in done.stdout
