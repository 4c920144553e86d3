"""The measuring frame: what it compares with, whom it lists, what it refuses to report."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import fastcse
from fastcse.bench import measure as frame
from fastcse.bench import runs, truth
from fastcse.bench.data import KINDS, make_rows
from fastcse.bench.loss import WrongGradient
from fastcse.bench.measure import measure
from fastcse.bench.output import finite
from fastcse.bench.peers import PEERS, Peer
from fastcse.bench.problem import LOSSES, LossProblem, plain_loss
from fastcse.bench.runs import LIMIT, bare_products
from fastcse.bench.turns import Seconds, take_turns

SMALL = LossProblem(24, 24, 16)


def plant(monkeypatch, name, build, **more):
    monkeypatch.setitem(PEERS, name, Peer(name, build, **more))
    return name


def failing_after(calls):
    """A peer that computes the loss so many times and then runs out of memory."""

    def build(problem):
        left, plain = [calls], plain_loss(problem)

        def loss(a, c):
            left[0] -= 1
            if left[0] < 0:
                raise MemoryError("planted")
            return plain(a, c)

        return loss

    return build


# The rows


def cosines(kind, stage):
    anchor, candidate = (x.detach() for x in make_rows(LossProblem(400, 400, 256, data=kind, stage=stage)))
    s = F.normalize(anchor, dim=1) @ F.normalize(candidate, dim=1).T
    return s.diagonal().mean().item(), s[~torch.eye(400, dtype=torch.bool)].mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_as_documented(kind):
    (early, unrelated), (late, unrelated_late) = cosines(kind, "early"), cosines(kind, "late")
    assert late > early + 0.1
    assert early > unrelated + 0.1
    if kind == "random":
        assert early == pytest.approx(0.45, abs=0.02)
        assert late == pytest.approx(0.95, abs=0.01)
        assert abs(unrelated) < 0.01
    if kind == "anisotropic":
        assert unrelated_late > 0.5
    if kind == "clustered":
        assert 0.02 < unrelated_late < 0.5


def test_the_same_seed_gives_the_same_rows():
    first, again = make_rows(SMALL), make_rows(SMALL)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], make_rows(LossProblem(24, 24, 16, seed=1))[0])
    assert all(x.requires_grad for x in first)


@pytest.mark.parametrize(("m", "dtype"), [(24, "bfloat16"), (70, "float32")])
def test_rows_have_the_asked_shape_and_dtype(m, dtype):
    anchor, candidate = make_rows(LossProblem(24, m, 16, dtype=dtype))
    assert (anchor.shape, candidate.shape) == ((24, 16), (m, 16))
    assert {anchor.dtype, candidate.dtype} == {getattr(torch, dtype)}


# The truth


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
@pytest.mark.parametrize(("loss", "m"), [*((loss, 24) for loss in LOSSES), ("infonce", 60), ("focal", 60)])
def test_truth_is_the_plain_formula(monkeypatch, loss, m, rows_at_once):
    monkeypatch.setattr(truth, "PIECE_BYTES", 8 * m * rows_at_once)
    problem = LossProblem(24, m, 16, loss)
    rows = make_rows(problem)
    got = truth.exact(problem, *rows)
    whole = [x.detach().double().requires_grad_() for x in rows]
    # By hand, and not by plain_loss, which shares its logits with the truth.
    s = F.normalize(whole[0], dim=-1) @ F.normalize(whole[1], dim=-1).T
    if loss == "focal":
        s = torch.where(torch.eye(24, m, dtype=torch.bool), s**2, s * (s + 0.3))
    label = torch.arange(24)
    value = F.cross_entropy(s / 0.05, label)
    if loss == "symmetric":
        value = (value + F.cross_entropy(s.T / 0.05, label)) / 2
    value.backward()
    torch.testing.assert_close(got.loss, value.detach())
    for gradient, leaf in zip((got.anchor_grad, got.candidate_grad), whole):
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-14)


def test_an_error_that_is_no_number_is_kept():
    rows = make_rows(SMALL)
    right = truth.exact(SMALL, *rows)
    for place in (1, 2):
        wrong = list(right)
        wrong[place] = wrong[place] * math.nan
        assert math.isnan(truth.errors(truth.Outcome(*wrong), right).gradient)
    assert truth.errors(right, right) == (0.0, 0.0)


# Turns, and the bare products


def test_everyone_takes_turns_and_whoever_was_first_is_last_in_the_next_round():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = take_turns(runs, lambda run: run() or len(order), 2, lambda: None)
    assert "".join(order) == "abccba"
    assert seconds == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}
    assert Seconds.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (3.5, 2.0, 5.0)


@pytest.mark.parametrize("panel_rows", [1, 5, 100])
def test_the_bare_products_are_the_products(monkeypatch, panel_rows):
    monkeypatch.setattr(runs, "PANEL_BYTES", panel_rows * 60 * 4)
    written = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: written.append(addmm(*a, **k)))
    anchor, candidate = (x.detach() for x in make_rows(LossProblem(24, 60, 16)))
    bare_products(LossProblem(24, 60, 16))(anchor, candidate)
    torch.testing.assert_close(written[-1], (anchor @ candidate.T).T @ anchor, rtol=1e-4, atol=1e-2)


def test_rounds_are_more_where_n_is_small():
    assert [frame.rounds(LossProblem(n, n, 8), 3) for n in (48, 2048, 8192)] == [200, 3, 3]


# Whoever fails


def test_measured_rows_are_whole_and_the_limit_stands_first():
    result = measure(SMALL, ["fastcse", "eager"], repeat=3, memory=False)
    assert [row.provider for row in result.rows] == [LIMIT, "fastcse", "eager"]
    assert result.rows[0].to_products == 1.0
    assert result.backend == fastcse.last_backend()
    for row in result.rows:
        assert row.ms_20 <= row.ms <= row.ms_80
        assert row.tflops == pytest.approx(6 * 24 * 24 * 16 / (row.ms * 1e-3) / 1e12)
        assert row.to_products == pytest.approx(row.ms / result.rows[0].ms)
    assert result.row("fastcse").gradient_error < 1e-5


def test_the_forced_backend_is_what_ran():
    problem = LossProblem(24, 24, 16, backend="reference")
    assert measure(problem, ["fastcse"], repeat=1, memory=False).backend == "reference"


@pytest.mark.parametrize(("calls", "timed"), [(0, False), (2, False), (3, False), (100, True)])
def test_a_peer_that_fails_is_listed_and_the_others_are_measured(monkeypatch, calls, timed):
    """It fails at once, in the warm-up beside the others, or in the middle of the rounds."""
    name = plant(monkeypatch, "planted", failing_after(calls))
    result = measure(SMALL, ["fastcse", name, "eager"], repeat=4, memory=False)
    row = result.row(name)
    assert (row.status == "measured") == timed
    if not timed:
        assert (row.status, row.reason, row.ms) == ("failed", "MemoryError: planted", None)
    assert all(result.row(other).ms > 0 for other in (LIMIT, "fastcse", "eager"))


def test_an_absent_and_an_unsuitable_peer_say_why(monkeypatch):
    plant(monkeypatch, "absent", plain_loss, modules=("no_such_library",), install="pip install nothing")
    plant(monkeypatch, "unsuitable", plain_loss, losses=("focal",))
    result = measure(SMALL, ["absent", "unsuitable"], repeat=1, memory=False)
    told = {row.provider: (row.status, row.reason) for row in result.rows[1:]}
    assert told == {
        "absent": ("absent", "no_such_library is not installed: pip install nothing"),
        "unsuitable": ("unsuitable", "computes focal, not infonce"),
    }


@pytest.mark.parametrize("calls", [1, 4])
def test_fastcse_may_not_fail(monkeypatch, calls):
    plant(monkeypatch, "fastcse", failing_after(calls))
    with pytest.raises(WrongGradient, match=r"fastcse failed at infonce, N = 24, D = 16, .*MemoryError: planted"):
        measure(SMALL, ["fastcse", "eager"], repeat=6, memory=False)


@pytest.mark.parametrize("factor", [2.0, math.nan])
def test_a_wrong_gradient_ends_the_run(monkeypatch, factor):
    # The value is right, the gradient is not.
    plant(
        monkeypatch, "fastcse", lambda p: lambda a, c: (x := plain_loss(p)(a, c)) * factor + x.detach() * (1 - factor)
    )
    with pytest.raises(WrongGradient, match=r"above the .* that the accuracy rule allows"):
        measure(SMALL, ["fastcse", "eager"], repeat=1, memory=False)


def test_a_peer_without_a_number_does_not_excuse_fastcse(monkeypatch):
    plant(monkeypatch, "eager", lambda p: lambda a, c: plain_loss(p)(a, c) * math.nan)
    result = measure(SMALL, ["fastcse", "eager"], repeat=1, memory=False)
    row = result.row("eager")
    assert row.status == "measured"
    assert math.isnan(row.gradient_error)
    assert math.isnan(row.loss_error)
    shown = finite(result.labels())["rows"][2]
    assert shown["gradient_error"] == "nan"
    json.dumps(shown, allow_nan=False)


def test_a_failure_to_weigh_takes_nothing_from_the_times(monkeypatch):
    monkeypatch.setattr(frame, "SMALLEST_WEIGHED", 1)

    def weigh(problem, provider, choice):
        if provider == "eager":
            raise RuntimeError("planted")
        return 3.0

    monkeypatch.setattr(frame, "extra_memory", weigh)
    result = measure(SMALL, ["fastcse", "eager"], repeat=1)
    assert (result.row("fastcse").extra_mib, result.row("eager").extra_mib) == (3.0, None)
    assert result.row("eager").ms > 0
    assert "not weighed: RuntimeError: planted" in result.row("eager").note
