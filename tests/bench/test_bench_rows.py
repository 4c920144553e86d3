"""`fastcse bench rows`: what is computed and by whom, what it is compared with, and what is not reported."""

import csv
import json
import math
import shutil

import pytest
import torch
from conftest import DEVICE
from typer.testing import CliRunner

import fastcse
from fastcse.bench import measure as frame
from fastcse.bench.measure import measure
from fastcse.bench.output import LIGER_COLUMNS
from fastcse.bench.rows import truth
from fastcse.bench.rows.limit import one_copy
from fastcse.bench.rows.plain import MARGIN, SPELLINGS, STEP, Outcome, make_inputs, outcome_of, plain
from fastcse.bench.rows.problem import MODES, OPS, PASSES, RowsProblem
from fastcse.bench.rows.subject import ROWS, WrongRows
from fastcse.bench.rows.ways import WAYS, Way
from fastcse.cli import app
from fastcse.losses.quadruplet import WEIGHTS

every_problem = pytest.mark.parametrize(("op", "mode"), list(PASSES))


def small(op="quadruplet", mode=None, **more):
    mode = mode or ("forward" if op == "adversarial" else "full")
    return RowsProblem(**{**dict(n=40, d=24, op=op, mode=mode, device=DEVICE), **more})


def by_formula(problem, inputs):
    """Value in float64 from the definitions, and gradients by autograd."""
    x = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    if problem.op == "adversarial":
        return Outcome(x[0] + x[2][:, None] * x[1] / x[1].square().sum(1, keepdim=True).sqrt())
    unit = [t / t.square().sum(1, keepdim=True).sqrt() for t in x]
    if problem.op == "normalize":
        value, upstream, leaves = unit[0], x[1], x[:1]
    else:
        p, b, c = ((unit[0] * t).sum(1) for t in unit[1:])
        value, upstream, leaves = (WEIGHTS[0] * b + WEIGHTS[1] * c - p + MARGIN).clamp(min=0).mean(), None, x
    if problem.mode != "full":
        return Outcome(value)
    return Outcome(value.detach(), torch.autograd.grad(value, leaves, upstream))


def plant(monkeypatch, change, name="fastcse", **more):
    """A way whose outcome is the right one, changed."""

    def build(problem, inputs):
        value, gradients = by_formula(problem, inputs)
        return lambda: change(Outcome(value.float(), tuple(g.float() for g in gradients)))

    monkeypatch.setitem(WAYS, name, Way(name, build, **more))


def changed_gradient(factor, which=-1):
    def change(outcome):
        gradients = list(outcome.gradients)
        gradients[which] = gradients[which] * factor
        return outcome._replace(gradients=tuple(gradients))

    return change


# What is computed


def test_a_step_has_no_backward():
    with pytest.raises(ValueError, match="got adversarial full"):
        RowsProblem(4, 8, "adversarial")


def test_bytes_are_those_of_what_must_be_moved():
    for (op, mode), passes in PASSES.items():
        assert small(op, mode).bytes == passes * 40 * 24 * 4
        assert small(op, mode, dtype="bfloat16").bytes == passes * 40 * 24 * 2
    assert small().labels()["m"] == small().m == 40


@every_problem
def test_inputs_are_the_same_for_the_same_seed_and_want_gradients_only_where_there_are_any(op, mode):
    one, same, other = (make_inputs(small(op, mode, seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other))
    wanted = {"quadruplet": [True] * 4, "normalize": [True, False], "adversarial": [False] * 3}[op]
    assert [x.requires_grad for x in one] == [w and mode == "full" for w in wanted]
    if op == "quadruplet":
        assert len({x.data_ptr() for x in one}) == 4
        p, b, c = (torch.cosine_similarity(one[0], x, dim=1) for x in one[1:])
        assert (WEIGHTS[0] * b + WEIGHTS[1] * c - p + MARGIN > 0).all()  # a row at rest would cost less
    if op == "adversarial":
        torch.testing.assert_close(one[2], STEP * one[0].norm(dim=1))


@every_problem
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_both_spellings_are_the_operation(op, mode, spelling):
    problem = small(op, mode)
    inputs = make_inputs(problem)
    got, want = outcome_of(problem, plain(problem, spelling), inputs), by_formula(problem, inputs)
    torch.testing.assert_close(got.value.double(), want.value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close([g.double() for g in got.gradients], list(want.gradients), rtol=1e-4, atol=1e-6)


# The truth


@every_problem
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_errors_are_those_of_all_rows_in_pieces(monkeypatch, op, mode, rows_at_once):
    monkeypatch.setattr(truth, "PIECE_BYTES", 8 * 24 * rows_at_once)
    problem = small(op, mode)
    inputs = make_inputs(problem)
    exact, right = truth.exact(problem, *inputs), by_formula(problem, inputs)
    value, gradient = truth.errors(right, exact)
    assert value < 1e-12
    assert gradient is None if mode == "forward" else gradient < 1e-12
    assert truth.errors(right._replace(value=right.value * 1.01), exact).value == pytest.approx(0.01)
    if right.value.dim():  # the last row, and nothing else
        moved = right.value.clone()
        moved[-1] = math.nan
        assert math.isnan(truth.errors(right._replace(value=moved), exact).value)
    for which in range(len(right.gradients)):
        for factor, error in ((1.01, pytest.approx(0.01)), (math.nan, pytest.approx(math.nan, nan_ok=True))):
            assert truth.errors(changed_gradient(factor, which)(right), exact).gradient == error


def test_factors_are_compared_with_factors():
    problem = small("normalize", "forward")
    x, above = make_inputs(problem)
    exact = truth.exact(problem, x, above)
    assert truth.errors(Outcome(1 / x.double().norm(dim=1)), exact).value < 1e-12
    assert truth.errors(Outcome(1.01 / x.double().norm(dim=1)), exact).value == pytest.approx(0.01)


def test_a_missing_gradient_is_no_outcome():
    problem = small()
    inputs = make_inputs(problem)
    right = by_formula(problem, inputs)
    with pytest.raises(ValueError, match="zip"):
        truth.errors(right._replace(gradients=right.gradients[:3]), truth.exact(problem, *inputs))


# Whom it measures


@every_problem
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("way", WAYS.values(), ids=lambda way: way.name)
def test_a_way_computes_the_operation_each_time_anew(monkeypatch, way, dtype, op, mode):
    monkeypatch.setattr(torch, "compile", lambda fn, dynamic: fn)  # the compiler takes half a minute
    problem = small(op, mode, dtype=dtype)
    inputs = make_inputs(problem)
    before = [x.detach().clone() for x in inputs]
    for choice in way.choices or (None,):
        run = ROWS.prepare(way, problem, choice, inputs)
        for _ in range(3):
            outcome = run()
            assert len(outcome.gradients) == (0 if mode == "forward" else 4 if op == "quadruplet" else 1)
            value, gradient = truth.errors(outcome, truth.exact(problem, *inputs))
            assert max(value, gradient or 0) < (1e-6 if dtype == "float32" else 2e-2)
    assert all(torch.equal(x, b) for x, b in zip(inputs, before, strict=True))


@every_problem
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fastcse_runs_on_the_gpus_kernels_too(op, mode, dtype):
    problem = small(op, mode, n=8, dtype=dtype, backend="triton")
    inputs = make_inputs(problem)
    outcome = ROWS.prepare(WAYS["fastcse"], problem, None, inputs)()
    assert fastcse.last_backend() == "triton"
    value, gradient = truth.errors(outcome, truth.exact(problem, *inputs))
    assert max(value, gradient or 0) < (1e-6 if dtype == "float32" else 2e-2)


def test_gradients_are_fresh_in_each_call():
    problem = small()
    run = ROWS.prepare(WAYS["fastcse"], problem, None, make_inputs(problem))
    one = run()
    kept = [g.clone() for g in one.gradients]
    two = run()
    assert not {g.data_ptr() for g in one.gradients} & {g.data_ptr() for g in two.gradients}
    torch.testing.assert_close(list(two.gradients), kept, rtol=0, atol=0)  # not added up


def test_what_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    row = measure(small("adversarial"), ["torch.compile"], repeat=1, memory=False).row("torch.compile")
    assert row.status == "absent"
    assert row.reason.startswith("torch.compile needs a C++ compiler, and none of g++, ")
    row = measure(small("normalize", backend="reference"), ["fastcse"], repeat=1, memory=False).row("fastcse")
    assert row.status == "unsuitable"
    assert row.reason == "normalize is a step of cpp and triton; the backend here is reference"


def test_a_compiler_on_the_path_is_enough(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang++" else None)
    assert WAYS["torch.compile"].missing() is None


# The limit


def test_the_copy_of_quadruplets_is_one_of_each_input_in_fresh_memory():
    inputs = make_inputs(small())
    one_copy(small())(*inputs)
    first = [x.grad for x in inputs]
    assert all(torch.equal(x.grad, x.detach()) and x.grad.data_ptr() != x.data_ptr() for x in inputs)
    one_copy(small())(*inputs)
    assert all(x.grad is not g for x, g in zip(inputs, first))


def test_the_copy_of_a_step_reads_both_and_writes_one():
    x, direction, radius = make_inputs(small("adversarial"))
    assert torch.equal(one_copy(small("adversarial"))(x, direction, radius), x + direction)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["normalize", "quadruplet"])
def test_the_copy_leaves_the_inputs_alone(op, mode):
    problem = small(op, mode)
    inputs = make_inputs(problem)
    before = [x.detach().clone() for x in inputs]
    one_copy(problem)(*inputs)
    assert all(torch.equal(x, b) for x, b in zip(inputs, before, strict=True))
    assert all((x.grad is None) == (op == "normalize" or mode == "forward") for x in inputs)


@every_problem
def test_every_limit_is_described(op, mode):
    assert ROWS.limit_note(small(op, mode)).startswith(f"{op}: ")


def test_what_is_handed_back_is_charged_to_nobody():
    one = 40 * 24 * 4
    for (op, mode), arrays in zip(PASSES, (4, 0, 1, 0, 1), strict=True):
        problem = small(op, mode)
        assert ROWS.output_bytes(problem, make_inputs(problem)) == arrays * one


# The verdict


@every_problem
def test_rows_are_whole_and_the_copy_stands_first(op, mode):
    problem = small(op, mode)
    result = measure(problem, ["fastcse", "eager"], repeat=2, memory=False)
    assert [row.provider for row in result.rows] == ["copy", "fastcse", "eager"]
    assert result.backend == fastcse.last_backend()
    limit = result.row("copy")
    assert (limit.to_products, limit.of_copy) == (1, 1)
    for row in result.rows:
        assert row.ms_20 <= row.ms <= row.ms_80
        assert row.tflops is None
        assert row.gb_s == pytest.approx(problem.bytes / (row.ms * 1e-3) / 1e9)
        assert row.of_copy == pytest.approx(limit.ms / row.ms)
    assert result.row("eager").choice in SPELLINGS
    assert result.row("fastcse").value_error < 1e-6


@pytest.mark.parametrize(
    ("op", "change", "says"),
    [
        ("quadruplet", lambda o: o._replace(value=o.value * 1.001), r"value error 1\.00e-03 is above the "),
        ("quadruplet", changed_gradient(1.001, 0), r"gradient error 1\.00e-03 is above the "),
        ("quadruplet", changed_gradient(math.nan), r"gradient error nan is above the "),
        ("normalize", changed_gradient(1.001), r"gradient error 1\.00e-03 is above the "),
        ("normalize", lambda o: o._replace(value=o.value + math.nan), r"value error nan is above the "),
        ("adversarial", lambda o: o._replace(value=o.value.flip(0)), r"value error \d\.\d+e[+-]\d+ is above the "),
        ("adversarial", lambda o: 1 / 0, r"fastcse failed at adversarial, N = 40, .*ZeroDivisionError"),
    ],
)
def test_fastcse_may_not_be_wrong(monkeypatch, op, change, says):
    plant(monkeypatch, change)
    with pytest.raises(WrongRows, match=says):
        measure(small(op), ["fastcse", "eager"], repeat=1, memory=False)


@pytest.mark.parametrize("op", OPS)
def test_what_plain_torch_misses_is_allowed_twice(monkeypatch, op):
    plant(monkeypatch, lambda o: o._replace(value=o.value * 1.001), "eager")
    for factor, fine in ((1.0015, True), (1.0025, False)):
        plant(monkeypatch, lambda o, by=factor: o._replace(value=o.value * by))
        if fine:
            assert measure(small(op), ["fastcse", "eager"], repeat=1, memory=False).row("fastcse").ms > 0
        else:
            with pytest.raises(WrongRows, match="nothing is reported"):
                measure(small(op), ["fastcse", "eager"], repeat=1, memory=False)


# From the command line


QUICK = ["bench", "rows", "--device", "cpu", "--n", "20", "--d", "16", "--repeat", "2", "--no-memory", "--peers",
         "eager"]  # fmt: skip


def invoke(*arguments):
    return CliRunner().invoke(app, [*QUICK, *map(str, arguments)])


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(frame, "rounds", lambda problem, repeat: repeat)


def test_from_the_command_line_to_the_files(tmp_path, few_rounds, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    files = {option: tmp_path / "made" / f"a.{end}" for option, end in
             (("--output", "json"), ("--csv", "csv"), ("--plot", "png"))}  # fmt: skip
    done = invoke("--peers", "all", *(x for pair in files.items() for x in pair), "--json")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made == json.loads(files["--output"].read_text())
    found = [(r["operation"], r["op"], r["mode"]) for r in made["results"]]
    assert found == [(op, op, "forward" if op == "adversarial" else "full") for op in OPS]
    for result in made["results"]:
        rows = {row["provider"]: row for row in result["rows"]}
        assert set(rows) == {"copy", "fastcse", "eager", "torch.compile"}
        assert rows["copy"]["of_copy"] == 1
        assert rows["torch.compile"]["status"] == "absent"
    with files["--csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert set(lines[0]) == set(LIGER_COLUMNS)
    assert {line["metric_name"] for line in lines} == {"speed", "bandwidth", "share of the copy's bandwidth",
                                                       "value error", "gradient error"}  # fmt: skip
    assert {line["kernel_name"] for line in lines} == set(OPS)
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")


def test_the_table_fits_80_columns_and_says_what_the_limit_is(few_rounds, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    done = invoke("--peers", "all")
    assert done.exit_code == 0, done.output
    assert "…" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    for text in ("/ copy", "GB/s", "of copy", "fastcse", "Chosen: eager ", "torch.compile absent: ", "cloned"):
        assert text in done.stdout, text
    for text in ("TFLOP/s", "bare"):
        assert text not in done.stdout


def test_forward_alone_has_no_gradients(few_rounds):
    done = invoke("--mode", "forward", "--op", "quadruplet,normalize", "--json")
    assert done.exit_code == 0, done.output
    for result in json.loads(done.stdout)["results"]:
        assert result["mode"] == "forward"
        assert {row["gradient_error"] for row in result["rows"]} == {None}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--op", "softmax"], "--op is 'softmax': expected one of quadruplet, normalize, adversarial"),
        (["--mode", "backward"], "--mode is 'backward': expected one of full, forward"),
        (["--n", "0"], "--n is 0: each must be at least 1"),
        (["--d", "wide"], "--d is 'wide': expected whole numbers"),
        (["--peers", "nobody"], "--peers is 'nobody': expected one of fastcse, eager, torch.compile"),
        (["--repeat", "0"], "--repeat is 0: expected at least 1"),
        (["--dtype", "int8"], "--dtype is 'int8'"),
        (["--data", "words"], "--data is 'words'"),
        (["--backend", "numpy"], "numpy"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, arguments, says):
    monkeypatch.setattr(frame, "measure", lambda *a, **k: pytest.fail("measured before the mistake was found"))
    done = invoke(*arguments, "--output", tmp_path / "a.json")
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_wrong_answer_ends_with_code_1_and_nothing_written(tmp_path, monkeypatch, few_rounds):
    plant(monkeypatch, lambda o: o._replace(value=o.value * 1.1) if o.value.dim() else o)  # right at first
    done = invoke("--output", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "nothing is reported" in done.stderr
    assert not list(tmp_path.iterdir())
