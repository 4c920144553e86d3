"""`make report`: every number comes from a file, and what no file holds is called not measured."""

import json
import math
import sys

import pytest

from benchmarks.report import __main__ as report
from benchmarks.report.files import Unreadable
from benchmarks.report.gpu import TARGETS, reached
from fastcse.bench.environment import environment
from fastcse.bench.loss import LossCase, LossMeasurement
from fastcse.bench.rowwise import RowwiseCase, RowwiseMeasurement

README = "# before\n\n<!-- results -->\nold text\n<!-- end of results -->\n\nafter\n"
ROOFLINE = (
    "form,arch,tile,programs_per_sm,n,d,sweep_ms,total_ms,ratio,tflops,wanted,reachable,triton\n"
    "sweep: gradients,90,128x128x64,1,16384,768,0.7,2.0,1.17,654.3,1.2,True,3.9.0\n"
    "sweep: gradients,80,128x128x64,1,16384,768,0.7,2.0,7.77,77.7,1.2,False,3.9.0\n"
    "sweep: gradients,90,128x128x64,1,1048576,768,3000,7123,1.19,644.0,1.2,True,3.9.0\n"
)


def finite(value):
    """NaN and infinity as text, as older files have them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def row(provider, ms, **more):
    numbers = dict(ms=ms, ms_20=0.9 * ms, ms_80=1.1 * ms, tflops=0.25, to_products=ms / 100, loss_error=1e-7,
                   gradient_error=2.5e-6, extra_mib=ms / 10)  # fmt: skip
    return LossMeasurement(provider, **{**numbers, **more}).__dict__


def document(problem, *rows, **facts):
    result = {**problem.labels(), "repeat": 3, "backend": "cpp", "rows": [row("bare products", 100.0), *rows]}
    return {"command": "fastcse bench loss --planted", "machine": {**environment("cpu"), **facts}, "results": [result]}


def cpu(loss="infonce", **more):
    absent = LossMeasurement(
        "Planted absent", status="absent", reason="planted is not installed: pip install planted"
    ).__dict__
    return document(LossCase(4096, 4096, 768, loss, **more), row("fastcse", 123.4), row("eager", 246.8),
                    row("torch.compile", 185.1), row("Planted peer", 148.08, choice=512), absent)  # fmt: skip


@pytest.fixture
def root(tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def write(root, name, content):
    path = root / "benchmarks" / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(finite(content)))


def texts(root):
    report.make_report(root)
    return (root / "README.md").read_text(), (root / "benchmarks" / "RESULTS.md").read_text()


def line_with(text, *words):
    (found,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return found


def test_without_files_everything_is_called_not_measured(root):
    readme, page = texts(root)
    for text in (readme, page):
        assert "Losses on the CPU: not measured (`make loss`)" in text
        assert text.count("| not measured | ") == len(TARGETS)
    assert "Accuracy on other kinds of rows: not measured" in page
    assert "STS after training: not measured" in page
    assert "Rows on the CPU: not measured (`make rows`)" in page
    assert "Rows on a GPU: not measured (`make gpu`)" in page
    assert "Not computed (`make compiled`)" in page
    assert not list((root / "benchmarks" / "results").iterdir())


def test_tables_and_figures_are_made_from_the_files(root):
    for loss in ("infonce", "focal"):
        write(root, f"loss_{loss}_cpu.json", cpu(loss))
    readme, page = texts(root)
    short = line_with(readme, "| infonce | 4096 |")
    assert short == "| infonce | 4096 | 768 | 123.4 | 1.23 | 2.00 x | 1.50 x | 1.20 x (Planted peer) | 12 | 25 |"
    assert "`fastcse bench loss --planted`" in page
    assert page.count("| Planted peer (512) | 4096 | 4096 | 768 | 148.1 | 133.3 - 162.9 | 1.48 |") == 2
    assert page.count("Planted absent absent (planted is not installed: pip install planted)") == 2
    assert environment("cpu")["cpu"] in readme
    picture = (root / "benchmarks" / "results" / "loss_cpu.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_the_text_around_the_markers_stays_and_a_second_run_changes_nothing(root):
    write(root, "loss_focal_cpu.json", cpu("focal"))
    write(root, "accuracy_cpu.json", cpu())
    first = texts(root)
    assert first[0].startswith("# before\n\n<!-- results -->\n")
    assert first[0].endswith("\n<!-- end of results -->\n\nafter\n")
    assert "old text" not in first[0]
    files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert texts(root) == first
    assert files == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_accuracy_is_by_rows_and_stage_and_keeps_what_is_no_number(root):
    both = cpu()
    both["results"] += document(LossCase(4096, 4096, 768, data="random", stage="late"), row("fastcse", 1.0),
                                row("eager", 1.0, gradient_error=math.nan))["results"]  # fmt: skip
    write(root, "accuracy_cpu.json", both)
    _, page = texts(root)
    assert line_with(page, "| provider | clustered, early | random, late |")
    assert line_with(page, "| eager | 2.5e-06 | nan |")
    assert line_with(page, "| Planted peer | 2.5e-06 |  |")
    assert (root / "benchmarks" / "results" / "accuracy_cpu.png").stat().st_size > 10_000


def test_the_model_is_no_measurement(root):
    write(root, "compiled_roofline.csv", ROOFLINE)
    readme, page = texts(root)
    assert "| <= 1.2 x | not measured | 1.17 x to 1.19 x |" in line_with(readme, "D = 768: time / three bare products")
    assert line_with(readme, "D = 1024: time / three").endswith("| not measured | not computed |")
    assert line_with(readme, "one step at 1,048,576").endswith("| not measured | 7.12 s |")
    assert "a model and no measurement" in readme
    assert "7.77" not in page


def gpu_document(gpu="NVIDIA H100 80GB HBM3", **ours):
    problem = LossCase(65536, 65536, 768, dtype="bfloat16", device="cuda")
    failed = LossMeasurement("eager", status="failed", reason="OutOfMemoryError: planted").__dict__
    return document(problem, row("fastcse", 118.0, **{"tflops": 650.0, **ours}), failed, row("Inf-CL", 1180.0), gpu=gpu)


def test_gpu_targets_are_filled_from_the_files(root):
    write(root, "gpu/sm_90/loss.json", gpu_document())
    readme, page = texts(root)
    assert "measured, NVIDIA H100 80GB HBM3" in readme
    for words, cell in (
        (("D = 768: time / three",), "| 1.18 x (met) |"),
        (("D = 768: TFLOP/s",), "| 650 (met) |"),
        (("time of eager",), "| failed |"),
        (("time of Inf-CL",), "| 10.0 x (missed) |"),
        (("time of QuACK",), "| not measured |"),
        (("D = 384",), "| not measured |"),
        (("one step",), "| not measured |"),
        (("gradient error",), "| 2.5e-06 (met) |"),
    ):
        assert cell in line_with(readme, *words)
    assert "### NVIDIA H100 80GB HBM3 (gpu/sm_90/loss.json)" in page
    assert "eager failed (OutOfMemoryError: planted)" in page


def test_a_gpu_file_of_several_settings_has_a_table_for_each(root):
    whole = gpu_document()
    for changed in (dict(loss="focal"), dict(mode="no-grad-forward")):
        whole["results"].append({**whole["results"][0], **changed})
    whole["results"].append({**whole["results"][0], "n": 131072})
    write(root, "gpu/sm_90/loss.json", whole)
    write(root, "gpu/sm_90/loss-part.json", whole)
    _, page = texts(root)
    for setting in ("infonce, forward + backward", "focal, forward + backward", "infonce, forward alone"):
        assert page.count(f"\n{setting}, bfloat16, clustered rows, early, temperature 0.05:") == 1
    assert page.count("| fastcse | 131072 |") == 1


def rows_document(device, **facts):
    problem = RowwiseCase(65536, 768, device=device, dtype="float32" if device == "cpu" else "bfloat16")
    rows = [RowwiseMeasurement(name, ms=ms, ms_20=ms, ms_80=ms, to_products=ms / 2, gb_s=9.87, of_copy=2 / ms).__dict__
            for name, ms in (("copy", 2.0), ("fastcse", 2.2), ("eager", 11.0))]  # fmt: skip
    result = {**problem.labels(), "repeat": 3, "backend": "cpp", "rows": rows}
    return {"command": "fastcse bench rows --planted", "machine": {**environment("cpu"), **facts}, "results": [result]}


def test_row_wise_operations_have_their_section(root):
    write(root, "rows_cpu.json", rows_document("cpu"))
    _, page = texts(root)
    assert line_with(page, "CPU, float32, quadruplet: time of eager").endswith("| >= 4 x | 5.00 x (met) |")
    assert "| fastcse | 65536 | 768 | 2.2 | 2.2 - 2.2 | 1.10 | 9.9 | 91% |" in page
    assert "Rows on a GPU: not measured" in page
    write(root, "gpu/sm_90/rows.json", rows_document("cuda", gpu="NVIDIA H100"))
    _, page = texts(root)
    assert line_with(page, "GPU, bfloat16, quadruplet").endswith("| >= 80 % | 90.9 % (met), NVIDIA H100 |")
    assert "### Rows on NVIDIA H100 (gpu/sm_90/rows.json)" in page
    assert "Rows on a GPU: not measured" not in page


def test_a_dry_run_on_the_cpu_meets_no_target(root):
    dry = gpu_document()
    dry["results"][0]["device"] = "cpu"
    assert {reached(target, dry) for target in TARGETS} == {"not measured"}


@pytest.mark.parametrize(
    ("what", "ours", "shown"),
    [
        ("D = 768: time / three", dict(to_products=1.21), "1.21 x (missed)"),
        ("D = 768: TFLOP/s", dict(tflops=639.0), "639 (missed)"),
        ("gradient error", dict(gradient_error=math.nan), "nan (missed)"),
        ("gradient error", dict(gradient_error=2.1e-3), "2.1e-03 (missed)"),
    ],
)
def test_a_missed_target_says_so(what, ours, shown):
    (target,) = [target for target in TARGETS if what in target.what]
    assert reached(target, finite(gpu_document(**ours))) == shown


def test_the_worst_result_counts_and_other_gpus_are_not_judged_by_an_h100():
    both = gpu_document()
    both["results"] += gpu_document(to_products=1.3, tflops=500.0)["results"]
    wanted = ("D = 768: time / three", "D = 768: TFLOP")
    ratio, rate = (next(t for t in TARGETS if what in t.what) for what in wanted)
    assert reached(ratio, both) == "1.30 x (missed)"
    assert reached(rate, both) == "500 (missed)"
    # A number that is none is the worst, wherever it stands.
    for unknown in (0, 1):
        results = [gpu_document(to_products=math.nan if i == unknown else 1.1)["results"][0] for i in (0, 1)]
        assert reached(ratio, finite({**both, "results": results})) == "nan x (missed)"
    both["machine"]["gpu"] = "NVIDIA A100"
    assert reached(rate, both) == "500 (set for H100)"


@pytest.mark.parametrize(
    ("name", "text"), [("sts.json", "{"), ("loss_focal_cpu.json", "[]"), ("accuracy_cpu.json", "{}")]
)
def test_a_damaged_file_is_one_sentence(root, monkeypatch, capsys, name, text):
    write(root, name, text)
    monkeypatch.setattr(report, "ROOT", root)
    monkeypatch.setattr(sys, "argv", ["report"])
    assert report.main() == 2
    told = capsys.readouterr().err
    assert told.startswith("Error: ")
    assert told.count("\n") == 1
    assert name in told
    assert (root / "README.md").read_text() == README


def test_a_readme_without_markers_is_left_alone(root):
    (root / "README.md").write_text("# no markers\n")
    with pytest.raises(Unreadable, match="has no <!-- results -->"):
        report.make_report(root)
    assert (root / "README.md").read_text() == "# no markers\n"


def test_runs_of_other_sizes_are_named_by_their_steps_in_the_order_of_their_size():
    from benchmarks.report.sts import in_order, shown

    runs = [f"focal --batch-size {size} --max-steps {steps} --eval-steps 1" for size, steps in ((8192, 1), (64, 128))]
    assert [shown(run) for run in runs] == ["focal, 1 step of 8,192", "focal, 128 steps of 64"]
    assert sorted([*runs, "infonce", "focal"], key=in_order) == ["focal", runs[1], runs[0], "infonce"]
    assert shown("hsimcse --margin 0.2") == "hsimcse --margin 0.2"
