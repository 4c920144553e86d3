"""The GPU lane without a GPU: its bookkeeping, and its scripts in the interpreter."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import counters, gather, search
from benchmarks.gpu.lane import Lane, Step, digest
from benchmarks.gpu.stages import STAGES, steps
from benchmarks.report.loss import full_table
from fastcse.kernels import configs

ROOT = Path(__file__).resolve().parents[2]


def python(code, name="one", limit_s=60.0, makes=".", **options):
    return Step("stage", name, ("python", "-c", code), limit_s, makes, **options)


def test_a_step_that_passed_is_not_run_again_for_the_same_sources(tmp_path):
    step = python(f"open({str(tmp_path / 'made')!r}, 'w')", makes="made")
    assert Lane(tmp_path, "a", 60).run(step)["status"] == "passed"
    assert Lane(tmp_path, "a", 60).is_done(step)
    assert not Lane(tmp_path, "b", 60).is_done(step)
    (tmp_path / "made").unlink()
    assert not Lane(tmp_path, "a", 60).is_done(step)


def test_a_failure_says_its_last_line_and_keeps_its_log(tmp_path):
    outcome = Lane(tmp_path, "a", 60).run(python("print('before'); raise SystemExit('no such thing')"))
    assert outcome["status"] == "failed"
    assert "exit code 1: no such thing" in outcome["why"]
    assert "before" in (tmp_path / "stage-one.log").read_text()


def test_a_step_without_its_file_has_failed(tmp_path):
    assert Lane(tmp_path, "a", 60).run(python("0", makes="never"))["why"].startswith("made no never")


def test_a_step_is_cut_off_with_everything_that_it_started(tmp_path):
    mark = tmp_path / "outlived"
    child = f"import time; time.sleep(8); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    start = time.monotonic()
    outcome = Lane(tmp_path, "a", 60).run(python(code, limit_s=5.5))
    assert outcome["status"] == "cut off"
    assert time.monotonic() - start < 8
    time.sleep(4)
    assert not mark.exists()


def test_what_the_budget_or_the_machine_does_not_allow_is_skipped_aloud(tmp_path):
    assert Lane(tmp_path, "a", 1).run(python("0"))["why"] == "the lane's time is over"
    outcome = Lane(tmp_path, "a", 60).run(python("0", tools=("no-such-profiler",)))
    assert outcome["status"] == "skipped"
    assert outcome["why"] == "no-such-profiler is not on the path"


def test_every_stage_has_steps_and_the_whole_lane_fits_its_time(tmp_path):
    for dry in (False, True):
        found = steps(tmp_path, "cpu" if dry else "cuda", dry)
        assert {step.stage for step in found} == set(STAGES)
        assert len({(step.stage, step.name) for step in found}) == len(found)
        makes = [step.makes for step in found if step.makes != "."]
        assert len(set(makes)) == len(makes)


@pytest.mark.parametrize("script", ["million", "search", "counters"])
def test_scripts_run_in_the_interpreter(tmp_path, script):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", f"benchmarks.gpu.{script}", "--dry", "--output", str(out)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(out.read_text())
    if script == "million":
        (result,) = made["results"]
        assert result["backend"] == "triton"
        assert 0 < result["rows"][0]["gradient_error"] < 1e-2
        assert "| fastcse | 96 | 96 | 48 |" in full_table(made)  # as the results page will show it
    if script == "search":
        entry = made["winners"]["dry"]["bfloat16"]["768"]["gradients"]
        assert configs.TileConfig(**entry) in search.candidates("bfloat16", True)


def test_winners_join_the_launchers_table_and_leave_others_alone(tmp_path, monkeypatch):
    table = tmp_path / "tuned.json"
    old, new = configs.HALF._replace(group=4)._asdict(), configs.HALF._replace(group=16)._asdict()
    table.write_text(json.dumps({"sm_90": {"bfloat16": {"384": {"sums": old}, "768": {"sums": old, "busy": old}}}}))
    monkeypatch.setattr(gather, "TUNED", table)
    output = tmp_path / "sm_90"
    output.mkdir()
    (output / "tuned.json").write_text(json.dumps({"winners": {"sm_90": {"bfloat16": {"768": {"sums": new}}}}}))
    made = [output / "tuned.json"]
    gather.gather(output, made, {"gpu": "planted"}, dry=True)
    assert json.loads(table.read_text())["sm_90"]["bfloat16"]["768"]["sums"] == old
    gather.gather(output, made, {"gpu": "planted"}, dry=False)
    merged = json.loads(table.read_text())["sm_90"]["bfloat16"]
    assert merged["768"] == {"sums": new, "busy": old}
    assert merged["384"] == {"sums": old}
    assert not table.with_suffix(".part").exists()


def test_only_what_these_sources_made_is_gathered(tmp_path):
    document = {"command": "c", "machine": {"gpu": "other"}, "results": [1]}
    (tmp_path / "loss-old.json").write_text(json.dumps(document))
    code = f"import json; json.dump({document | {'results': [2]}!r}, open({str(tmp_path / 'loss-new.json')!r}, 'w'))"
    lane = Lane(tmp_path, "a", 60)
    lane.run(python(code, makes="loss-new.json"))
    assert lane.files() == [tmp_path / "loss-new.json"]
    assert Lane(tmp_path, "b", 60).files() == []
    gather.gather(tmp_path, lane.files(), {"gpu": "here"}, dry=True)
    whole = json.loads((tmp_path / "loss.json").read_text())
    assert (whole["results"], whole["machine"]) == ([2], {"gpu": "here"})


def test_a_table_that_was_cut_off_gives_what_it_had(tmp_path):
    document = {"command": "c", "machine": {}, "results": [1]}
    out = str(tmp_path / "loss-slow.json")
    code = f"import json, time; json.dump({document!r}, open({out!r}, 'w')); time.sleep(60)"
    lane = Lane(tmp_path, "a", 60)
    assert lane.run(python(code, limit_s=5.5, makes="loss-slow.json"))["status"] == "cut off"
    assert lane.files() == [tmp_path / "loss-slow.json"]
    assert not lane.is_done(python(code, makes="loss-slow.json"))


def test_sources_are_told_apart_by_what_they_hold(tmp_path):
    (tmp_path / "fastcse").mkdir()
    (tmp_path / "fastcse" / "a.py").write_text("1")
    one = digest(tmp_path)
    (tmp_path / "fastcse" / "tuned.json").write_text("{}")  # what the lane itself writes
    assert digest(tmp_path) == one
    (tmp_path / "fastcse" / "a.py").write_text("2")
    assert digest(tmp_path) != one


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


def test_without_a_gpu_the_lane_says_so(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--output", str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 2
    assert "DRY=1" in done.stderr
    assert done.stderr.count("\n") == 1
