"""Every property of every loss on the fused backends, and under torch.compile."""

import pytest
from conformance import LOSSES
from properties import PROPERTIES, compiles_whole, twice_the_same_bits, value_and_gradients

every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_every_loss_has_every_property(name, check, backend, device):
    if backend == "triton" and device.type == "cpu" and check not in (value_and_gradients, twice_the_same_bits):
        pytest.skip("in the interpreter, kernels are covered by their flags; a GPU runs all")
    check(LOSSES[name], backend, device)


@every_loss
def test_every_loss_compiles_whole(name, device):
    compiles_whole(LOSSES[name], None, device)
