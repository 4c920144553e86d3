"""The GPU lane without a GPU: its bookkeeping, its commands, and its scripts in the interpreter."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.gpu import __main__ as lane
from benchmarks.gpu import counters, million, runner, search, small
from benchmarks.gpu.runner import Lane, Step, digest
from benchmarks.gpu.stages import DRY_TABLES, STAGES, TABLES, steps
from fastcse.cli import app
from fastcse.kernels import configs

ROOT = Path(__file__).resolve().parents[2]
# The frame, whose module has the name of its function.
FRAME = importlib.import_module("fastcse.bench.measure")


def python(code, name="one", limit_s=60.0, makes=".", **options):
    return Step("stage", name, ("python", "-c", code), limit_s, makes, **options)


@pytest.mark.parametrize(
    ("code", "budget", "options", "status", "why"),
    [
        ("print('before'); raise SystemExit('no such thing')", 60, {}, "failed", "exit code 1: no such thing"),
        ("0", 60, {"makes": "never"}, "failed", "made no never"),
        ("0", 1, {}, "skipped", "the lane's time is over"),
        ("0", 60, {"tools": ("no-such-profiler",)}, "skipped", "no-such-profiler is not on the path"),
        ("0", 60, {"modules": ("no_such_package",)}, "skipped", "no_such_package is not installed"),
        ("print('last')", 60, {}, "passed", "last"),
    ],
)
def test_a_step_ends_with_its_reason_and_keeps_its_log(tmp_path, code, budget, options, status, why):
    step = python(code, **options)
    outcome = Lane(tmp_path, "a", budget).run(step)
    assert outcome["status"] == status
    assert outcome["why"].startswith(why)
    assert ("before" in (tmp_path / "stage-one.log").read_text()) == ("before" in code) if status != "skipped" else True
    # Only what passed is not run again, for the same sources and while its file is there.
    assert Lane(tmp_path, "a", budget).is_done(step) == (status == "passed")
    assert not Lane(tmp_path, "b", budget).is_done(step)


def test_a_step_whose_file_is_gone_is_run_again(tmp_path):
    step = python(f"open({str(tmp_path / 'made')!r}, 'w')", makes="made")
    assert Lane(tmp_path, "a", 60).run(step)["status"] == "passed"
    assert Lane(tmp_path, "a", 60).is_done(step)
    (tmp_path / "made").unlink()
    assert not Lane(tmp_path, "a", 60).is_done(step)


def test_a_step_is_cut_off_with_everything_that_it_started_and_leaves_its_file(tmp_path):
    document = {"command": "c", "machine": {}, "results": [1]}
    mark, out = tmp_path / "outlived", tmp_path / "loss-slow.json"
    child = f"import time; time.sleep(7); open({str(mark)!r}, 'w')"
    code = (
        f"import json, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); "
        f"json.dump({document!r}, open({str(out)!r}, 'w')); time.sleep(60)"
    )
    step, lane = python(code, limit_s=5.0, makes=out.name), Lane(tmp_path, "a", 60)
    start = time.monotonic()
    assert lane.run(step)["status"] == "cut off"
    time.sleep(max(0.0, 8 - (time.monotonic() - start)))
    assert not mark.exists()
    assert not lane.is_done(step)
    lane.gather({"gpu": "here"}, dry=True)
    assert json.loads((tmp_path / "loss.json").read_text())["results"] == [1]


@pytest.mark.parametrize("dry", [False, True])
def test_every_stage_has_steps_that_the_command_line_takes(tmp_path, monkeypatch, dry):
    found = steps(tmp_path, "cpu" if dry else "cuda", dry)
    assert list(dict.fromkeys(step.stage for step in found)) == list(STAGES)
    assert len({step.key for step in found}) == len(found)
    makes = [step.makes for step in found if step.makes != "."]
    assert len(set(makes)) == len(makes)
    asked = []

    def note(case, *arguments, **options):
        asked.append(case)
        raise KeyboardInterrupt

    monkeypatch.setattr(FRAME, "measure", note)
    monkeypatch.setattr(
        importlib.import_module("fastcse.cli.bench"), "_sentences", lambda corpus: list("abcdefgh") * 1024
    )
    tables = [step for step in steps(tmp_path, "cpu", dry) if "fastcse" in step.command]
    for step in tables:
        assert CliRunner().invoke(app, step.command[3:]).exit_code == 130, step
    assert len(asked) == len(tables) == len(DRY_TABLES if dry else TABLES)


def test_winners_join_the_launchers_table_and_leave_others_alone(tmp_path, monkeypatch):
    table = tmp_path / "table.json"
    old, new = configs.HALF._replace(group=4)._asdict(), configs.HALF._replace(group=16)._asdict()
    table.write_text(json.dumps({"sm_90": {"bfloat16": {"384": {"sums": old}, "768": {"sums": old, "busy": old}}}}))
    monkeypatch.setattr(runner, "TUNED", table)
    found = {"winners": {"sm_90": {"bfloat16": {"768": {"sums": new}}}}}
    lane = Lane(tmp_path, "a", 60)
    lane.run(
        python(f"import json; json.dump({found!r}, open({str(tmp_path / 'tuned.json')!r}, 'w'))", makes="tuned.json")
    )
    lane.gather({"gpu": "planted"}, dry=True)
    assert json.loads(table.read_text())["sm_90"]["bfloat16"]["768"]["sums"] == old
    lane.gather({"gpu": "planted"}, dry=False)
    merged = json.loads(table.read_text())["sm_90"]["bfloat16"]
    assert merged["768"] == {"sums": new, "busy": old}
    assert merged["384"] == {"sums": old}


def test_only_tables_of_these_sources_are_gathered_each_kind_in_its_file(tmp_path, capsys):
    document = {"command": "c", "machine": {"gpu": "other"}, "results": ["old"]}
    (tmp_path / "loss-old.json").write_text(json.dumps(document))
    lane = Lane(tmp_path, "a", 60)
    for name in ("loss-a", "loss-b", "topk-a"):
        (tmp_path / f"{name}.json").write_text(json.dumps(document | {"results": [name]}))
        lane.state[name] = {"makes": f"{name}.json", "status": "passed"}
    (tmp_path / "rows-a.json").write_text('{"results": ')
    lane.state["rows-a"] = {"makes": "rows-a.json", "status": "cut off"}
    lane.gather({"gpu": "here"}, dry=True)
    assert "rows-a.json is not whole" in capsys.readouterr().err
    whole = {path.stem: json.loads(path.read_text()) for path in (tmp_path / f"{x}.json" for x in ("loss", "topk"))}
    assert whole["loss"]["results"] == ["loss-a", "loss-b"]
    assert whole["loss"]["machine"] == {"gpu": "here"}
    assert whole["topk"]["results"] == ["topk-a"]
    assert not (tmp_path / "rows.json").exists()
    lane.state = {}
    (tmp_path / "loss.json").unlink()
    lane.gather({"gpu": "here"}, dry=True)
    assert not (tmp_path / "loss.json").exists()


def test_sources_are_told_apart_by_what_they_hold(tmp_path):
    (tmp_path / "fastcse").mkdir()
    (tmp_path / "fastcse" / "a.py").write_text("1")
    one = digest(tmp_path)
    (tmp_path / "fastcse" / "tuned.json").write_text("{}")  # what the lane itself writes
    assert digest(tmp_path) == one
    (tmp_path / "fastcse" / "a.py").write_text("2")
    assert digest(tmp_path) != one


@pytest.mark.parametrize("script", [million, search, counters, pytest.param(small, marks=pytest.mark.whole)])
def test_scripts_run_in_the_interpreter(tmp_path, script):
    out = tmp_path / "out.json"
    assert script.main(["--dry", "--output", str(out)]) == 0
    made = json.loads(out.read_text())
    if script is million:
        (result,) = made["results"]
        assert result["backend"] == "triton"
        assert 0 < result["rows"][0]["gradient_error"] < 1e-2
    if script is search:
        entry = made["winners"]["dry"]["bfloat16"]["768"]["gradients"]
        assert configs.TileConfig(**entry) in search.candidates("bfloat16", True)
        assert not any(entry["failed"] for entry in made["searches"])


def test_a_configuration_with_wrong_gradients_cannot_win(monkeypatch):
    rows = search.rows_of(16, 8, "bfloat16", "cpu")
    want = [search.call("gradients", *rows)(), *(x.grad.clone() for x in rows)]
    assert search.time_config("gradients", rows, configs.INTERPRETED, want, "cpu") > 0
    with pytest.raises(ValueError, match="differs from the default's"):
        search.time_config("gradients", rows, configs.INTERPRETED, [2 * x for x in want], "cpu")


def test_the_profilers_page_is_read():
    names = list(counters.METRICS)[:2]
    page = (
        "==PROF== Connected\n"
        f'"ID","Kernel Name","{names[0]}","{names[1]}"\n"","","us","%"\n"0","persistent_sweep_kernel","512.5","81.2"\n'
    )
    kernels = counters.parse(page)
    assert kernels == [
        {"kernel": "persistent_sweep_kernel", "time": "512.5 us", "multiprocessors, % of peak": "81.2 %"}
    ]
    assert counters.parse("==ERROR== no permission\n") == []


@pytest.mark.whole
def test_the_whole_lane_runs_dry(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--minutes", "20", "--output", str(tmp_path), "--stage"]
    done = subprocess.run([*command, *STAGES[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {path.stem for path in tmp_path.glob("*.json")} >= {"loss", "topk", "rows", "kmeans", "train", "tuned"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_lane_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path)])
    assert lane.main() == 2
    said = capsys.readouterr().err
    assert "DRY=1" in said
    assert said.count("\n") == 1
