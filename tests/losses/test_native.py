"""The C++ module alone: all instruction sets agree, exponentials are exact to ulps, threads change nothing."""

import numpy as np
import pytest
import torch

import fastcse
from fastcse import native
from fastcse.operands import Block, Logits, RowChunk

_C = pytest.importorskip("fastcse._C", reason="the C++ module is not built; test_house fails without it")


@pytest.fixture(params=_C.usable())
def isa(request):
    before = _C.isa()
    _C.use(request.param)
    yield request.param
    _C.use(before)


def exponentials(x: torch.Tensor) -> torch.Tensor:
    """exp(x) for any x by the sweep: one row [1], columns x, temperature 1, not normalised, weights stored."""
    m = x.numel()
    one, zero = torch.ones(1), torch.zeros(1)
    block = Block(x[:, None].clone(), torch.ones(m), torch.zeros(m), False, None, 0.0, False, False)
    index = torch.zeros(1, dtype=torch.int64)
    sums = [torch.zeros(1), torch.zeros(1)]
    chunk = RowChunk(torch.ones(1, 1), one, index, None, None, zero, zero, zero, None, *sums)
    out = torch.empty(1, m)
    native.sweep(chunk, block, Logits("scaled", 0.0, torch.ones(()), 1.0), out, store=True)
    return out[0]


def test_exponential_to_two_ulp(isa):
    # More than one tile and not a multiple of any vector width.
    x = torch.linspace(-87.3, 88.3, 100_003)
    exact = np.exp(x.double().numpy())
    got = exponentials(x).double().numpy()
    ulps = np.abs(got - exact) / np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert ulps.max() <= 2.0


def test_exponential_at_the_ends(isa):
    got = exponentials(torch.tensor([-1000.0, -88.0, 0.0, 89.0, 1000.0, torch.nan]))
    assert got[:3].tolist() == [0.0, 0.0, 1.0]
    assert torch.isinf(got[3:5]).all()
    assert torch.isnan(got[5])


@pytest.mark.parametrize("loss", [fastcse.focal_infonce_loss, fastcse.angular_infonce_loss])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("m", [1, 3, 7, 8, 9, 16, 17, 31, 1025])
def test_every_width_and_instruction_set(isa, m, symmetric, loss):
    g = torch.Generator().manual_seed(m)
    anchor, candidate = torch.randn(3, 5, generator=g), torch.randn(m, 5, generator=g)
    ids = torch.arange(3) % 2, torch.arange(m) % 5
    positive = torch.arange(3) % m
    options = {
        "anchor_id": ids[0],
        "candidate_id": ids[1],
        "symmetric": symmetric,
        "temperature": 0.2,
        "return_stats": True,
    }
    got = loss(anchor, candidate, positive, backend="cpp", **options)
    want = loss(anchor.double(), candidate.double(), positive, **options)
    torch.testing.assert_close(got.loss, want.loss.float())
    for name, value in zip(got.stats._fields, got.stats[:-1]):
        torch.testing.assert_close(value.double(), getattr(want.stats, name).double(), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("symmetric", [False, True])
def test_threads_change_no_bit(isa, symmetric):
    g = torch.Generator().manual_seed(1)
    rows = [torch.randn(300, 16, generator=g) for _ in range(2)]
    out = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_() for x in rows]
            loss = fastcse.infonce_loss(*leaves, symmetric=symmetric, backend="cpp")
            out.append(loss.detach())
    finally:
        torch.set_num_threads(before)
    assert out[0] == out[1] == out[2]


def test_rows_far_from_one_are_measured():
    x = torch.tensor([[3e-20, 4e-20], [3e25, 4e25], [3.0, 4.0], [0.0, 0.0], [3e-9, 4e-9]])
    scale = native.inverse_norms(x)
    torch.testing.assert_close(scale, torch.tensor([0.0, 2e-26, 0.2, 0.0, 0.0]), rtol=1e-6, atol=0)


def test_unknown_transform_and_instruction_set_are_named():
    with pytest.raises(ValueError, match="sse9"):
        _C.use("sse9")
    with pytest.raises(ValueError, match="cubic"):
        _C.sweep("cubic", {"stride": 1, "rows": 0, "cols": 0, "first_col": 0, "own_log_weight": 0.0,
                           "inv_temperature": 1.0, "margin": 0.0, "store": False}, 1)  # fmt: skip


@pytest.mark.parametrize(("workspace", "similarities"), [(None, 1), (4096, 2)], ids=["kept", "made again"])
def test_a_symmetric_loss_keeps_the_dot_products_that_fit(monkeypatch, workspace, similarities):
    g = torch.Generator().manual_seed(1)
    rows = [torch.randn(150, 20, generator=g).requires_grad_() for _ in range(2)]
    pairs, mm = [], torch.mm

    def counted(a, b, *, out):
        pairs.append(out.numel())
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    loss = fastcse.infonce_loss(*rows, symmetric=True, max_workspace_bytes=workspace, backend="cpp")
    loss.backward()
    assert sum(pairs) == similarities * 150 * 150
    exact = [x.detach().double().requires_grad_() for x in rows]
    fastcse.infonce_loss(*exact, symmetric=True, backend="reference").backward()
    for x, y in zip(rows, exact):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-4, atol=1e-7)
