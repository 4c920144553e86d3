"""`fastcse bench train`: what is computed, what it is compared with, what is not told."""

import dataclasses
import json
import math

import pytest
import torch
from tiny_encoder import sentences, write_tiny_encoder
from typer.testing import CliRunner

from fastcse.bench.figure import draw
from fastcse.bench.loss import WrongGradient
from fastcse.bench.measure import measure, rounds
from fastcse.bench.peak import GIB, MIB
from fastcse.bench.problem import plain_loss
from fastcse.bench.steps import cached
from fastcse.bench.steps import measure as steps_frame
from fastcse.bench.steps.cached import CACHED, STAGES, CachedProblem, Stage
from fastcse.bench.steps.losses import OURS, PROVIDERS
from fastcse.bench.steps.measure import STEPS, Worker, WrongStep, check_same, measure_steps
from fastcse.bench.steps.problem import StepProblem, StepRow
from fastcse.bench.steps.stepper import Stepper
from fastcse.bench.subject import Result
from fastcse.cli import app
from fastcse.errors import InputError

THEIRS = "sentence-transformers cached"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "sentences.txt"
    path.write_text("\n".join(sentences(12)) + "\n")
    return str(path)


def step_problem(encoder="nowhere", texts="nowhere", **more):
    return StepProblem(**{**dict(n=9, texts=texts, corpus="planted", mini_batch=4, model=encoder), **more})


# The loss stage


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CachedProblem(8, mini_batch=0), "mini_batch must be at least 1, got 0"),
        (lambda: step_problem(n=0), "n must be at least 1, got 0"),
        (lambda: step_problem(max_length=0), "max_length must be at least 1, got 0"),
    ],
)
def test_a_problem_that_is_none_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("mini_batch", [1, 7, 30, 64])
def test_the_embeddings_come_in_mini_batches(mini_batch):
    problem = CachedProblem(30, 8, mini_batch)
    parts = CACHED.inputs(problem)
    sizes = [len(part) for part in parts]
    assert sizes == 2 * [min(mini_batch, 30 - start) for start in range(0, 30, mini_batch)]
    anchor, candidate = (torch.cat(column).detach().double().requires_grad_() for column in cached._columns(parts))
    value = plain_loss(problem.whole)(anchor, candidate)
    value.backward()
    for stage in STAGES.values():
        got = CACHED.prepare(stage, problem, None, parts)()
        half = len(got.gradients) // 2
        torch.testing.assert_close(got.loss.double(), value, rtol=1e-5, atol=0)
        torch.testing.assert_close(torch.cat(got.gradients[:half]).double(), anchor.grad, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(torch.cat(got.gradients[half:]).double(), candidate.grad, rtol=1e-4, atol=1e-7)


def test_both_stages_are_measured_and_right():
    result = measure(CachedProblem(70, 16, 16), STAGES, repeat=2)
    assert [row.provider for row in result.rows] == ["bare products", *STAGES]
    for row in result.rows[1:]:
        assert row.status == "measured", row.reason
        assert row.loss_error < 1e-5
        assert row.gradient_error < 1e-5


def test_a_wrong_gradient_of_the_stage_is_not_reported(monkeypatch):
    def load(problem):
        right = STAGES[THEIRS].load(problem)

        class Wrong:
            def calculate_loss(self, columns, *, with_backward):
                loss = right.calculate_loss(columns, with_backward=with_backward)
                columns[1][-1].grad[0] *= 1.01
                return loss

        return Wrong()

    monkeypatch.setitem(STAGES, "fastcse", Stage("fastcse", load))
    with pytest.raises(WrongGradient, match="nothing is reported"):
        measure(CachedProblem(70, 16, 16), ["fastcse"], repeat=1)


# One step


def test_all_four_compute_the_same_from_weights_that_stay(encoder, texts):
    problem = step_problem(encoder, texts)
    result = Result(problem, 1)
    for name in PROVIDERS:
        one = Stepper(problem, name)
        before = [p.clone() for p in one.model.parameters()]
        row = StepRow(name, gradient_norm=one.warm_up(), loss=one.check())
        result.rows.append(row)
        assert one.check() == row.loss  # without dropout nothing is left to chance
        assert one.model.training
        assert one.seconds() > 0
        assert one._value(one.columns).item() != row.loss
        assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), before, strict=True))
        assert one.optimizer.state
    check_same(result)
    assert {column["input_ids"].shape[0] for column in one.columns} == {9}
    assert len(one.columns) == 2


def test_a_provider_at_another_temperature_is_found_out(encoder, texts):
    problem = step_problem(encoder, texts)
    result = Result(problem, 1)
    for name, temperature in ((OURS, 0.05), (THEIRS, 0.06)):
        one = Stepper(dataclasses.replace(problem, temperature=temperature), name)
        result.rows.append(StepRow(name, gradient_norm=one.warm_up(), loss=one.check()))
    with pytest.raises(WrongStep, match=f"the loss of {THEIRS} is .* nothing is reported"):
        check_same(result)


def test_texts_are_cut_and_must_be_enough(encoder, texts):
    one = Stepper(step_problem(encoder, texts, max_length=5), OURS)
    assert one.columns[0]["input_ids"].shape == (9, 5)
    with pytest.raises(ValueError, match=r"n is 13, and .* has 12 lines"):
        Stepper(step_problem(encoder, texts, n=13), OURS)


def test_memory_is_foretold_on_a_line(encoder, texts):
    one = Stepper(step_problem(encoder, texts, n=12), "fastcse plain")
    seen = []

    def weigh(run):
        seen.append(run.args[0][0]["input_ids"].shape[0])
        return (10 + 3 * seen[-1]) * MIB

    one.weigh = weigh
    assert one.foretold_mib() == 10 + 3 * 12
    assert seen == [4, 8]
    one.weigh = lambda run: None
    assert one.foretold_mib() is None
    assert one.peak_mib() is None


# All of them


def row(name=OURS, loss=1.0, gradient_norm=2.0, **more):
    return StepRow(name, loss=loss, gradient_norm=gradient_norm, **more)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (row(THEIRS, loss=1.0002), "the loss of sentence-transformers cached is 1.000200"),
        (row(THEIRS, loss=math.nan), "the loss of"),
        (row(THEIRS, gradient_norm=2.01), "the gradient of sentence-transformers cached has norm 2.01"),
        (row(THEIRS, gradient_norm=math.nan), "the gradient of"),
    ],
)
def test_who_computes_something_else_is_named(other, says):
    with pytest.raises(WrongStep, match=says):
        check_same(Result(step_problem(), 1, rows=[row(), other]))


def test_small_differences_and_those_who_did_not_run_pass():
    rows = [row(), row(THEIRS, loss=1.00009, gradient_norm=2.0001), StepRow("fastcse plain", status="failed")]
    check_same(Result(step_problem(), 1, rows=rows))
    with pytest.raises(WrongStep, match=r"fastcse cached failed at .* out of memory"):
        check_same(Result(step_problem(), 1, rows=[StepRow(OURS, status="failed", reason="out of memory")]))


class Answering(Worker):
    """A worker without a process. `answers`: what a provider says otherwise; None: it fails."""

    answers, asked = {}, []

    def __init__(self, problem, row):
        self.problem, self.row = problem, row

    def __exit__(self, *failure):
        self.asked.append((self.row.provider, "exit"))

    def ask(self, what):
        if self.row.status != "measured":
            return None
        self.asked.append((self.row.provider, what))
        usual = dict(warm_up=2.0, foretold_mib=100.0, check=1.0, peak_mib=5.0, seconds=0.5)
        found = {**usual, **self.answers.get(self.row.provider, {})}[what]
        if found == "fails":
            self.row.status, self.row.reason = "failed", "planted"
            return None
        return found


@pytest.fixture
def answering(monkeypatch):
    Answering.answers, Answering.asked = {}, []
    monkeypatch.setattr(steps_frame, "Worker", Answering)
    return Answering


def test_every_provider_is_foretold_compared_weighed_and_timed_in_turns(answering, tmp_path, monkeypatch):
    answering.answers = {THEIRS: {"seconds": 1.5}, "fastcse plain": {"peak_mib": None}}
    done = []
    problem = step_problem(memory_limit=101 * MIB)
    assert rounds(problem, 2) == 2
    result = measure(problem, PROVIDERS, repeat=2, step=done.append)
    assert [(r.provider, r.status) for r in result.rows] == [(name, "measured") for name in PROVIDERS]
    ours, theirs, plain, _ = result.rows
    assert (ours.ms, ours.to_products, ours.sentences_s, ours.extra_mib) == (500, 1, 36, 5)
    assert (theirs.ms, theirs.to_products, theirs.sentences_s) == (1500, 3, 12)
    assert plain.extra_mib is None
    turns = [name for name, what in answering.asked if what == "seconds"]
    assert turns == [*PROVIDERS, *reversed(PROVIDERS)]
    foretold = [name for name, what in answering.asked if what == "foretold_mib"]
    assert foretold == ["fastcse plain", "sentence-transformers plain"]
    assert len(done) == 2 * len(PROVIDERS) + 2 * len(PROVIDERS)
    assert sorted(name for name, what in answering.asked if what == "exit") == sorted(PROVIDERS)
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: drawn.append(figure))
    draw([result, measure(step_problem(n=3), PROVIDERS, repeat=1)], tmp_path / "a.png")
    assert [axes.get_title() for axes in drawn[0].axes] == [label for _, label in STEPS.panels]
    assert [len(axes.lines) for axes in drawn[0].axes] == [4, 3]  # one was not weighed


@pytest.mark.parametrize(("foretold", "says"), [(3 * 1024, "about 3.0 GiB, limit 2.0 GiB"), (None, "memory unknown")])
def test_what_does_not_fit_is_not_run(answering, foretold, says):
    answering.answers = {"fastcse plain": {"foretold_mib": foretold}}
    result = measure_steps(step_problem(memory_limit=2 * GIB), [OURS, "fastcse plain"], repeat=1)
    assert result.rows[1].status == "unsuitable"
    assert says in result.rows[1].reason
    assert [what for name, what in answering.asked if name == "fastcse plain"] == ["warm_up", "foretold_mib", "exit"]


def test_a_small_batch_needs_no_foretelling(answering):
    measure_steps(step_problem(n=8, memory_limit=1), ["fastcse plain"], repeat=1)
    assert ("fastcse plain", "foretold_mib") not in answering.asked


def test_nothing_is_timed_where_the_losses_differ(answering):
    answering.answers = {THEIRS: {"check": 1.1}}
    with pytest.raises(WrongStep):
        measure_steps(step_problem(), [OURS, THEIRS], repeat=1)
    assert not {"seconds", "peak_mib"} & {what for _, what in answering.asked}
    assert (OURS, "exit") in answering.asked


def test_who_fails_later_loses_its_numbers_and_ours_all_of_them(answering):
    answering.answers = {THEIRS: {"seconds": "fails"}}
    ours, theirs = measure_steps(step_problem(), [OURS, THEIRS], repeat=2).rows
    assert (theirs.status, theirs.ms, ours.ms) == ("failed", None, 500)
    answering.answers = {OURS: {"seconds": "fails"}}
    with pytest.raises(WrongStep, match=r"fastcse cached failed at .*: planted"):
        measure_steps(step_problem(), [OURS, THEIRS], repeat=2)


def test_a_workers_failure_is_a_finding_and_a_missing_model_a_mistake(encoder):
    row = StepRow(OURS)
    with Worker(step_problem(encoder, "/nowhere/texts"), row) as worker:
        assert worker.ask("warm_up") is None
        assert row.status == "failed"
        assert row.reason.startswith("FileNotFoundError")
        worker.problem = step_problem("/nowhere/model")
        assert worker.ask("warm_up") is None  # it is not asked again
        row.status = "measured"
        with pytest.raises(InputError, match="'/nowhere/model' is not a folder"):
            worker.ask("warm_up")


# The command


def call(*arguments):
    return CliRunner().invoke(app, ["bench", "train", *map(str, arguments)])


def test_the_command_writes_what_it_measured(tmp_path, encoder, texts):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "png")}
    done = call("--batch-sizes", 12, "--mini-batch-size", 3, "--model", encoder, "--corpus", texts, "--device",
                "cpu", "--memory-limit-gib", 1e-9, "--providers", "fastcse plain", "--steps", 1, "--output",
                files["json"], "--csv", files["csv"], "--plot", files["png"], "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    made = json.loads(files["json"].read_text())
    assert json.loads(done.stdout)["results"] == made["results"]
    assert [(r["n"], [(row["provider"], row["status"]) for row in r["rows"]]) for r in made["results"]] == [
        (12, [(OURS, "measured"), ("fastcse plain", "unsuitable")]),
    ]
    assert "texts" not in made["results"][0]
    assert made["results"][0]["corpus"] == "sentences.txt"
    assert "loss without dropout" in files["csv"].read_text()
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_the_stage_alone(tmp_path):
    done = call("--stage", "loss", "--batch-sizes", "40", "--mini-batch-size", "16,8", "--d", 8, "--steps", 1,
                "--device", "cpu", "--output", tmp_path / "loss.json")  # fmt: skip
    assert done.exit_code == 0, done.output
    made = json.loads((tmp_path / "loss.json").read_text())
    assert [r["mini_batch"] for r in made["results"]] == [16, 8]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--stage", "all"), "--stage is 'all': expected one of step, loss"),
        (("--batch-sizes", "0"), "--batch-sizes is 0: each must be at least 1"),
        (("--batch-sizes", "13"), "asks for 13 and sentences.txt has 12 distinct sentences"),
        (("--memory-limit-gib", 0), "--memory-limit-gib is 0: expected more than 0"),
        (("--max-length", 0), "--max-length is 0: expected at least 1"),
        (("--batch-sizes", 2, "--providers", "torch"), "--providers is 'torch'"),
        (("--batch-sizes", 2, "--steps", 0), "expected at least 1"),
    ],
)
def test_a_mistake_is_one_sentence(texts, arguments, says):
    done = call("--corpus", texts, *arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert says in done.stderr.splitlines()[-1]
