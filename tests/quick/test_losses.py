"""Every property of every loss, on the reference backend."""

import pytest
import torch
from conformance import LOSSES
from properties import PROPERTIES

import fastcse

# Row-wise functions that are no losses by name.
ROWWISE = {"adversarial_positive", "alignment", "uniformity", "similarity", "hardest_negative"}


def test_every_public_loss_is_in_the_table():
    public = {name for name in fastcse.__all__ if name.endswith("_loss")}
    assert public | ROWWISE == {case.function.__name__ for case in LOSSES.values()} - {"everything"}


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_every_property(name, check):
    check(LOSSES[name], "reference", torch.device("cpu"))
