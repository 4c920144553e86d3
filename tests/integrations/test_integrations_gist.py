"""The guided losses beside sentence-transformers' own."""

import doctest

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as peer
from test_integrations_multiple_negatives import assert_same_in_model, batches, columns
from tiny_encoder import write_tiny_encoder

from fastcse.integrations.sentence_transformers import gist as ours


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return [write_tiny_encoder(folder / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture
def encoder(paths):
    return SentenceTransformer(paths[0], device="cpu")


@pytest.fixture
def guide(paths):
    made = SentenceTransformer(paths[1], device="cpu")
    return made.eval()


def by_hand(leaves, guides, o):
    """The loss in whole matrices, from the paper's formula; the peer's class takes no embeddings."""
    cosine = torch.nn.CosineSimilarity(dim=-1)
    (a, p, *negatives), (ga, gp, *g_negatives) = leaves, guides
    sides = [(a, p, ga, gp), *[(a, n, ga, gn) for n, gn in zip(negatives, g_negatives)]]
    sides += [(a, a, ga, ga)] * o["contrast_anchors"] + [(p, p, gp, gp)] * o["contrast_positives"]
    bar = cosine(ga, gp)
    bar = bar - o["margin"] * (bar.abs() if o["margin_strategy"] == "relative" else 1)
    logits = []
    for k, (x, y, gx, gy) in enumerate(sides):
        false = cosine(gx[:, None], gy[None]) > bar[:, None]
        if k == 0:
            false &= ~torch.eye(len(a), dtype=torch.bool)
        logits.append(cosine(x[:, None], y[None]).masked_fill(false, -torch.inf))
    return torch.nn.functional.cross_entropy(torch.cat(logits, 1) / o["temperature"], torch.arange(len(a)))


OPTIONS = [
    {"margin_strategy": strategy, "margin": margin, "contrast_anchors": anchors, "contrast_positives": positives}
    for strategy, margin in [("absolute", 0.0), ("absolute", 0.2), ("relative", 0.3), ("relative", -0.4)]
    for anchors, positives in [(True, True), (True, False), (False, True), (False, False)]
]

# The tiny encoder's embeddings lie close together: a wide margin would leave no negative.
IN_MODEL = [
    {"margin_strategy": "absolute", "margin": 0.0, "contrast_anchors": True, "contrast_positives": False},
    {"margin_strategy": "relative", "margin": -0.05, "contrast_anchors": False, "contrast_positives": True},
]


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_embeddings(encoder, guide, options, count, chunk, monkeypatch):
    options = {"temperature": 0.1, **options}
    leaves, guides = columns(count, rows=9, dtype=torch.float64), columns(count, rows=9, width=7, dtype=torch.float64)
    blocks = count - 1 + options["contrast_anchors"] + options["contrast_positives"]
    monkeypatch.setattr(ours, "LOGITS", chunk * 9 * blocks)
    monkeypatch.setattr(ours, "FEWEST", 1)
    loss = ours.GISTEmbedLoss(encoder, guide, **options)
    got = loss.compute_loss_from_embeddings(leaves, guides)
    expected = by_hand(leaves, guides, options)
    assert loss.used_backend == "torch"
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    wanted = torch.autograd.grad(expected, leaves)
    for one, other in zip(torch.autograd.grad(3 * got, leaves), wanted):
        torch.testing.assert_close(one, 3 * other, rtol=1e-9, atol=1e-11)
    single = [x.detach().float().requires_grad_() for x in leaves]
    got = loss.compute_loss_from_embeddings(single, [g.float() for g in guides])
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-6)
    for one, other in zip(torch.autograd.grad(got, single), wanted):
        torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=2e-5)


def test_copies_of_the_positive_are_equal_to_it(encoder, guide):
    # However they are rounded: here by their lengths, in a product by their places.
    loss = ours.GISTEmbedLoss(encoder, guide, contrast_anchors=False, contrast_positives=False, temperature=1.0)
    one, other = torch.randn(2, 33)
    length = torch.arange(1.0, 68.0)[:, None].sqrt()
    guides = [one.expand(67, 33), other * length]
    got = loss.compute_loss_from_embeddings([torch.randn(67, 8), torch.randn(1, 8).expand(67, 8)], guides)
    torch.testing.assert_close(got, torch.tensor(67.0).log())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_similarities_stay_exact(encoder, guide, dtype):
    leaves, guides = columns(2, rows=30, dtype=dtype), columns(2, rows=30)
    loss = ours.GISTEmbedLoss(encoder, guide)
    expected = loss.compute_loss_from_embeddings([x.float() for x in leaves], guides)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss.compute_loss_from_embeddings(leaves, guides)
    torch.testing.assert_close(got, expected)
    assert [g.dtype for g in torch.autograd.grad(got, leaves)] == [dtype] * 2


@pytest.mark.parametrize("options", IN_MODEL, ids=str)
@pytest.mark.parametrize(("cached", "count"), [(False, 2), (False, 3), (True, 2), (True, 5)])
@pytest.mark.parametrize("retokenize", [False, True])
def test_parameters_get_the_peers_gradient(encoder, guide, options, cached, count, retokenize):
    if retokenize:
        guide.max_seq_length = 5  # it reads the beginning only
    name, more = ("CachedGISTEmbedLoss", {"mini_batch_size": 3}) if cached else ("GISTEmbedLoss", {})
    mine, theirs = (getattr(place, name)(encoder, guide, temperature=0.05, **options, **more) for place in (ours, peer))
    assert mine.must_retokenize == theirs.must_retokenize == retokenize
    assert_same_in_model(encoder, mine, theirs, batches(encoder, count))
    assert all(p.grad is None for p in guide.parameters())


@pytest.mark.parametrize("cached", [False, True])
def test_inside_matryoshka(encoder, guide, cached):
    name, more = ("CachedGISTEmbedLoss", {"mini_batch_size": 3}) if cached else ("GISTEmbedLoss", {})
    mine, theirs = (
        peer.MatryoshkaLoss(encoder, getattr(place, name)(encoder, guide, temperature=0.1, **more), [32, 16, 5])
        for place in (ours, peer)
    )
    assert_same_in_model(encoder, mine, theirs, batches(encoder, 3))


def test_cached_forgets_the_batch_before(encoder, guide):
    encoder.eval()
    loss, first, second = ours.CachedGISTEmbedLoss(encoder, guide), batches(encoder, 2), batches(encoder, 3)[1:]
    loss(first)
    torch.testing.assert_close(loss(second), ours.CachedGISTEmbedLoss(encoder, guide)(second))


@pytest.mark.parametrize("name", ["GISTEmbedLoss", "CachedGISTEmbedLoss"])
@pytest.mark.parametrize("rows", [1, 2])
def test_evaluation_and_a_short_last_batch(encoder, guide, name, rows):
    encoder.eval()
    with torch.no_grad():
        got, expected = (
            getattr(place, name)(encoder, guide)(batches(encoder, 2, rows=rows), None) for place in (ours, peer)
        )
    assert not got.requires_grad
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_what_the_model_card_reads(encoder, guide):
    for name in "GISTEmbedLoss", "CachedGISTEmbedLoss":
        mine, theirs = (getattr(place, name)(encoder, guide, margin=0.1) for place in (ours, peer))
        assert mine.get_config_dict() == theirs.get_config_dict()
        assert "2402.16829" in mine.citation


def test_wrong_options_are_named(encoder, guide):
    for options, word in [({"temperature": 0}, "temperature"), ({"margin_strategy": "half"}, "margin_strategy")]:
        with pytest.raises(ValueError, match=word):
            ours.GISTEmbedLoss(encoder, guide, **options)
    with pytest.raises(ValueError, match="guiding model must have a tokenizer"):
        ours.GISTEmbedLoss(encoder, torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="got 1 and 1"):
        ours.GISTEmbedLoss(encoder, guide).compute_loss_from_embeddings(columns(1), columns(1))
    with pytest.raises(ValueError, match="mini_batch_size"):
        ours.CachedGISTEmbedLoss(encoder, guide, mini_batch_size=0)


def test_examples_run():
    assert doctest.testmod(ours).failed == 0


def test_a_negative_as_similar_to_the_guide_as_the_positive_stays():
    a, n = torch.eye(2).split(1)
    options = ours.Guided(1.0, False, 0.0, contrast_anchors=False, contrast_positives=False, first=0)
    loss = ours.guided_loss([a, a, n], [a, a, a], options)
    torch.testing.assert_close(loss, torch.tensor(-1.0).exp().log1p())
