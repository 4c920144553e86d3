"""Rows of a chunk and bytes of its gradient weights, as each backend plans them."""

from types import SimpleNamespace

import pytest
import torch

import fastcse
from fastcse import native
from fastcse.kernels import workspace

GIB = 1 << 30


@pytest.fixture
def h100(monkeypatch):
    """A function: the blocks of (m, d) bfloat16 candidates on a GPU of 132 multiprocessors."""
    gpu = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(workspace.torch, "empty", lambda *shape, **_: torch.zeros(0).expand(*shape, 0))
    rows = {"device": torch.device("cuda"), "dtype": torch.bfloat16}
    return lambda m, d: [SimpleNamespace(rows=SimpleNamespace(shape=(m, d), **rows))]


# A tile is 128 x 256: D = 768 has 3 in a row, so that 44 rows of tiles, 5,632 rows, fill 132 multiprocessors.
@pytest.mark.parametrize(
    ("n", "m", "d", "limit", "rows"),
    [
        (4096, 4096, 768, None, 4096),  # no more than there are
        (65536, 65536, 384, None, 25344),  # 3 waves of 66 x 128
        (65536, 65536, 768, None, 16896),  # 3 waves, where 4 GiB hold 32,768 rows
        (65536, 65536, 768, 2 * GIB, 11264),  # 2 waves within 16,384 rows
        (65536, 65536, 768, GIB, 5632),
        (1 << 20, 1 << 20, 768, None, 2048),  # less than a wave: what 4 GiB hold
        (1 << 20, 1 << 20, 768, GIB, 512),
        (1 << 22, 1 << 22, 1024, GIB, 128),  # never less than a tile
        (1 << 22, 1 << 22, 1024, 1, 128),
    ],
)
def test_chunks_on_a_gpu_are_whole_waves_within_the_workspace(h100, n, m, d, limit, rows):
    blocks = h100(m, d)
    assert workspace.plan_rows(n, blocks, True, limit) == rows
    buffer = workspace.Workspace(rows, blocks, True).buffers[0]
    assert (buffer.shape[0] % 256, buffer.shape[1] % 256) == (0, 0)
    assert rows <= buffer.shape[0] < rows + 256
    assert m <= buffer.shape[1] < m + 256


def test_sums_alone_take_four_waves(h100):
    assert workspace.plan_rows(65536, h100(65536, 768), False, None) == 4 * 5632


@pytest.mark.parametrize(
    ("n", "m", "keep", "limit", "rows"),
    [
        (64, 64, True, None, 64),
        (8192, 2048, True, None, 1024),
        (8192, 8192, True, None, 1024),  # 32 MiB hold exactly 1,024
        (8192, 16384, True, None, 512),
        (8192, 8192, True, 16 << 20, 512),
        (8192, 1 << 20, True, None, 128),
        (8192, 1 << 20, False, None, 1024),
    ],
)
def test_chunks_on_a_cpu_are_what_the_workspace_holds(n, m, keep, limit, rows):
    blocks = [SimpleNamespace(rows=torch.empty(m, 1, device="meta"))]
    assert native.plan_rows(n, blocks, keep, limit) == rows


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_of_several_chunks_add_up(forced, backend, device, symmetric):
    n = 66 if backend == "triton" else 150  # two chunks: of 64 in the interpreter, of 128 on the CPU
    g = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 4, generator=g) for _ in range(2)]
    exact = [x.double().requires_grad_() for x in rows]
    fastcse.infonce_loss(*exact, temperature=0.2, symmetric=symmetric).backward()
    rows = [x.to(device).requires_grad_() for x in rows]
    forced(fastcse.infonce_loss, *rows, temperature=0.2, symmetric=symmetric, max_workspace_bytes=1).backward()
    for x, truth in zip(rows, exact):
        torch.testing.assert_close(x.grad.cpu().double(), truth.grad, rtol=1e-4, atol=1e-7)
