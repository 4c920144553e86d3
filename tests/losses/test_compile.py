"""torch.compile(fullgraph=True) for every public function and option."""

import pytest
import torch
from calls import assert_compiles, both_ways, views

import fastcse
from fastcse import focal_infonce_loss, infonce_loss

LOSSES = [infonce_loss, focal_infonce_loss]
every_loss = pytest.mark.parametrize("function", LOSSES, ids=["infonce", "focal"])


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
