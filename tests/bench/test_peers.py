"""The benchmark's adapters: a peer that runs here computes the plain formula; one that cannot says why."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import DEVICE

from fastcse.bench.peers import PEERS, Peer, Unsuitable
from fastcse.bench.peers.peer import need
from fastcse.bench.problem import LossProblem, plain_loss
from fastcse.bench.truth import Outcome, errors, exact

# Whoever compiles takes many seconds a shape: one shape.
SLOW = {"torch.compile", "Cut Cross-Entropy compiled"}
SHAPES = ((37, 37), (24, 60))
LIBRARIES = (
    "sentence_transformers",
    "open_clip",
    "pytorch_metric_learning",
    "gradcache",
    "liger_kernel",
    "cut_cross_entropy",
    "inf_cl",
    "quack",
    "cutlass",
)


def rows_of(problem):
    """Anchors near their own candidate, of lengths far from 1."""
    candidate = 3 * torch.randn(problem.m, problem.d)
    anchor = 0.2 * candidate[: problem.n] + torch.randn(problem.n, problem.d)
    return (x.to(problem.device, problem.torch_dtype).requires_grad_() for x in (anchor, candidate))


def assert_is_the_loss(problem, loss, value_rtol=1e-4, gradient_rtol=1e-3):
    """The value, the gradients by norm, the same value without gradients, inputs left alone."""
    anchor, candidate = rows_of(problem)
    before = anchor.detach().clone(), candidate.detach().clone()
    value = loss(anchor, candidate)
    assert value.shape == ()
    # An upstream gradient other than 1, since some peers compute theirs in forward.
    (value * 3).backward()
    error = errors(Outcome(value.detach(), anchor.grad / 3, candidate.grad / 3), exact(problem, anchor, candidate))
    assert error.loss < value_rtol
    assert error.gradient < gradient_rtol
    with torch.no_grad():
        assert loss(anchor, candidate).item() == pytest.approx(value.item(), rel=value_rtol)
    assert torch.equal(anchor, before[0])
    assert torch.equal(candidate, before[1])


def suitable(peer, problem, choice):
    """The peer's loss, or a skip with its own reason."""
    if (absent := peer.missing()) is not None:
        pytest.skip(absent)
    try:
        return peer.loss(problem, choice)
    except Unsuitable as why:
        pytest.skip(f"{peer.name}: {why}")


def cases():
    for name, peer in PEERS.items():
        for loss in peer.losses:
            for n, m in SHAPES:
                if name in SLOW and (loss, n) != (peer.losses[0], SHAPES[0][0]):
                    continue
                # The column direction of candidates without an anchor of their own is not defined.
                if loss != "symmetric" or n == m:
                    yield pytest.param(peer, LossProblem(n, m, 33, loss, device=DEVICE), id=f"{name}-{loss}-{n}x{m}")


@pytest.mark.parametrize(("peer", "problem"), cases())
def test_a_peer_computes_the_loss(peer, problem):
    # The choices on offer are larger than the problem; 8 makes several chunks of it.
    for choice in (8, *peer.choices) if peer.choices else (None,):
        assert_is_the_loss(problem, suitable(peer, problem, choice))


@pytest.mark.skipif(DEVICE != "cuda", reason="the CUDA kernels run in the device lane")
@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_a_peer_computes_the_loss_in_bfloat16(peer):
    """At a size that nobody's limits exclude and a temperature at which rounded logits do little harm."""
    for loss in peer.losses:
        problem = LossProblem(256, 256, 128, loss, "bfloat16", DEVICE, temperature=0.2)
        for choice in peer.choices or (None,):
            assert_is_the_loss(problem, suitable(peer, problem, choice), value_rtol=2e-2, gradient_rtol=5e-2)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda p: plain_loss(LossProblem(p.n, p.m, p.d, temperature=0.0501)), id="temperature"),
        pytest.param(lambda p: lambda a, c: plain_loss(p)(a.detach() * 1.0 + 0 * a, c), id="gradient"),
        pytest.param(lambda p: lambda a, c: plain_loss(p)(a, c) * a.shape[0], id="sum"),
        pytest.param(lambda p: lambda a, c: plain_loss(p)(a, c[: p.n]), id="negatives"),
    ],
)
def test_a_wrong_peer_is_caught(wrong):
    problem = LossProblem(24, 60, 33)
    assert_is_the_loss(problem, Peer("right", plain_loss).loss(problem))
    with pytest.raises(AssertionError):
        assert_is_the_loss(problem, Peer("wrong", wrong).loss(problem))


def test_an_absent_package_is_reported_with_its_install_command():
    peer = Peer("planted", plain_loss, modules=("torch", "no_such_library"), install="pip install no-such-library")
    assert peer.missing() == "no_such_library is not installed: pip install no-such-library"
    assert Peer("present", plain_loss, modules=("torch",)).missing() is None


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_a_peer_from_outside_says_how_to_get_it(peer):
    assert bool(peer.modules) == bool(peer.install)
    assert set(peer.modules) <= {*LIBRARIES, "triton"}


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_what_a_peer_does_not_compute_is_unsuitable(peer):
    for loss in {"infonce", "focal", "symmetric"} - set(peer.losses):
        with pytest.raises(Unsuitable, match=f"not {loss}"):
            peer.loss(LossProblem(8, 8, 16, loss=loss), *peer.choices[:1])


@pytest.mark.parametrize(
    ("name", "reason", "problem"),
    [
        ("Inf-CL", "multiple of 64 anchors, not 37", dict(n=37, m=37, d=64)),
        ("Inf-CL", "multiple of 16, not 33", dict(n=64, m=64, d=33)),
        ("flex_attention", "256 at most, not 384", dict(n=64, m=64, d=384)),
        ("Cut Cross-Entropy", "bfloat16 and float16 only", dict(n=64, m=64, d=64)),
        ("Cut Cross-Entropy exact", "bfloat16 and float16 only", dict(n=64, m=64, d=64)),
    ],
)
def test_a_limit_is_said_before_the_peer_is_imported(name, reason, problem):
    with pytest.raises(Unsuitable, match=reason):
        PEERS[name].loss(LossProblem(**problem, device="cuda"))
    with pytest.raises(Unsuitable, match="CUDA only"):
        PEERS[name].loss(LossProblem(**problem))


def test_two_directions_need_as_many_candidates_as_anchors():
    with pytest.raises(ValueError, match="exactly as many candidates as anchors, got m = 60, n = 24"):
        LossProblem(24, 60, 33, loss="symmetric")


def test_need_raises_the_reason():
    need(True, "unused")
    with pytest.raises(Unsuitable, match="too wide"):
        need(False, "too wide")


def test_registering_imports_no_peer():
    code = "import fastcse.bench.peers, json, sys; print(json.dumps(list(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(LIBRARIES) & set(json.loads(out.stdout))
