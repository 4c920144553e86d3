"""Bad arguments of quadruplet_loss are errors that name the argument and both values."""

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


def either(one, two):
    return rf"(?s){one}.*{two}|{two}.*{one}"


R = torch.randn
BAD = {
    "anchor of one dimension": (rows(anchor=R(11)), "anchor", "11"),
    "no anchors": (rows(anchor=R(0, 3)), "anchor", r"\(0, 3\)"),
    "no features": (rows(**{k: R(4, 0) for k in rows()}), "anchor", r"\(4, 0\)"),
    "integers": (rows(anchor=torch.ones(4, 3, dtype=torch.int64)), "anchor", "int64"),
    "anchor no tensor": (rows(anchor=[[1.0, 2.0, 3.0]]), "anchor", "list"),
    "positive count": (rows(positive=R(13, 3)), "positive", either("4", "13")),
    "positive width": (rows(positive=R(4, 17)), "positive", either(r"\b3\b", "17")),
    "positive dtype": (rows(positive=R(4, 3).half()), "positive", either("float32", "float16")),
    "positive device": (rows(positive=R(4, 3, device="meta")), "positive", either("cpu", "meta")),
    "positive of one dimension": (rows(positive=R(11)), "positive", "11"),
    "corpus_negative count": (rows(corpus_negative=R(13, 3)), "corpus_negative", either("4", "13")),
    "corpus_negative of one row": (rows(corpus_negative=R(1, 3)), "corpus_negative", either("4", "1")),
    "corpus_negative width": (rows(corpus_negative=R(4, 17)), "corpus_negative", either(r"\b3\b", "17")),
    "corpus_negative dtype": (rows(corpus_negative=R(4, 3).bfloat16()), "corpus_negative", either("float32", "bfloat")),
    "corpus_negative device": (rows(corpus_negative=R(4, 3, device="meta")), "corpus_negative", either("cpu", "meta")),
    "batch_negative count": (rows(batch_negative=R(13, 3)), "batch_negative", either("4", "13")),
    "batch_negative width": (rows(batch_negative=R(4, 17)), "batch_negative", either(r"\b3\b", "17")),
    "batch_negative dtype": (rows(batch_negative=R(4, 3).double()), "batch_negative", either("float32", "float64")),
    "batch_negative device": (rows(batch_negative=R(4, 3, device="meta")), "batch_negative", either("cpu", "meta")),
    "batch_negative of three dimensions": (rows(batch_negative=R(4, 3, 7)), "batch_negative", "7"),
    "index length": (index(batch_negative=torch.arange(13)), "batch_negative", either("4", "13")),
    "index dtype": (index(batch_negative=torch.ones(4, dtype=torch.int32)), "batch_negative", either("int64", "int32")),
    "index of floats": (index(batch_negative=R(4)), "batch_negative", either("int64", "float32")),
    "index device": (index(batch_negative=torch.arange(4, device="meta")), "batch_negative", either("cpu", "meta")),
    "index of two dimensions": (index(batch_negative=torch.ones(4, 3, dtype=torch.int64)), "batch_negative", "int64"),
    "candidate missing": (index(candidate=None), "candidate", "batch_negative"),
    "candidate superfluous": (rows(candidate=R(5, 3)), "candidate", "batch_negative"),
    "candidate width": (index(candidate=R(5, 17)), "candidate", either(r"\b3\b", "17")),
    "candidate dtype": (index(candidate=R(5, 3).half()), "candidate", either("float32", "float16")),
    "candidate device": (index(candidate=R(5, 3, device="meta")), "candidate", either("cpu", "meta")),
    "no candidates": (index(candidate=R(0, 3)), "candidate", r"\(0, 3\)"),
    "form": (rows(form="triplet"), "form", either("triplet", "weighted")),
    "reduction": (rows(reduction="average"), "reduction", either("average", "mean")),
    "backend": (rows(backend="cuda_magic"), "backend", either("cuda_magic", "reference")),
    "a negative weight": (rows(weights=(-0.25, 0.11)), "weights", "-0.25"),
    "another negative weight": (rows(weights=(0.9, -0.125)), "weights", "-0.125"),
    "a weight that is no number": (rows(weights=(0.9, float("nan"))), "weights", "nan"),
    "an infinite weight": (rows(weights=(float("inf"), 0.1)), "weights", "inf"),
    "three weights": (rows(weights=(0.9, 0.11, 0.625)), "weights", "0.625"),
    "one weight": (rows(weights=0.625), "weights", "0.625"),
    "margin that is no number": (rows(margin=float("nan")), "margin", "nan"),
    "margin of words": (rows(margin="wide"), "margin", "wide"),
    "two margins for one hinge": (rows(margin=(0.125, 0.25)), "margin", r"0\.125"),
    "classic margin that is no number": (rows(form="classic", margin=float("nan")), "margin", "nan"),
    "classic second margin": (rows(form="classic", margin=(0.1, float("nan"))), "margin", "nan"),
    "three margins": (rows(form="classic", margin=(0.1, 0.2, 0.625)), "margin", r"0\.625"),
    "classic with weights": (rows(form="classic", weights=(0.9, 0.625)), "weights", either("classic", r"0\.625")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_value_errors_that_name_both_values(name):
    arguments, argument, values = BAD[name]
    with pytest.raises(ValueError, match=values) as caught:
        fastcse.quadruplet_loss(**arguments)
    assert argument in str(caught.value)


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
