"""The multiple negatives ranking losses beside sentence-transformers' own, in everything that a trainer may ask."""

import doctest
import logging

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as peer
from sentence_transformers.util import cos_sim, dot_score, euclidean_sim
from tiny_encoder import sentences, write_tiny_encoder

import fastcse
from fastcse.integrations.sentence_transformers import multiple_negatives as ours

EVERY = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
Q2D, Q2Q, D2Q, D2D = EVERY
DIRECTIONS = [(Q2D,), (Q2D, Q2Q), (Q2D, D2Q), (Q2D, D2D), (Q2D, Q2Q, D2D), (D2Q, Q2D, D2D), EVERY]
PARTITIONED = [(d, "joint") for d in DIRECTIONS] + [((Q2D,), "per_direction"), ((Q2D, D2Q), "per_direction")]
HARDNESS = [None, "in_batch_negatives", "hard_negatives", "all_negatives"]


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory):
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def encoder(encoder_path):
    return SentenceTransformer(encoder_path, device="cpu")


def columns(count, rows=6, width=16, dtype=torch.float32, spread=1.0):
    """Leaves that lie close enough together for every term to matter."""
    middle = torch.randn(rows, width, dtype=torch.float64)
    made = [middle + spread * torch.randn(rows, width, dtype=torch.float64) for _ in range(count)]
    return [x.to(dtype).requires_grad_() for x in made]


def assert_same(loss, expected, leaves, rtol, atol):
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=atol)
    for got, want in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def compare(leaves, **options):
    """Our loss beside the peer's: value and gradients, and the backend that ran."""
    rtol, atol = (1e-9, 1e-11) if leaves[0].dtype == torch.float64 else (2e-4, 3e-5)
    loss = ours.MultipleNegativesRankingLoss(None, **options)
    got = loss.compute_loss_from_embeddings(leaves)
    expected = peer.MultipleNegativesRankingLoss(None, **options).compute_loss_from_embeddings(leaves, None)
    assert_same(got, expected, leaves, rtol, atol)
    assert loss.used_backend == fastcse.last_backend() != None  # noqa: E711
    return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(("directions", "partition_mode"), PARTITIONED)
def test_all_directions(directions, partition_mode, count, dtype):
    loss = compare(columns(count, dtype=dtype), directions=directions, partition_mode=partition_mode)
    assert loss.used_backend == ("reference" if dtype == torch.float64 else "cpp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("hardness_mode", HARDNESS[1:])
@pytest.mark.parametrize(("directions", "partition_mode"), PARTITIONED)
def test_hardness(hardness_mode, directions, partition_mode, count, dtype):
    compare(
        columns(count, dtype=dtype), directions=directions, partition_mode=partition_mode, hardness_mode=hardness_mode,
        hardness_strength=7.0,
    )  # fmt: skip


@pytest.mark.parametrize("hardness_mode", HARDNESS)
@pytest.mark.parametrize(("similarity_fct", "scale"), [(cos_sim, 100.0), (cos_sim, 1.0), (dot_score, 0.2)])
def test_similarity_and_scale(similarity_fct, scale, hardness_mode):
    for directions in (Q2D,), EVERY:
        compare(
            columns(3, dtype=torch.float64), similarity_fct=similarity_fct, scale=scale, directions=directions,
            hardness_mode=hardness_mode, hardness_strength=2.0,
        )  # fmt: skip


@pytest.mark.parametrize("hardness_mode", HARDNESS)
@pytest.mark.parametrize(("directions", "partition_mode"), PARTITIONED)
@pytest.mark.parametrize("rows", [1, 2])
def test_a_short_last_batch(rows, directions, partition_mode, hardness_mode):
    for count in 2, 3:
        compare(
            columns(count, rows=rows), directions=directions, partition_mode=partition_mode,
            hardness_mode=hardness_mode, hardness_strength=5.0,
        )  # fmt: skip


@pytest.mark.parametrize("hardness_mode", HARDNESS)
def test_positives_that_are_found_already(hardness_mode):
    # The negatives' sum is 1e-43 of the positive's: no term may turn it into a NaN.
    rows = torch.eye(6, 16, dtype=torch.float32).requires_grad_()
    near = (torch.eye(6, 16) + 1e-3).requires_grad_()
    options = {"scale": 100.0, "hardness_mode": hardness_mode, "hardness_strength": 5.0, "directions": EVERY}
    loss = ours.MultipleNegativesRankingLoss(None, **options).compute_loss_from_embeddings([rows, near])
    gradients = torch.autograd.grad(loss, [rows, near])
    assert all(torch.isfinite(x).all() for x in (loss, *gradients))
    truth = [x.detach().double().requires_grad_() for x in (rows, near)]
    expected = peer.MultipleNegativesRankingLoss(None, **options).compute_loss_from_embeddings(truth, None)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for got, want in zip(gradients, torch.autograd.grad(expected, truth)):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4)


def test_a_nan_is_not_hidden():
    leaves = columns(3)
    with torch.no_grad():
        leaves[2][2, 3] = torch.nan  # in a hard negative: in no term but the sweep's
    for mode in HARDNESS:
        loss = ours.MultipleNegativesRankingLoss(None, hardness_mode=mode, hardness_strength=1.0)
        assert loss.compute_loss_from_embeddings(leaves).isnan()


def test_any_other_similarity_runs_in_the_peers_class_and_says_so(caplog):
    leaves = columns(3)
    options = {"similarity_fct": euclidean_sim, "scale": 2.0, "directions": EVERY}
    loss = ours.MultipleNegativesRankingLoss(None, **options)
    with caplog.at_level(logging.WARNING):
        got = loss.compute_loss_from_embeddings(leaves)
        loss.compute_loss_from_embeddings(leaves)
    said = [record.message for record in caplog.records if "similarity_fct" in record.message]
    assert len(said) == 1
    assert "euclidean_sim" in said[0]
    assert loss.used_backend == "sentence-transformers"
    expected = peer.MultipleNegativesRankingLoss(None, **options).compute_loss_from_embeddings(leaves, None)
    assert_same(got, expected, leaves, 0, 0)


# ---------------------------------------------------------------- in a model


def batches(encoder, count, rows=7):
    return [encoder.preprocess(sentences(rows, seed=k)) for k in range(count)]


def parameter_gradients(encoder, loss, features):
    encoder.zero_grad()
    value = loss([dict(f) for f in features], None)
    value.backward()
    return value.detach(), {k: p.grad.clone() for k, p in encoder.named_parameters() if p.grad is not None}


def assert_same_in_model(encoder, mine, theirs, features):
    encoder.train()
    torch.manual_seed(5)
    got, gradients = parameter_gradients(encoder, mine, features)
    torch.manual_seed(5)
    expected, wanted = parameter_gradients(encoder, theirs, features)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    assert any(g.abs().max() > 1e-3 for g in wanted.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=2e-5, msg=name)


KINDS = [
    {"directions": (Q2D, D2Q), "partition_mode": "per_direction"},
    {"hardness_mode": "all_negatives", "hardness_strength": 5.0, "directions": EVERY},
]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_parameters_get_the_peers_gradient(encoder, options, cached, count):
    name, more = ("CachedMultipleNegativesRankingLoss", {"mini_batch_size": 3}) if cached else ("", {})
    name = name or "MultipleNegativesRankingLoss"
    mine, theirs = (getattr(place, name)(encoder, **options, **more) for place in (ours, peer))
    assert_same_in_model(encoder, mine, theirs, batches(encoder, count))


@pytest.mark.parametrize("cached", [False, True])
def test_inside_matryoshka(encoder, cached):
    name, more = ("CachedMultipleNegativesRankingLoss", {"mini_batch_size": 3}) if cached else ("", {})
    name = name or "MultipleNegativesRankingLoss"
    mine, theirs = (
        peer.MatryoshkaLoss(encoder, getattr(place, name)(encoder, **KINDS[1], **more), [32, 16, 5], [1, 0.5, 2])
        for place in (ours, peer)
    )
    assert_same_in_model(encoder, mine, theirs, batches(encoder, 3))


def test_cached_by_tokens_is_the_same(encoder):
    mine = ours.CachedMultipleNegativesRankingLoss(encoder, mini_batch_num_tokens=20)
    theirs = peer.CachedMultipleNegativesRankingLoss(encoder, mini_batch_num_tokens=20)
    assert_same_in_model(encoder, mine, theirs, batches(encoder, 2))


@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
def test_evaluation_needs_no_gradient(encoder, name):
    encoder.eval()
    with torch.no_grad():
        got, expected = (getattr(place, name)(encoder)(batches(encoder, 2), None) for place in (ours, peer))
    assert not got.requires_grad
    torch.testing.assert_close(got, expected)


def test_what_the_model_card_reads(encoder):
    for name in "MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss":
        mine, theirs = (getattr(place, name)(encoder, scale=50.0, directions=EVERY) for place in (ours, peer))
        config = mine.get_config_dict()
        assert {k: config[k] for k in theirs.get_config_dict()} == theirs.get_config_dict()
        assert mine.temperature == theirs.temperature
        for directions, mode in PARTITIONED:
            one, other = (getattr(p, name)(encoder, directions=directions, partition_mode=mode) for p in (ours, peer))
            number = next(w for w in other.citation.split("\n") if "eprint" in w).split("{")[1].rstrip("},")
            assert number in one.citation


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"scale": 0.0}, "(?i)scale"),
        ({"scale": float("nan")}, "(?i)scale"),
        ({"directions": ()}, "direction"),
        ({"directions": (D2Q,)}, "query_to_doc"),
        ({"directions": (Q2D, "doc")}, "directions"),
        ({"partition_mode": "each"}, "partition_mode"),
        ({"partition_mode": "per_direction", "directions": EVERY}, "doc_to_doc"),
        ({"hardness_mode": "hard"}, "hardness_mode"),
        ({"hardness_strength": -1.0}, "hardness_strength"),
    ],
)
def test_wrong_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        ours.MultipleNegativesRankingLoss(None, **options)


def test_wrong_columns_and_pieces_are_named(encoder):
    with pytest.raises(ValueError, match="got 1"):
        ours.MultipleNegativesRankingLoss(encoder).compute_loss_from_embeddings(columns(1))
    with pytest.raises(ValueError, match="got 1"):
        ours.CachedMultipleNegativesRankingLoss(encoder)(batches(encoder, 1))
    with pytest.raises(ValueError, match="mini_batch_size"):
        ours.CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=0)
    with pytest.raises(ValueError, match="mini_batch_num_tokens"):
        ours.CachedMultipleNegativesRankingLoss(encoder, mini_batch_num_tokens=0)


def test_examples_run():
    assert doctest.testmod(ours).failed == 0
