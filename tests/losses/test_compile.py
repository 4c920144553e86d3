"""torch.compile(fullgraph=True) for every public function and option."""

import pytest
import torch
from calls import assert_compiles, both_ways, everything, views
from torch._dynamo.testing import CompileCounterWithBackend

import fastcse
from fastcse import focal_infonce_loss, infonce_loss

LOSSES = [infonce_loss, focal_infonce_loss]
every_loss = pytest.mark.parametrize("function", LOSSES, ids=["infonce", "focal"])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "none", "sum"])


CALLS = {
    "infonce": infonce_loss,
    "focal": focal_infonce_loss,
    "positive": lambda a, c, **o: infonce_loss(a, c, torch.arange(len(a), device=a.device).flip(0), **o),
    "raw rows": lambda a, c, **o: infonce_loss(a, c, normalize=False, temperature=2.0, **o),
    "detached": lambda a, c, **o: focal_infonce_loss(a, c, detach_modulation=True, margin=0.1, **o),
}


@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_compile(device, name, symmetric, reduction):
    assert_compiles(lambda a, c: CALLS[name](a, c, symmetric=symmetric, reduction=reduction), views(device)[:2])


@every_loss
def test_compile_on_every_backend(device, backend, function):
    assert_compiles(lambda a, c: function(a, c, backend=backend), views(device)[:2])
    assert fastcse.last_backend() == backend
    assert_compiles(lambda a, c: function(a, c, backend=backend, symmetric=True, reduction="none"), views(device)[:2])
    assert fastcse.last_backend() == backend


@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_compile_everything(device, symmetric, reduction):
    def function(a, c, h):
        return everything(a, c, h, symmetric=symmetric, reduction=reduction)

    assert_compiles(function, views(device))


@every_loss
@every_reduction
def test_compile_learnable_temperature(device, function, reduction):
    a, c, _ = views(device)
    temperature = torch.tensor(0.2, device=device, requires_grad=True)
    assert_compiles(lambda a, c, t: function(a, c, temperature=t, reduction=reduction), [a, c, temperature])


@every_loss
def test_compile_stats(device, function):
    leaves = views(device)[:2]
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, c: function(a, c, return_stats=True), fullgraph=True, backend="aot_eager")
    got, expected = compiled(*leaves), function(*leaves, return_stats=True)
    torch.testing.assert_close(got.loss, expected.loss)
    for one, two in zip(got.stats[:-1], expected.stats):
        torch.testing.assert_close(one, two)
        assert not one.requires_grad


@pytest.mark.parametrize("normalize", [True, False])
def test_compile_similarity(device, normalize):
    assert_compiles(lambda a, c: fastcse.similarity(a, c, normalize=normalize), views(device)[:2])


def test_compile_geometry(device):
    a, b = views(device, 6, 6)[:2]
    assert_compiles(fastcse.alignment, [a, b])
    assert_compiles(fastcse.uniformity, [a])


@pytest.mark.parametrize("module", [fastcse.InfoNCELoss, fastcse.FocalInfoNCELoss])
@pytest.mark.parametrize("options", [{}, {"learnable_temperature": True}, {"symmetric": True}], ids=str)
def test_compile_modules(device, module, options):
    layer = module(**options).to(device)
    assert_compiles(lambda a, c: layer(a, c), views(device)[:2])


def test_compile_without_gradients(device):
    leaves = views(device)[:2]
    torch._dynamo.reset()
    compiled = torch.compile(focal_infonce_loss, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*leaves), focal_infonce_loss(*leaves))


def test_inductor_in_a_model(device):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 5).to(device)

    def step(a, c):
        return focal_infonce_loss(layer(a).tanh(), c, symmetric=True) * 2 + infonce_loss(a, layer(c))

    leaves = [*views(device)[:2], layer.weight]
    compiled = torch.compile(step, fullgraph=True, backend="inductor")
    both_ways(lambda: compiled(*leaves[:2]), lambda: step(*leaves[:2]), leaves)


@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_batch_size_is_no_constant(device, symmetric, reduction):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def function(a, c, h):
        return focal_infonce_loss(a, c, negatives=h, symmetric=symmetric, reduction=reduction)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for n in (5, 7, 9, 12, 21):
        leaves = views(device, n, n + 3)
        both_ways(lambda leaves=leaves: compiled(*leaves), lambda leaves=leaves: function(*leaves), leaves)
    assert counter.frame_count <= 2, f"compiled {counter.frame_count} times for five batch sizes"
