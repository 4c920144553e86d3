"""The loss class of sentence-transformers' trainer: its columns, views, statistics, and what it is called with."""

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from tiny_encoder import WIDTH, sentences

import fastcse
from fastcse.integrations.sentence_transformers import FusedContrastiveLoss, two_views
from fastcse.training.objectives import OBJECTIVES


def by_hand(anchor, positive, negatives, temperature, margin=None):
    """The loss over all columns, in plain torch: focal if there is a margin."""
    candidates = torch.cat([positive, *negatives])
    s = F.cosine_similarity(anchor[:, None], candidates[None], dim=-1)
    own = F.one_hot(torch.arange(len(anchor)), len(candidates)).bool()
    x = s if margin is None else torch.where(own, s * s, s * (s + margin))
    return F.cross_entropy(x / temperature, torch.arange(len(anchor)))


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("margin", [None, 0.3])
def test_columns_are_anchor_positive_and_negatives(encoder, count, margin):
    columns = [torch.randn(6, 12, requires_grad=True) for _ in range(2 + count)]
    name, options = ("infonce", {}) if margin is None else ("focal", {"margin": margin})
    loss = FusedContrastiveLoss(encoder, OBJECTIVES[name].loss, temperature=0.1, **options)
    expected = by_hand(columns[0], columns[1], columns[2:], 0.1, margin)
    got = loss.compute_loss_from_embeddings(columns)
    torch.testing.assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got, columns), torch.autograd.grad(expected, columns)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_one_column_is_encoded_twice_in_one_pass(encoder):
    features = encoder.train().preprocess(sentences(5))
    torch.manual_seed(1)
    double = {k: torch.cat([v, v]) if torch.is_tensor(v) else v for k, v in features.items()}
    expected = encoder(double)["sentence_embedding"].chunk(2)
    assert not torch.equal(*expected)  # two dropout masks
    model = Mock(side_effect=encoder)
    torch.manual_seed(1)
    first, second = two_views(model, features)
    assert torch.equal(torch.cat([first, second]), torch.cat(expected))
    assert [len(call.args[0]["input_ids"]) for call in model.call_args_list] == [10]
    torch.manual_seed(1)
    got = FusedContrastiveLoss(encoder, fastcse.infonce_loss, temperature=0.05)([features])
    torch.testing.assert_close(got, by_hand(*expected, [], 0.05))
    # A batch that is packed into one row cannot be doubled.
    model = Mock(side_effect=lambda features: {"sentence_embedding": torch.randn(3, 4)})
    a, b = two_views(model, {"input_ids": torch.zeros(1, 9), "cu_seq_lens_q": torch.tensor([0, 3, 6, 9])})
    assert model.call_count == 2
    assert a.shape == b.shape == (3, 4)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_the_backend_is_passed_on_and_reported(encoder, backend):
    if not fastcse.backends()[backend].available:
        pytest.skip(f"{backend}: {fastcse.backends()[backend].reason}")
    loss = FusedContrastiveLoss(encoder, fastcse.focal_infonce_loss, backend=backend, temperature=0.05)
    loss.compute_loss_from_embeddings([torch.randn(4, 8), torch.randn(4, 8)])
    assert loss.used_backend == backend


def test_statistics_are_means_since_they_were_last_taken(encoder):
    loss = FusedContrastiveLoss(encoder, fastcse.infonce_loss, temperature=0.05)
    eye = torch.eye(4)
    loss.compute_loss_from_embeddings([eye, eye])
    loss.compute_loss_from_embeddings([eye, eye.roll(1, 0)])
    stats = loss.take_stats()
    assert stats["accuracy"] == 0.5
    assert stats["positive_similarity"] == pytest.approx(0.5)
    assert stats["negative_similarity"] == pytest.approx((0 + 1 / 3) / 2)
    assert loss.take_stats() == {}


def test_learnable_temperature_learns_and_is_saved(encoder):
    loss = FusedContrastiveLoss(encoder, fastcse.infonce_loss, temperature=0.05, learnable_temperature=True)
    loss.compute_loss_from_embeddings([torch.randn(6, 8), torch.randn(6, 8)]).backward()
    assert loss.log_temperature.grad.abs() > 0
    assert loss.temperature == pytest.approx(0.05)
    assert "log_temperature" in loss.state_dict()
    with pytest.raises(ValueError, match="learnable_temperature needs a first temperature > 0, got None"):
        FusedContrastiveLoss(encoder, fastcse.infonce_loss, learnable_temperature=True)


def test_other_callers_of_the_loss(encoder):
    loss = FusedContrastiveLoss(encoder, fastcse.focal_infonce_loss, cite="@x", temperature=0.05, margin=0.2)
    features = [encoder.preprocess(sentences(4, seed=i)) for i in range(2)]
    with torch.no_grad():
        plain = loss(features, None)
        assert torch.isfinite(plain)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(loss(features))
    MatryoshkaLoss(encoder, loss, [WIDTH, 8, 3])(features, None).backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)
    assert loss.get_config_dict() == {"loss": "focal_infonce_loss", "temperature": 0.05, "margin": 0.2, "backend": None}
    assert loss.citation == "@x"
    with pytest.raises(ValueError, match="at least 2 columns"):
        loss.compute_loss_from_embeddings([torch.randn(3, 4)])


def test_the_loss_is_called_with_what_the_clustering_says(encoder):
    seen = []

    def watched(anchor, candidate, *more, **options):
        seen.append(more)
        return fastcse.clusterns_loss(anchor, candidate, *more, **options)

    clusters = fastcse.OnlineKMeans(2, WIDTH, threshold=1.0, seed=0)
    loss = FusedContrastiveLoss(encoder, watched, clusters=clusters)
    features = [encoder.preprocess(sentences(6)), encoder.preprocess(sentences(6, seed=1))]
    loss(features)
    loss(features).backward()
    assert seen[0] == ()
    index, centroids, counts = seen[1]
    assert index.shape == (6,)
    assert torch.equal(centroids, clusters.centroids)
    assert counts.sum() == 6
    assert loss.take_stats()["largest_cluster"] >= 3


def test_the_module_is_the_function_and_keeps_its_clusters():
    g = torch.Generator().manual_seed(0)
    a, c = torch.randn(8, 5, generator=g, requires_grad=True), torch.randn(8, 5, generator=g)
    module = fastcse.ClusterNSLoss(fastcse.OnlineKMeans(3, 5, threshold=1.0, seed=0), margin_weight=0.5, stats=True)
    assert torch.equal(module(a, c), fastcse.infonce_loss(a, c))
    got = module(a, c)
    clusters = module.clusters
    nearest = fastcse.assign(a, clusters.centroids, second=True).index
    counts = torch.bincount(nearest[:, 1], minlength=3)
    want = fastcse.clusterns_loss(a, c, nearest[:, 0], clusters.centroids, counts, margin_weight=0.5)
    assert torch.equal(got, want)
    assert module.stats.false_share > 0
    assert "clusters.centroids" in module.state_dict()
