"""`make report`: every number comes from a file, and what no file holds is called not measured."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.report import __main__ as report
from benchmarks.report.studies import by_objective, shown
from benchmarks.report.targets import TARGETS, reached
from fastcse.bench.cached_stage import CachedCase
from fastcse.bench.case import Result
from fastcse.bench.environment import environment
from fastcse.bench.kmeans import KMeansCase
from fastcse.bench.loss import LossCase
from fastcse.bench.output import Document
from fastcse.bench.rowwise import RowwiseCase
from fastcse.errors import InputError

README = "# before\n\n<!-- results -->\nold text\n<!-- end of results -->\n\nafter\n"
ROOFLINE = (
    "form,arch,tile,programs_per_sm,n,d,sweep_ms,total_ms,ratio,tflops,wanted,reachable,triton\n"
    "sweep: gradients,90,128x128x64,1,16384,768,0.7,2.0,1.17,654.3,1.2,True,3.9.0\n"
    "sweep: gradients,80,128x128x64,1,16384,768,0.7,2.0,7.77,77.7,1.2,False,3.9.0\n"
    "sweep: gradients,90,128x128x64,1,1048576,768,3000,7123,1.19,644.0,1.2,True,3.9.0\n"
)
COMMITTED = Path(report.__file__).parents[1] / "results"
GPU = {"dtype": "bfloat16", "device": "cuda"}


def result(case, times, **more):
    """A result of providers with these times in ms and these other numbers; a reason instead of a time is no result."""
    rows = []
    for name, ms in times.items():
        if isinstance(ms, str):
            rows.append(case.row(name, status="absent", reason=ms))
            continue
        row = case.row(name, ms=ms, ms_20=0.9 * ms, ms_80=1.1 * ms, to_products=ms / 100, extra_mib=ms / 10)
        row.rate(case)
        for key, value in more.items():
            setattr(row, key, value)
        rows.append(row)
    return Result(case, 3, "cpp", rows)


def document(*results, **facts):
    return Document("fastcse bench --planted", {**environment("cpu"), **facts}, list(results)).labels()


def cpu(loss="infonce", **more):
    times = {"bare products": 100.0, "fastcse": 123.4, "eager": 246.8, "torch.compile": 185.1, "Planted peer": 148.08,
             "Planted absent": "planted is not installed"}  # fmt: skip
    return document(result(LossCase(n=4096, d=768, loss=loss, **more), times, gradient_error=2.5e-6, loss_error=1e-7))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def write(root, name, content):
    path = root / "benchmarks" / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def texts(root):
    report.make_report(root)
    return (root / "README.md").read_text(), (root / "benchmarks" / "RESULTS.md").read_text()


def line_with(text, *words):
    (found,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return found


def test_without_files_everything_is_called_not_measured(root):
    readme, page = texts(root)
    assert "Losses on the CPU: not measured (`make loss`)" in readme
    assert page.count("| not measured |") == len(TARGETS)
    for what in (
        "Losses on the CPU: not measured (`make loss`)", "Losses on a GPU: not measured (`make gpu`)",
        "Accuracy on other kinds of rows: not measured (`make loss`)", "SciFact: not measured", "Vaswani: not measured",
        "Mining hard negatives on the CPU: not measured (`make topk`)", "hsimcse: not measured (`make objectives`)",
        "STS after training: not measured", "Not computed (`make compiled`)",
    ):  # fmt: skip
        assert what in page
    assert not list((root / "benchmarks" / "results").iterdir())


def test_the_committed_files_make_the_committed_pages_and_a_second_run_changes_nothing(root):
    shutil.copytree(COMMITTED, root / "benchmarks" / "results", dirs_exist_ok=True)
    shutil.copy(COMMITTED.parents[1] / "README.md", root)
    first = texts(root)
    assert first[0] == (COMMITTED.parents[1] / "README.md").read_text()
    assert first[1] == (COMMITTED.parent / "RESULTS.md").read_text()
    for name in ("loss_cpu", "accuracy_cpu", "retrieval", "sts"):
        assert (root / "benchmarks" / "results" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert texts(root) == first
    assert files == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_text_around_the_markers_stays(root):
    write(root, "loss_focal_cpu.json", cpu("focal"))
    readme, page = texts(root)
    assert readme.startswith("# before\n\n<!-- results -->\n")
    assert readme.endswith("\n<!-- end of results -->\n\nafter\n")
    assert "old text" not in readme
    short = line_with(readme, "| focal | 4096 |")
    assert short == "| focal | 4096 | 768 | 123.4 | 1.23 | 2.00 x | 1.50 x | 1.20 x (Planted peer) | 12 | 25 |"
    peer = "| Planted peer | 4096 | 768 | 148.1 | 133.3 - 162.9 | 1.48 | 0.522 | 15 | 1.0e-07 | 2.5e-06 |"
    assert (page.count(peer), page.count("Not measured: Planted absent absent (planted is not installed).")) == (1, 1)


def test_the_model_is_no_measurement_and_gpus_have_tables_of_their_own(root):
    write(root, "compiled_roofline.csv", ROOFLINE)
    times = {"fastcse": 118.0, "eager": "out of memory"}
    cases = [LossCase(n=65536, d=768, loss=loss, **GPU) for loss in ("infonce", "focal")]
    write(root, "gpu/sm_90/loss.json", document(*(result(case, times) for case in cases), gpu="NVIDIA H100"))
    _, page = texts(root)
    assert "### Losses on NVIDIA H100 (gpu/sm_90/loss.json)" in page
    for loss in ("infonce", "focal"):
        assert page.count(f"\n{loss}, forward + backward, bfloat16 on cuda, clustered rows, early, temp") == 1
    wanted = "| <= 1.2 x | 1.18 x (met), NVIDIA H100 | 1.17 x to 1.19 x |"
    assert wanted in line_with(page, "D = 768: time / three bare products")
    assert line_with(page, "one step at 1,048,576").endswith("| 7.12 s |")
    assert "a model and no measurement" in page
    assert "7.77" not in page


def test_accuracy_is_by_rows_and_stage_and_keeps_what_is_no_number(root):
    more = {"gradient_error": math.nan}
    both = cpu()
    late = LossCase(n=4096, d=768, data="random", stage="late")
    both["results"] += document(result(late, {"fastcse": 1.0, "eager": 1.0}, **more))["results"]
    write(root, "accuracy_cpu.json", both)
    _, page = texts(root)
    assert line_with(page, "| provider | clustered, early | random, late |")
    assert line_with(page, "| eager | 2.5e-06 | nan |")
    assert line_with(page, "| Planted peer | 2.5e-06 |  |")
    assert (root / "benchmarks" / "results" / "accuracy_cpu.png").stat().st_size > 10_000


def target(what, device="cuda"):
    (found,) = [one for one in TARGETS if what in f"{one.section} {one.name}" and one.device == device]
    return found


def on_gpu(case, times, gpu="NVIDIA H100 80GB", **more):
    return document(result(case, times, **more), gpu=gpu)


LOSS = LossCase(n=65536, d=768, **GPU)
PARTS = {"n": 4096, "rows": [{"part": "whole", "to_infonce": 1.3}]}


@pytest.mark.parametrize(
    ("what", "found", "says"),
    [
        ("D = 768: time / three", on_gpu(LOSS, {"fastcse": 118.0}), "1.18 x (met), NVIDIA H100 80GB"),
        ("D = 768: time / three", on_gpu(LOSS, {"fastcse": 121.0}), "1.21 x (missed), NVIDIA H100 80GB"),
        ("D = 384: time / three", on_gpu(LOSS, {"fastcse": 118.0}), "not measured, NVIDIA H100 80GB"),
        ("D = 768: TFLOP/s at", on_gpu(LOSS, {"fastcse": 1.0}, tflops=639.0), "639 (missed), NVIDIA H100 80GB"),
        ("D = 768: TFLOP/s at", on_gpu(LOSS, {"fastcse": 1.0}, gpu="A100", tflops=500.0), "500 (set for H100), A100"),
        ("time of eager", on_gpu(LOSS, {"fastcse": 1.0, "eager": "no memory"}), "absent, NVIDIA H100 80GB"),
        ("time of Inf-CL", on_gpu(LOSS, {"fastcse": 1.0, "Inf-CL": 10.0}), "10.0 x (missed), NVIDIA H100 80GB"),
        ("loss relative gradient", on_gpu(LOSS, {"fastcse": 1.0}, gradient_error=2.1e-3),
         "2.1e-03 (missed), NVIDIA H100 80GB"),
        # of another device, another type, or with the machine's name alone
        ("D = 768: time / three", document(result(LOSS, {"fastcse": 118.0})), None),
        ("loss relative", on_gpu(LossCase(n=64, d=8), {"fastcse": 1.0}, gpu="A100", gradient_error=1.0),
         "not measured, A100"),
        # other operations
        ("rows quadruplet: of the", on_gpu(RowwiseCase(n=65536, d=8, **GPU), {"fastcse": 1.0}, of_copy=0.75),
         "75.0 % (missed), NVIDIA H100 80GB"),
        ("kmeans assignment: time of FlashLib", on_gpu(KMeansCase(n=100_000, m=1024, d=8, what="assignment", **GPU),
                                                       {"fastcse": 10.0, "FlashLib": 9.0}),
         "0.900 x (missed), NVIDIA H100 80GB"),
    ],
)  # fmt: skip
def test_what_a_gpu_reached(what, found, says):
    assert reached(target(what), found) == says


@pytest.mark.parametrize(
    ("what", "case", "times", "says"),
    [
        ("rows quadruplet: time of eager", RowwiseCase(n=65536, d=8), {"fastcse": 2.2, "eager": 11.0}, "5.00 x (met)"),
        ("rows quadruplet: time of eager", RowwiseCase(n=2048, d=8), {"fastcse": 2.2, "eager": 11.0}, "not measured"),
        ("kmeans iteration: time of FAISS", KMeansCase(n=100_000, m=1024, d=8), {"fastcse": 10.0, "FAISS": 8.0},
         "0.800 x (missed)"),
        ("kmeans iteration: MiB", KMeansCase(n=100_000, m=1024, d=8), {"fastcse": 700.0}, "70.0 MiB (missed)"),
        ("kmeans iteration: MiB", KMeansCase(n=100_000, m=1023, d=8), {"fastcse": 700.0}, "not measured"),
        ("mini-batch 64", CachedCase(n=4096), {"fastcse": 10.0, "sentence-transformers cached": 31.0}, "3.10 x (met)"),
        ("mini-batch 32", CachedCase(n=4096), {"fastcse": 10.0, "sentence-transformers cached": 31.0}, "not measured"),
    ],
)  # fmt: skip
def test_what_the_cpu_reached(what, case, times, says):
    assert reached(target(what, "cpu"), document(result(case, times))) == says


def test_the_worst_result_counts():
    for times, says in (
        ((1.1, 1.3), "1.30 x (missed)"),
        ((math.nan, 1.1), "nan x (missed)"),
        ((1.1, math.nan), "nan x (missed)"),
    ):
        found = on_gpu(LOSS, {"fastcse": 1.0})
        (one,) = found["results"]
        rows = [
            [{**one["rows"][0], "to_products": str(x) if math.isnan(x) else x}] for x in times
        ]  # as older files have NaN
        found["results"] = [{**one, "rows": row} for row in rows]
        assert reached(target("D = 768: time / three"), found) == f"{says}, NVIDIA H100 80GB"


def test_an_objective_has_its_target():
    found = {"machine": {}, "results": [PARTS, {**PARTS, "n": 64}]}
    assert reached(target("clusterns, whole", "cpu"), found) == "1.30 x (missed)"
    assert reached(target("hsimcse, its positive", "cpu"), found) == "not measured"


@pytest.mark.parametrize(
    ("name", "text"), [("sts.json", "{"), ("loss_focal_cpu.json", "[]"), ("accuracy_cpu.json", "{}")]
)
def test_a_damaged_file_is_one_sentence(root, monkeypatch, capsys, name, text):
    write(root, name, text)
    monkeypatch.setattr(report, "ROOT", root)
    monkeypatch.setattr(sys, "argv", ["report"])
    assert report.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert name in said
    assert (root / "README.md").read_text() == README


def test_a_readme_without_markers_is_left_alone(root):
    (root / "README.md").write_text("# no markers\n")
    with pytest.raises(InputError, match="has no <!-- results -->"):
        report.make_report(root)
    assert (root / "README.md").read_text() == "# no markers\n"


def test_runs_of_other_sizes_are_named_by_their_steps_in_the_order_of_their_size():
    runs = [f"focal --batch-size {size} --max-steps {steps} --eval-steps 1" for size, steps in ((8192, 1), (64, 128))]
    assert [shown(run) for run in runs] == ["focal, 1 step of 8,192", "focal, 128 steps of 64"]
    found = by_objective({"runs": [{"objective": name} for name in (*runs, "infonce", "focal")]})
    assert list(found) == ["focal", runs[1], runs[0], "infonce"]
    assert shown("hsimcse --margin 0.2") == "hsimcse --margin 0.2"
