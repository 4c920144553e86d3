"""Training steps as what is measured: one step of an encoder, and the processes that take turns with it."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch
from tiny_encoder import sentences, write_tiny_encoder

from fastcse.bench import train_step
from fastcse.bench.case import Result, WrongAnswer
from fastcse.bench.measure import measure, rounds
from fastcse.bench.memory import GIB, MIB
from fastcse.bench.output import draw
from fastcse.bench.train_step import OURS, PROVIDERS, StepCase, StepMeasurement, Stepper, Worker
from fastcse.errors import InputError, OptionError

THEIRS = "sentence-transformers cached"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "sentences.txt"
    path.write_text("\n".join(sentences(12)) + "\n")
    return str(path)


def step_case(encoder="nowhere", texts="nowhere", **more):
    return StepCase(**{**dict(n=9, texts=texts, corpus="planted", mini_batch=4, model=encoder), **more})


def named(*names):
    return [PROVIDERS[name] for name in names or PROVIDERS]


def test_a_case_that_is_none_is_named():
    for wrong in ({"n": 0}, {"max_length": 0}, {"mini_batch": 0}):
        with pytest.raises(OptionError, match=f"{next(iter(wrong))} is 0: expected at least 1"):
            step_case(**wrong)


# One step


def test_all_four_compute_the_same_from_weights_that_stay(encoder, texts):
    case = step_case(encoder, texts)
    result = Result(case, 1)
    for provider in named():
        one = Stepper(case, provider)
        before = [p.clone() for p in one.model.parameters()]
        row = StepMeasurement(provider.name, gradient_norm=one.warm_up(), loss=one.check())
        result.rows.append(row)
        assert one.check() == row.loss  # without dropout nothing is left to chance
        assert one.model.training
        assert one.seconds() > 0
        assert one._value(one.texts).item() != row.loss
        assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), before, strict=True))
        assert one.optimizer.state
    result.check()
    assert [column["input_ids"].shape[0] for column in one.texts] == [9, 9]
    other = Stepper(replace(case, temperature=0.06), PROVIDERS[THEIRS])
    result.row(THEIRS).gradient_norm, result.row(THEIRS).loss = other.warm_up(), other.check()
    with pytest.raises(WrongAnswer, match=f"the loss of {THEIRS} is .* nothing is reported"):
        result.check()


def test_texts_are_cut_and_must_be_enough_and_memory_is_estimated_on_a_line(encoder, texts):
    one = Stepper(step_case(encoder, texts, n=12, max_length=5), PROVIDERS["fastcse plain"])
    assert one.texts[0]["input_ids"].shape == (12, 5)
    with pytest.raises(ValueError, match=r"n is 13, and .* has 12 lines"):
        one._texts(13)
    seen = []

    def peak(run):
        seen.append(run.args[0][0]["input_ids"].shape[0])
        return (10 + 3 * seen[-1]) * MIB

    one.peak_memory = peak
    assert one.estimated_mib() == 10 + 3 * 12
    assert seen == [4, 8]
    one.peak_memory = lambda run: None
    assert one.estimated_mib() is None
    assert one.peak_mib() is None


# All of them


def row(name=OURS, loss=1.0, gradient_norm=2.0, **more):
    return StepMeasurement(name, loss=loss, gradient_norm=gradient_norm, **more)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (row(THEIRS, loss=1.0002), "the loss of sentence-transformers cached is 1.000200"),
        (row(THEIRS, loss=math.nan), "the loss of"),
        (row(THEIRS, gradient_norm=2.01), "the gradient of sentence-transformers cached has norm 2.01"),
        (row(THEIRS, gradient_norm=math.nan), "the gradient of"),
        (row(THEIRS, loss=1.00009, gradient_norm=2.0001), None),
        (StepMeasurement("fastcse plain", status="failed"), None),
    ],
)
def test_who_computes_something_else_is_named(other, says):
    with pytest.raises(WrongAnswer, match=says) if says else contextlib.nullcontext():
        Result(step_case(), 1, rows=[row(), other]).check()


class Answering(Worker):
    """A worker without a process. `answers`: what a provider says otherwise; "fails": it fails."""

    answers, asked = {}, []

    def __init__(self, case, provider, row):
        self.case, self.provider, self.row = case, provider, row

    def __exit__(self, *failure):
        self.asked.append((self.row.provider, "exit"))

    def call(self, what):
        if self.row.status != "measured":
            return None
        self.asked.append((self.row.provider, what))
        usual = dict(warm_up=2.0, estimated_mib=100.0, check=1.0, peak_mib=5.0, seconds=0.5)
        found = {**usual, **self.answers.get(self.row.provider, {})}[what]
        if found == "fails":
            self.row.status, self.row.reason = "failed", "planted"
            return None
        return found


@pytest.fixture
def answering(monkeypatch):
    Answering.answers, Answering.asked = {}, []
    monkeypatch.setattr(train_step, "Worker", Answering)
    return Answering


def test_every_provider_is_estimated_compared_and_timed_interleaved(answering, tmp_path, monkeypatch):
    answering.answers = {THEIRS: {"seconds": 1.5}, "fastcse plain": {"peak_mib": None}}
    done, case = [], step_case(memory_limit=101 * MIB)
    assert rounds(case, 2) == 2
    result = measure(case, named(), repeat=2, step=done.append)
    assert [(r.provider, r.status) for r in result.rows] == [(name, "measured") for name in PROVIDERS]
    ours, theirs, plain, _ = result.rows
    assert (ours.ms, ours.to_products, ours.sentences_s, ours.extra_mib) == (500, 1, 36, 5)
    assert (theirs.ms, theirs.to_products, theirs.sentences_s) == (1500, 3, 12)
    assert plain.extra_mib is None
    turns = [name for name, what in answering.asked if what == "seconds"]
    assert turns == [*PROVIDERS, *reversed(PROVIDERS)]
    estimated = [name for name, what in answering.asked if what == "estimated_mib"]
    assert estimated == ["fastcse plain", "sentence-transformers plain"]
    assert len(done) == 2 * len(PROVIDERS) + 2 * len(PROVIDERS)
    assert sorted(name for name, what in answering.asked if what == "exit") == sorted(PROVIDERS)
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: figures.append(figure))
    draw([result, measure(step_case(n=3), named(), repeat=1)], tmp_path / "a.png")
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == [label for _, label in StepCase.panels]
    assert [len(axes.lines) for axes in figures[0].axes] == [4, 3]  # one was not measured


@pytest.mark.parametrize(("estimated", "says"), [(3 * 1024, "about 3.0 GiB, limit 2.0 GiB"), (None, "memory unknown")])
def test_what_does_not_fit_is_not_run(answering, estimated, says):
    answering.answers = {"fastcse plain": {"estimated_mib": estimated}}
    result = measure(step_case(memory_limit=2 * GIB), named(OURS, "fastcse plain"), repeat=1)
    assert result.rows[1].status == "unsuitable"
    assert says in result.rows[1].reason
    assert [what for name, what in answering.asked if name == "fastcse plain"] == ["warm_up", "estimated_mib", "exit"]
    measure(step_case(n=8, memory_limit=1), named("fastcse plain"), repeat=1)  # small: nothing is estimated
    assert [what for _, what in answering.asked].count("estimated_mib") == 1


def test_nothing_is_timed_where_the_losses_differ(answering):
    answering.answers = {THEIRS: {"check": 1.1}}
    with pytest.raises(WrongAnswer):
        measure(step_case(), named(OURS, THEIRS), repeat=1)
    assert not {"seconds", "peak_mib"} & {what for _, what in answering.asked}
    assert (OURS, "exit") in answering.asked


def test_who_fails_later_loses_its_numbers_and_ours_all_of_them(answering):
    answering.answers = {THEIRS: {"seconds": "fails"}}
    ours, theirs = measure(step_case(), named(OURS, THEIRS), repeat=2).rows
    assert (theirs.status, theirs.ms, ours.ms) == ("failed", None, 500)
    answering.answers = {OURS: {"seconds": "fails"}}
    with pytest.raises(WrongAnswer, match=r"fastcse cached failed at .*: planted"):
        measure(step_case(), named(OURS, THEIRS), repeat=2)


def test_a_workers_failure_is_a_finding_and_a_missing_model_a_mistake(encoder, monkeypatch):
    """Its process is this one: what crosses to another is checked with the command, and for every provider."""

    class Here:
        def submit(self, function, *arguments):
            from concurrent.futures import Future

            future = Future()
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future

        def shutdown(self):
            pass

    monkeypatch.setattr(train_step, "one_process", Here)
    row = StepMeasurement(OURS)
    with Worker(step_case(encoder, "/nowhere/texts"), PROVIDERS[OURS], row) as worker:
        assert worker.call("warm_up") is None
        assert row.status == "failed"
        assert row.reason.startswith("FileNotFoundError")
        worker.case = step_case("/nowhere/model")
        assert worker.call("warm_up") is None  # it is not called again
        row.status = "measured"
        with pytest.raises(InputError, match="'/nowhere/model' is not a folder"):
            worker.call("warm_up")
