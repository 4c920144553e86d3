"""Random shapes and options of the losses: the compiled backend equals the oracle."""

import pytest
from hypothesis import given, settings
from random_cases import LARGEST, cases, check, choices


@settings(max_examples=15)
@given(drawn=cases(LARGEST["cpp"]), **choices)
@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
def test_the_loss_equals_the_oracle(run, drawn, reduction, learn):
    check(run, drawn, reduction, learn)
