"""float64 by gradcheck, and what autocast must leave alone."""

import functools

import pytest
import torch
from calls import views

import fastcse
from fastcse import focal_infonce_loss, infonce_loss, quadruplet_loss

every_loss = pytest.mark.parametrize("function", [infonce_loss, focal_infonce_loss], ids=["infonce", "focal"])


def quadruplet_of_little_weight(a, c, *, backend=None):
    others = a.detach().flip(0)
    return quadruplet_loss(others, others, a, c, weights=(3e-3, 3e-3), margin=2.0, backend=backend)


@pytest.mark.parametrize("loss", ["infonce", "symmetric", "quadruplet"])
def test_a_loss_scale_saves_what_float16_cannot_hold(backend, device, loss):
    # The gradient of a mean over many rows is below float16's numbers; a GradScaler's factor comes with the upstream.
    options = {"temperature": 200.0, "symmetric": loss == "symmetric"}
    call = quadruplet_of_little_weight if loss == "quadruplet" else functools.partial(infonce_loss, **options)
    rows = [x.half().detach().requires_grad_() for x in views(device, 64, 64, 32)[:2]]
    exact = [x.detach().double().requires_grad_() for x in rows]
    (call(*rows, backend=backend) * 2.0**14).backward()
    assert fastcse.last_backend() == backend
    (call(*exact) * 2.0**14).backward()
    for x, y in zip(rows, exact):
        assert x.grad.dtype == torch.float16
        assert (x.grad.double() - y.grad).norm() <= 1e-3 * y.grad.norm()


# ---------------------------------------------------------------- autocast


def autocast(device):
    return torch.autocast(device.type, dtype=torch.bfloat16)


@every_loss
def test_autocast_behind_a_layer(forced, device, function):
    layer = torch.nn.Linear(16, 16, bias=False).to(device)
    a, c, _ = (z.detach() for z in views(device, 20, 20, 16))
    with autocast(device):
        rows = layer(a), layer(c)
        assert rows[0].dtype == torch.bfloat16
        loss = forced(function, *rows)
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32
    outside = forced(function, *(z.detach() for z in rows))
    torch.testing.assert_close(loss.detach(), outside, rtol=1e-6, atol=1e-6)
