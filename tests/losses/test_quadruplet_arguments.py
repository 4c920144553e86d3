"""Arguments of quadruplet_loss that the table of all losses does not hold."""

import pytest
import torch

import fastcse


def rows(**changed):
    """Good arguments of four rows of three numbers, some of them changed; `None` leaves one out."""
    given = {name: torch.randn(4, 3) for name in ("anchor", "positive", "batch_negative", "corpus_negative")}
    return {name: x for name, x in {**given, **changed}.items() if x is not None}


def index(**changed):
    """Good arguments of the index form."""
    return rows(**{"batch_negative": torch.tensor([1, -1, 4, 0]), "candidate": torch.randn(5, 3), **changed})


def test_rows_without_columns_are_refused():
    with pytest.raises(ValueError, match=r"anchor.*\(4, 0\)"):
        fastcse.quadruplet_loss(**{name: torch.randn(4, 0) for name in rows()})


@pytest.mark.parametrize("make", [rows, index])
@pytest.mark.parametrize("forced", ["cpp", "triton"])
def test_float64_runs_on_the_reference_only(make, forced):
    wide = {k: x.double() if x.is_floating_point() else x for k, x in make().items()}
    with pytest.raises(ValueError, match="float64") as caught:
        fastcse.quadruplet_loss(**wide, backend=forced)
    assert forced in str(caught.value)
    assert fastcse.quadruplet_loss(**wide).dtype == torch.float64
    assert fastcse.last_backend() == "reference"


@pytest.mark.parametrize("weights", [[0.9, 0.11], (1, 0)], ids=str)
def test_weights_may_be_a_list_or_whole_numbers(weights):
    arguments = rows(margin=1)
    expected = fastcse.quadruplet_loss(**arguments, weights=tuple(float(w) for w in weights))
    torch.testing.assert_close(fastcse.quadruplet_loss(**arguments, weights=weights), expected)


def test_good_arguments_are_no_errors():
    # Without this the table could be wrong about everything else.
    for arguments in (rows(), index(), rows(form="classic", margin=(0.1, 0.2)), rows(form="classic", margin=0.1)):
        assert fastcse.quadruplet_loss(**arguments).shape == ()


def test_the_options_are_named():
    four = [*rows().values()]
    with pytest.raises(TypeError):
        fastcse.quadruplet_loss(*four, None)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("weights", (-0.25, 0.1)),
        ("margin", float("nan")),
        ("form", "triplet"),
        ("reduction", "average"),
        ("backend", "cuda_magic"),
    ],
)
def test_the_module_refuses_what_the_function_refuses(argument, value):
    with pytest.raises(ValueError, match=argument):
        fastcse.QuadrupletLoss(**{argument: value})(*rows().values())
