"""The losses beside sentence-transformers' own: of embeddings, in a model, cached, inside Matryoshka."""

import doctest
import logging

import pytest
import torch
from launches import covering
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as peer
from sentence_transformers.util import cos_sim, dot_score, euclidean_sim
from tiny_encoder import sentences, write_tiny_encoder

import fastcse
from fastcse.integrations.sentence_transformers import gist
from fastcse.integrations.sentence_transformers import multiple_negatives as ranking

EVERY = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
Q2D, Q2Q, D2Q, D2D = EVERY
DIRECTIONS = [(Q2D,), (Q2D, Q2Q), (Q2D, D2Q), (Q2D, D2D), (Q2D, Q2Q, D2D), (D2Q, Q2D, D2D), EVERY]
PARTITIONED = [(d, "joint") for d in DIRECTIONS] + [((Q2D,), "per_direction"), ((Q2D, D2Q), "per_direction")]
HARDNESS = [None, "in_batch_negatives", "hard_negatives", "all_negatives"]
SIMILARITIES = {"default": {}, "cold": {"similarity_fct": cos_sim, "scale": 100.0}, "hot": {"scale": 1.0},
                "dot": {"similarity_fct": dot_score, "scale": 0.2}}  # fmt: skip
MNRL, CACHED, GIST, CACHED_GIST = NAMES = (
    "MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss", "GISTEmbedLoss", "CachedGISTEmbedLoss",
)  # fmt: skip
every_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return [write_tiny_encoder(folder / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture
def encoder(paths):
    return SentenceTransformer(paths[0], device="cpu")


@pytest.fixture
def guide(paths):
    return SentenceTransformer(paths[1], device="cpu").eval()


@pytest.fixture
def pair(encoder, guide):
    """Our loss of a name and the peer's, with the same options."""

    def make(name, **options):
        models = (encoder, guide) if "GIST" in name else (encoder,)
        ours = gist if "GIST" in name else ranking
        return [getattr(place, name)(*models, **options) for place in (ours, peer)]

    return make


def columns(count, rows=6, width=16, dtype=torch.float32):
    """Leaves that lie close enough together for every term to matter."""
    middle = torch.randn(rows, width, dtype=torch.float64)
    made = [middle + torch.randn(rows, width, dtype=torch.float64) for _ in range(count)]
    return [x.to(dtype).requires_grad_() for x in made]


def assert_same(loss, expected, leaves, rtol, atol, factor=1.0):
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=atol)
    wanted = torch.autograd.grad(expected, leaves)
    for got, want in zip(torch.autograd.grad(factor * loss, leaves), wanted):
        torch.testing.assert_close(got, factor * want, rtol=rtol, atol=atol)


def batches(encoder, count, rows=7):
    return [encoder.preprocess(sentences(rows, seed=k)) for k in range(count)]


def assert_same_in_model(encoder, mine, theirs, features):
    """Value and gradients by the parameters, under the same dropout."""
    encoder.train()
    made = []
    for loss in (mine, theirs):
        torch.manual_seed(5)
        encoder.zero_grad()
        value = loss([dict(f) for f in features], None)
        value.backward()
        gradients = {k: p.grad.clone() for k, p in encoder.named_parameters() if p.grad is not None}
        made.append((value.detach(), gradients))
    (got, gradients), (expected, wanted) = made
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    assert any(g.abs().max() > 1e-3 for g in wanted.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=2e-5, msg=name)


# ---------------------------------------------------------------- ranking, of embeddings


def test_ranking_by_every_pair_of_options():
    choices = {
        "way": PARTITIONED, "hardness": HARDNESS, "similarity": [*SIMILARITIES], "count": [2, 3, 4], "rows": [1, 2, 6],
        "dtype": [torch.float32, torch.float64],
    }  # fmt: skip
    for picked in covering(choices):
        (directions, mode), exact = picked["way"], picked["dtype"] == torch.float64
        options = dict(directions=directions, partition_mode=mode, **SIMILARITIES[picked["similarity"]])
        options |= dict(hardness_mode=picked["hardness"], hardness_strength=7.0)
        leaves = columns(picked["count"], picked["rows"], dtype=picked["dtype"])
        loss = ranking.MultipleNegativesRankingLoss(None, **options)
        got = loss.compute_loss_from_embeddings(leaves)
        expected = peer.MultipleNegativesRankingLoss(None, **options).compute_loss_from_embeddings(leaves, None)
        assert_same(got, expected, leaves, *((1e-9, 1e-11) if exact else (2e-4, 3e-5)))
        assert loss.used_backend == fastcse.last_backend() == ("reference" if exact else "cpp"), picked


@pytest.mark.parametrize("hardness_mode", HARDNESS)
def test_positives_that_are_found_already(hardness_mode):
    # The negatives' sum is 1e-43 of the positive's: no term may turn it into a NaN.
    leaves = [torch.eye(6, 16).requires_grad_(), (torch.eye(6, 16) + 1e-3).requires_grad_()]
    options = {"scale": 100.0, "hardness_mode": hardness_mode, "hardness_strength": 5.0, "directions": EVERY}
    loss = ranking.MultipleNegativesRankingLoss(None, **options).compute_loss_from_embeddings(leaves)
    gradients = torch.autograd.grad(loss, leaves)
    assert all(torch.isfinite(x).all() for x in (loss, *gradients))
    truth = [x.detach().double().requires_grad_() for x in leaves]
    expected = peer.MultipleNegativesRankingLoss(None, **options).compute_loss_from_embeddings(truth, None)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for got, want in zip(gradients, torch.autograd.grad(expected, truth)):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4)


def test_a_nan_is_not_hidden():
    leaves = columns(3)
    with torch.no_grad():
        leaves[2][2, 3] = torch.nan  # in a hard negative: in no term but the sweep's
    for mode in HARDNESS:
        loss = ranking.MultipleNegativesRankingLoss(None, hardness_mode=mode, hardness_strength=1.0)
        assert loss.compute_loss_from_embeddings(leaves).isnan()


def test_any_other_similarity_runs_in_the_peers_class_and_says_so(caplog):
    leaves = columns(3)
    options = {"similarity_fct": euclidean_sim, "scale": 2.0, "directions": EVERY}
    loss = ranking.MultipleNegativesRankingLoss(None, **options)
    with caplog.at_level(logging.WARNING):
        got = loss.compute_loss_from_embeddings(leaves)
        loss.compute_loss_from_embeddings(leaves)
    (said,) = [record.message for record in caplog.records if "similarity_fct" in record.message]
    assert "euclidean_sim" in said
    assert loss.used_backend == "sentence-transformers"
    expected = peer.MultipleNegativesRankingLoss(None, **options).compute_loss_from_embeddings(leaves, None)
    assert_same(got, expected, leaves, 0, 0)


# ---------------------------------------------------------------- guided, of embeddings


def guided_by_hand(leaves, guides, o):
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


def test_guided_by_every_pair_of_options(encoder, guide, monkeypatch):
    monkeypatch.setattr(gist, "FEWEST", 1)
    bars = [("absolute", 0.0), ("absolute", 0.2), ("relative", 0.3), ("relative", -0.4)]
    choices = {
        "bar": bars, "contrast_anchors": [True, False], "contrast_positives": [True, False], "count": [2, 3, 4],
        "chunk": [1, 4, 100],
    }  # fmt: skip
    for o in covering(choices):
        (o["margin_strategy"], o["margin"]), chunk, count = o.pop("bar"), o.pop("chunk"), o.pop("count")
        o["temperature"] = 0.1
        leaves, guides = (columns(count, 9, width, torch.float64) for width in (16, 7))
        blocks = count - 1 + o["contrast_anchors"] + o["contrast_positives"]
        monkeypatch.setattr(gist, "LOGITS", chunk * 9 * blocks)
        loss = gist.GISTEmbedLoss(encoder, guide, **o)
        expected = guided_by_hand(leaves, guides, o)
        wanted = torch.autograd.grad(expected, leaves, retain_graph=True)
        assert_same(loss.compute_loss_from_embeddings(leaves, guides), expected, leaves, 1e-9, 1e-11, factor=3.0)
        assert loss.used_backend == "torch"
        single = [x.detach().float().requires_grad_() for x in leaves]
        got = loss.compute_loss_from_embeddings(single, [g.float() for g in guides])
        torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-6)
        for one, other in zip(torch.autograd.grad(got, single), wanted):
            torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=2e-5)


def test_copies_of_the_positive_are_equal_to_it(encoder, guide):
    # However they are rounded: here by their lengths, in a product by their places.
    loss = gist.GISTEmbedLoss(encoder, guide, contrast_anchors=False, contrast_positives=False, temperature=1.0)
    one, other = torch.randn(2, 33)
    length = torch.arange(1.0, 68.0)[:, None].sqrt()
    guides = [one.expand(67, 33), other * length]
    got = loss.compute_loss_from_embeddings([torch.randn(67, 8), torch.randn(1, 8).expand(67, 8)], guides)
    torch.testing.assert_close(got, torch.tensor(67.0).log())


def test_a_negative_as_similar_to_the_guide_as_the_positive_stays():
    a, n = torch.eye(2).split(1)
    options = gist.Guided(1.0, False, 0.0, contrast_anchors=False, contrast_positives=False, first=0)
    loss = gist.guided_loss([a, a, n], [a, a, a], options)
    torch.testing.assert_close(loss, torch.tensor(-1.0).exp().log1p())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_similarities_stay_exact(encoder, guide, dtype):
    leaves, guides = columns(2, rows=30, dtype=dtype), columns(2, rows=30)
    loss = gist.GISTEmbedLoss(encoder, guide)
    expected = loss.compute_loss_from_embeddings([x.float() for x in leaves], guides)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss.compute_loss_from_embeddings(leaves, guides)
    torch.testing.assert_close(got, expected)
    assert [g.dtype for g in torch.autograd.grad(got, leaves)] == [dtype] * 2


# ---------------------------------------------------------------- in a model

# The tiny encoder's embeddings lie close together: a wide margin would leave no negative.
IN_MODEL = {
    "ranking": [
        {"directions": (Q2D, D2Q), "partition_mode": "per_direction"},
        {"hardness_mode": "all_negatives", "hardness_strength": 5.0, "directions": EVERY},
    ],
    "guided": [
        {"margin_strategy": "absolute", "margin": 0.0, "contrast_anchors": True, "contrast_positives": False},
        {"margin_strategy": "relative", "margin": -0.05, "contrast_anchors": False, "contrast_positives": True},
    ],
}


@every_name
@pytest.mark.parametrize("option", [0, 1])
def test_parameters_get_the_peers_gradient(encoder, guide, pair, name, option):
    guided, more = "GIST" in name, {"mini_batch_size": 3} if "Cached" in name else {}
    options = IN_MODEL["guided" if guided else "ranking"][option]
    most = (5 if more else 3) if guided else 4
    for count, retokenize in ((2, True), (most, False)):
        if guided:
            guide.max_seq_length = 5 if retokenize else encoder.max_seq_length  # it reads the beginning only
        mine, theirs = pair(name, **options, **more)
        if guided:
            assert mine.must_retokenize == theirs.must_retokenize == retokenize
        assert_same_in_model(encoder, mine, theirs, batches(encoder, count))
    assert all(p.grad is None for p in guide.parameters())


def test_cached_by_tokens_is_the_same(encoder, pair):
    assert_same_in_model(encoder, *pair(CACHED, mini_batch_num_tokens=20), batches(encoder, 2))


@every_name
def test_inside_matryoshka(encoder, pair, name):
    options = {"temperature": 0.1} if "GIST" in name else IN_MODEL["ranking"][1]
    more = {"mini_batch_size": 3} if "Cached" in name else {}
    nested = [peer.MatryoshkaLoss(encoder, loss, [32, 16, 5], [1, 0.5, 2]) for loss in pair(name, **options, **more)]
    assert_same_in_model(encoder, *nested, batches(encoder, 3))


@pytest.mark.parametrize("name", [CACHED, CACHED_GIST])
def test_cached_forgets_the_batch_before(encoder, pair, name):
    encoder.eval()
    (loss, _), (other, _) = pair(name), pair(name)
    loss(batches(encoder, 2), None)
    second = batches(encoder, 3)[1:]
    torch.testing.assert_close(loss(second, None), other(second, None))


@every_name
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_evaluation_and_a_short_last_batch(encoder, pair, name, rows):
    encoder.eval()
    with torch.no_grad():
        got, expected = (loss(batches(encoder, 2, rows=rows), None) for loss in pair(name))
    assert not got.requires_grad
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- manners


@every_name
def test_what_the_model_card_reads(pair, name):
    kinds = [{"margin": 0.1}] if "GIST" in name else [
        {"scale": 50.0, "directions": EVERY}, *({"directions": d, "partition_mode": m} for d, m in PARTITIONED)
    ]  # fmt: skip
    for options in kinds:
        mine, theirs = pair(name, **options)
        wanted, config = theirs.get_config_dict(), mine.get_config_dict()
        assert {k: config[k] for k in wanted} == wanted
        assert mine.temperature == theirs.temperature
        cited = getattr(theirs, "citation", "eprint = {2402.16829}")  # the cached guided loss of the peer has none
        assert next(w for w in cited.split("\n") if "eprint" in w).split("{")[1].rstrip("},") in mine.citation


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        (MNRL, {"scale": 0.0}, "(?i)scale"),
        (MNRL, {"scale": float("nan")}, "(?i)scale"),
        (MNRL, {"directions": ()}, "direction"),
        (MNRL, {"directions": (D2Q,)}, "query_to_doc"),
        (MNRL, {"directions": (Q2D, "doc")}, "directions"),
        (MNRL, {"partition_mode": "each"}, "partition_mode"),
        (MNRL, {"partition_mode": "per_direction", "directions": EVERY}, "doc_to_doc"),
        (MNRL, {"hardness_mode": "hard"}, "hardness_mode"),
        (MNRL, {"hardness_strength": -1.0}, "hardness_strength"),
        (CACHED, {"mini_batch_size": 0}, "mini_batch_size"),
        (CACHED, {"mini_batch_num_tokens": 0}, "mini_batch_num_tokens"),
        (CACHED_GIST, {"mini_batch_size": 0}, "mini_batch_size"),
        (GIST, {"temperature": 0}, "temperature"),
        (GIST, {"margin_strategy": "half"}, "margin_strategy"),
    ],
)
def test_wrong_options_are_named(encoder, guide, name, options, word):
    models = (encoder, guide) if "GIST" in name else (encoder,)
    with pytest.raises(ValueError, match=word):
        getattr(gist if "GIST" in name else ranking, name)(*models, **options)


def test_wrong_columns_and_guides_are_named(encoder, guide):
    for call in (
        lambda: ranking.MultipleNegativesRankingLoss(encoder).compute_loss_from_embeddings(columns(1)),
        lambda: ranking.CachedMultipleNegativesRankingLoss(encoder)(batches(encoder, 1)),
        lambda: gist.GISTEmbedLoss(encoder, guide).compute_loss_from_embeddings(columns(1), columns(1)),
    ):
        with pytest.raises(ValueError, match="got 1"):
            call()
    with pytest.raises(ValueError, match="guiding model must have a tokenizer"):
        gist.GISTEmbedLoss(encoder, torch.nn.Linear(1, 1))


@pytest.mark.parametrize("module", [ranking, gist])
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0
