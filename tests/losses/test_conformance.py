"""Every property of every loss on the fused backends, and under torch.compile."""

import pytest
from conformance import LOSSES
from conftest import BACKENDS, DEVICE
from properties import (
    PROPERTIES,
    a_nan_stays_in_its_row,
    compiles_whole,
    value_and_gradients,
    zero_rows_have_no_gradient,
)

import fastcse

every_loss = pytest.mark.parametrize("name", LOSSES)


# On the CPU the reference's are in tests/quick.
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference" or DEVICE == "cuda"], indirect=True)
@every_loss
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_every_loss_has_every_property(name, check, backend, device):
    check(LOSSES[name], backend, device)


@pytest.mark.interpreted
@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize("check", [value_and_gradients, a_nan_stays_in_its_row, zero_rows_have_no_gradient])
@pytest.mark.parametrize("name", ["quadruplet", "quadruplet classic", "adversarial l2"])
def test_kernels_of_rows(name, check, backend, device):
    check(LOSSES[name], backend, device)


@every_loss
def test_every_loss_compiles_whole(name, device):
    compiles_whole(LOSSES[name], None, device)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "cpp"], indirect=True)
@pytest.mark.parametrize("name", ["hsimcse", "quadruplet classic", "adversarial l2"])
def test_what_is_compiled_runs_on_the_backend_asked_for(name, backend, device):
    compiles_whole(LOSSES[name], backend, device)
    assert fastcse.last_backend() == backend
