"""The losses of the benchmark: their rows, their float64 values, and the peers: one that runs here computes the plain
formula, one that cannot says why."""

import ast
import math
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICE

from fastcse import bench
from fastcse.bench import loss as losses
from fastcse.bench.accuracy import errors, run_once
from fastcse.bench.benchmarks import BENCHMARKS
from fastcse.bench.case import WrongAnswer
from fastcse.bench.data import KINDS
from fastcse.bench.loss import LOSSES, LossCase, plain_loss
from fastcse.bench.measure import measure
from fastcse.bench.peers import PEERS
from fastcse.bench.provider import Provider, Unsupported, need_hopper
from fastcse.errors import OptionError

SMALL = LossCase(24, 24, 16)
# Whoever compiles takes many seconds a shape: one shape, in the nightly lane.
SLOW = {"torch.compile", "Cut Cross-Entropy compiled"}
SHAPES = ((37, 37), (24, 60))


# Rows and float64


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_as_documented(kind):
    def cosines(stage):
        anchor, candidate = (x.detach() for x in LossCase(400, 400, 256, data=kind, stage=stage).inputs())
        s = F.normalize(anchor, dim=1) @ F.normalize(candidate, dim=1).T
        return s.diagonal().mean().item(), s[~torch.eye(400, dtype=torch.bool)].mean().item()

    (early, unrelated), (late, unrelated_late) = cosines("early"), cosines("late")
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


def test_rows_are_those_of_the_seed_shape_and_type():
    first, again = SMALL.inputs(), SMALL.inputs()
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], replace(SMALL, seed=1).inputs()[0])
    assert all(x.requires_grad for x in first)
    for m, dtype in ((24, "bfloat16"), (70, "float32")):
        anchor, candidate = LossCase(24, m, 16, dtype=dtype, mode="no-grad-forward").inputs()
        assert (anchor.shape, candidate.shape) == ((24, 16), (m, 16))
        assert {anchor.dtype, candidate.dtype} == {getattr(torch, dtype)}
        assert not anchor.requires_grad


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
@pytest.mark.parametrize(("loss", "m"), [*((loss, 24) for loss in LOSSES), ("infonce", 60), ("focal", 60)])
def test_exact_is_the_plain_formula(monkeypatch, loss, m, rows_at_once):
    monkeypatch.setattr(losses, "PIECE_BYTES", 8 * m * rows_at_once)
    case = LossCase(24, m, 16, loss)
    rows = case.inputs()
    got = case.exact(*rows)
    whole = [x.detach().double().requires_grad_() for x in rows]
    # By hand, and not by plain_loss, which shares its logits with `exact`.
    s = F.normalize(whole[0], dim=-1) @ F.normalize(whole[1], dim=-1).T
    if loss == "focal":
        s = torch.where(torch.eye(24, m, dtype=torch.bool), s**2, s * (s + 0.3))
    label = torch.arange(24)
    value = F.cross_entropy(s / 0.05, label)
    if loss == "symmetric":
        value = (value + F.cross_entropy(s.T / 0.05, label)) / 2
    value.backward()
    torch.testing.assert_close(got.value, value.detach())
    for gradient, leaf in zip(got.gradients, whole, strict=True):
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("panel_rows", [1, 5, 100])
def test_the_bare_products_are_the_products(monkeypatch, panel_rows):
    monkeypatch.setattr(losses, "PANEL_BYTES", panel_rows * 60 * 4)
    written, addmm = [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: written.append(addmm(*a, **k)))
    case = LossCase(24, 60, 16)
    anchor, candidate = (x.detach() for x in case.inputs())
    case.lower_bound()(anchor, candidate)
    torch.testing.assert_close(written[-1], (anchor @ candidate.T).T @ anchor, rtol=1e-4, atol=1e-2)
    assert case.flops == 3 * 2 * 24 * 60 * 16
    assert LossCase(24, loss="symmetric").products == 4


def test_candidates_must_be_enough():
    for loss, wanted in (("symmetric", "exactly"), ("infonce", "at least")):
        with pytest.raises(OptionError, match=f"m is 20: {loss} needs {wanted} as many candidates as n, which is 24"):
            LossCase(24, 20, loss=loss)
    assert LossCase(24).m == 24


def test_the_case_says_what_is_measured():
    assert SMALL.title == (
        "infonce, N = 24, D = 16, forward + backward, float32 on cpu, clustered rows, early, temperature 0.05"
    )
    assert LossCase(24, 60, 16).size == "N = 24, M = 60, D = 16"


# The verdict


def measured(*providers, **more):
    return measure(replace(SMALL, **more), providers, repeat=1, memory=False)


def test_the_forced_backend_is_what_ran():
    for backend in ("reference", "cpp"):
        result = measured(PEERS["fastcse"], backend=backend)
        assert result.backend == backend
        assert result.row("fastcse").gradient_error < 1e-5


@pytest.mark.parametrize("factor", [2.0, math.nan])
def test_a_wrong_gradient_ends_the_run(factor):
    def make(case):  # the value is right, the gradient is not
        return lambda a, c: (x := plain_loss(case)(a, c)) * factor + x.detach() * (1 - factor)

    with pytest.raises(WrongAnswer, match=r"fastcse's gradient error .* is above the .* that the rule allows, at"):
        measured(Provider("fastcse", make), PEERS["eager"])


def test_a_yardstick_without_a_number_does_not_excuse_fastcse():
    def near(case):
        return lambda a, c: plain_loss(case)(a * torch.linspace(1, 1.001, 24)[:, None].detach() + 1e-4, c)

    def lost(case):
        return lambda a, c: plain_loss(case)(a, c) * math.nan

    result = measured(PEERS["fastcse"], Provider("eager", lost))
    assert math.isnan(result.row("eager").gradient_error)
    with pytest.raises(WrongAnswer, match=r"above the 1\.00e-05"):
        measured(Provider("fastcse", near), Provider("eager", lost))


# The peers


def rows_of(case):
    """Anchors near their own candidate, of lengths far from 1."""
    candidate = 3 * torch.randn(case.m, case.d)
    anchor = 0.2 * candidate[: case.n] + torch.randn(case.n, case.d)
    return tuple(x.to(case.device, case.torch_dtype).requires_grad_() for x in (anchor, candidate))


def assert_is_the_loss(case, loss, value_rtol=1e-4, gradient_rtol=1e-3):
    """The value, the gradients by norm, the same value without gradients, inputs left alone."""
    rows = rows_of(case)
    before = [x.detach().clone() for x in rows]
    # An upstream gradient other than 1, since some peers compute theirs in forward.
    outcome = run_once(loss, rows, torch.tensor(3.0, device=case.device))
    assert outcome.value.shape == ()
    error = errors(outcome._replace(gradients=tuple(g / 3 for g in outcome.gradients)), case.exact(*rows))
    assert error.value < value_rtol
    assert error.gradient < gradient_rtol
    again = run_once(loss, rows, backward=False).value
    assert again.item() == pytest.approx(outcome.value.item(), rel=value_rtol)
    assert all(torch.equal(x, b) for x, b in zip(rows, before))


def suitable(peer, case, config):
    """The peer's loss, or a skip with its own reason."""
    if (absent := peer.missing()) is not None:
        pytest.skip(absent)
    try:
        return peer.build(case, config=config)
    except Unsupported as why:
        pytest.skip(f"{peer.name}: {why}")


def cases():
    for name, peer in PEERS.items():
        for loss in peer.variants or LOSSES:
            for n, m in SHAPES:
                if name in SLOW and (loss, n) != ((peer.variants or LOSSES)[0], SHAPES[0][0]):
                    continue
                # The column direction of candidates without an anchor of their own is not defined.
                if loss != "symmetric" or n == m:
                    mark = [pytest.mark.whole] if name in SLOW else []
                    yield pytest.param(peer, LossCase(n, m, 33, loss, device=DEVICE), id=f"{name}-{loss}-{n}x{m}",
                                       marks=mark)  # fmt: skip


@pytest.mark.parametrize(("peer", "case"), cases())
def test_a_peer_computes_the_loss(peer, case, device):
    # The configurations on offer are larger than the case; 8 makes several chunks of it.
    for config in (8, *peer.configs) if peer.configs else (None,):
        assert_is_the_loss(case, suitable(peer, case, config))


@pytest.mark.skipif(DEVICE != "cuda", reason="the CUDA kernels run in the device lane")
@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_a_peer_computes_the_loss_in_bfloat16(peer, device):
    """At a size that nobody's limits exclude and a temperature at which rounded logits do little harm."""
    for loss in peer.variants or LOSSES:
        case = LossCase(256, 256, 128, loss, dtype="bfloat16", device=DEVICE, temperature=0.2)
        for config in peer.configs or (None,):
            assert_is_the_loss(case, suitable(peer, case, config), value_rtol=2e-2, gradient_rtol=5e-2)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda p: plain_loss(replace(p, temperature=0.0501)), id="temperature"),
        pytest.param(lambda p: lambda a, c: plain_loss(p)(a.detach() * 1.0 + 0 * a, c), id="gradient"),
        pytest.param(lambda p: lambda a, c: plain_loss(p)(a, c) * a.shape[0], id="sum"),
        pytest.param(lambda p: lambda a, c: plain_loss(p)(a, c[: p.n]), id="negatives"),
    ],
)
def test_a_wrong_peer_is_caught(wrong):
    case = LossCase(24, 60, 33)
    assert_is_the_loss(case, plain_loss(case))
    with pytest.raises(AssertionError):
        assert_is_the_loss(case, wrong(case))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_provider_from_outside_says_how_to_get_it_and_is_found_by_another_process(name):
    for provider in BENCHMARKS[name].providers.values():
        assert bool(provider.modules) == bool(provider.install)
        assert pickle.loads(pickle.dumps(provider)) == provider
        if provider.modules and provider.missing():
            assert "pip install" in provider.missing()


def test_what_a_peer_does_not_compute_is_unsupported():
    for peer in PEERS.values():
        for loss in set(LOSSES) - set(peer.variants or LOSSES):
            with pytest.raises(Unsupported, match=f"not {loss}"):
                peer.build(LossCase(8, 8, 16, loss=loss), config=(peer.configs or (None,))[0])


@pytest.mark.parametrize(
    ("name", "reason", "case"),
    [
        ("Inf-CL", "multiple of 64 anchors, not 37", LossCase(37, 37, 64)),
        ("Inf-CL", "multiple of 16, not 33", LossCase(64, 64, 33)),
        ("flex_attention", "256 at most, not 384", LossCase(64, 64, 384)),
        ("Cut Cross-Entropy", "bfloat16 and float16 only", LossCase(64, 64, 64)),
        ("Cut Cross-Entropy exact", "bfloat16 and float16 only", LossCase(64, 64, 64)),
    ],
)
def test_a_limit_is_said_before_the_peer_is_imported(name, reason, case):
    with pytest.raises(Unsupported, match=reason):
        PEERS[name].build(replace(case, device="cuda"))
    with pytest.raises(Unsupported, match="CUDA only"):
        PEERS[name].build(case)


def test_kernels_of_hopper_say_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(Unsupported, match=r"capability 9\.0 only, this is 8\.0"):
        need_hopper(replace(SMALL, device="cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(Unsupported, match="bfloat16 only, not float32"):
        need_hopper(replace(SMALL, device="cuda"))


def test_no_provider_is_imported_before_it_runs():
    ours = {*sys.stdlib_module_names, "numpy", "rich", "torch"}
    for path in Path(bench.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.partition(".")[0] for name in names} <= ours, path
