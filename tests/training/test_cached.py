"""GradCache: the cached loss has the loss and the gradients of the whole batch at once, dropout included, for every
objective."""

import copy

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import _create_minibatch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from tiny_encoder import WIDTH, sentences

import fastcse
from fastcse import CorpusIndex, CorpusNegatives, OnlineKMeans
from fastcse.integrations.sentence_transformers import CachedFusedContrastiveLoss, FusedContrastiveLoss

N = 11  # of no multiple of the mini-batch


@pytest.fixture(scope="module")
def encoder(encoder_path):
    return SentenceTransformer(encoder_path, device="cpu").double().train()


def columns_of(encoder, count):
    texts = sentences(N * count, words=7)
    return [encoder.preprocess(texts[k * N : (k + 1) * N]) for k in range(count)]


def started(**options):
    clusters = OnlineKMeans(3, WIDTH, rate=0.2, threshold=1.0, seed=0, **options).double()
    torch.manual_seed(1)
    rows = torch.randn(N, WIDTH, dtype=torch.float64)
    clusters(rows, rows)
    return clusters


def corpus():
    torch.manual_seed(2)
    return CorpusNegatives(CorpusIndex(torch.randn(40, WIDTH, dtype=torch.float64)), k=2)


# loss, columns of text, options, and what is made anew for each of the two ways
CASES = {
    "two-views": (fastcse.infonce_loss, 1, {"temperature": 0.1}, {}),
    "pairs": (fastcse.infonce_loss, 2, {"temperature": 0.1, "symmetric": True}, {}),
    "hard-negatives": (fastcse.focal_infonce_loss, 4, {"temperature": 0.1, "margin": 0.2}, {}),
    "learned": (fastcse.infonce_loss, 2, {"temperature": 0.1, "learnable_temperature": True}, {}),
    "hsimcse": (fastcse.hsimcse_loss, 1, {"temperature": 0.1, "margin": 0.5}, {"corpus_negatives": corpus}),
    "clusterns": (fastcse.clusterns_loss, 1, {"temperature": 0.1, "margin_weight": 1.0}, {"clusters": started}),
}


def gradients(encoder, loss, run):
    """The loss and all gradients of `run`, times an upstream gradient of 1/2."""
    encoder.zero_grad()
    torch.manual_seed(5)
    value = run(loss)
    (value / 2).backward()
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    if loss.log_temperature is not None:
        found["log_temperature"] = loss.log_temperature.grad.clone()
    return value.detach(), found


def whole_batch(encoder, columns, labels, mini):
    """The plain loss of embeddings whose dropout was drawn mini-batch by mini-batch, graph and all."""

    def run(loss):
        given = columns * 2 if len(columns) == 1 else columns
        rows = [
            torch.cat([encoder(_create_minibatch(copy.copy(one), i, i + mini))["sentence_embedding"]
                       for i in range(0, N, mini)])
            for one in given
        ]  # fmt: skip
        return loss.compute_loss_from_embeddings(rows, labels)

    return run


@pytest.mark.parametrize("mini", [1, 4, 50])
@pytest.mark.parametrize("case", CASES)
def test_cached_is_the_whole_batch(encoder, case, mini):
    function, count, options, made = CASES[case]
    columns, labels = columns_of(encoder, count), torch.arange(N) if "corpus_negatives" in made else None
    fresh = lambda: {name: make() for name, make in made.items()}  # noqa: E731
    plain = FusedContrastiveLoss(encoder, function, **options, **fresh()).double()
    cached = CachedFusedContrastiveLoss(encoder, function, mini_batch_size=mini, **options, **fresh()).double()
    expected, wanted = gradients(encoder, plain, whole_batch(encoder, columns, labels, mini))
    value, got = gradients(encoder, cached, lambda loss: loss(columns, labels))
    assert cached.used_backend == "reference"
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-12, msg=name)


def test_two_batches_before_one_backward_keep_their_gradients_apart(encoder):
    first, second = columns_of(encoder, 4)[:2], columns_of(encoder, 4)[2:]
    loss = CachedFusedContrastiveLoss(
        encoder, fastcse.infonce_loss, mini_batch_size=4, temperature=0.1, learnable_temperature=True
    ).double()  # fmt: skip
    both = gradients(encoder, loss, lambda one: one(first) + one(second))[1]
    loss.log_temperature.grad = None
    apart = [gradients(encoder, loss, lambda one, columns=columns: one(columns)) for columns in (first,)]
    # The second batch alone, with the dropout that it drew behind the first.
    encoder.zero_grad()
    loss.log_temperature.grad = None
    torch.manual_seed(5)
    with torch.no_grad():
        loss(first)
    (loss(second) / 2).backward()
    for name, gradient in both.items():
        last = loss.log_temperature.grad if name == "log_temperature" else dict(encoder.named_parameters())[name].grad
        torch.testing.assert_close(gradient, apart[0][1][name] + last, rtol=1e-9, atol=1e-12, msg=name)


def test_evaluation_needs_no_gradient(encoder):
    columns = columns_of(encoder, 2)
    loss = CachedFusedContrastiveLoss(encoder, fastcse.infonce_loss, mini_batch_size=4, temperature=0.1)
    encoder.eval()
    try:
        with torch.no_grad():
            value = loss(columns)
            plain = FusedContrastiveLoss(encoder, fastcse.infonce_loss, temperature=0.1)(columns)
    finally:
        encoder.train()
    torch.testing.assert_close(value, plain, rtol=1e-9, atol=1e-12)
    assert not value.requires_grad


def test_what_the_model_card_says_and_what_is_refused(encoder):
    loss = CachedFusedContrastiveLoss(encoder, fastcse.infonce_loss, mini_batch_size=4, temperature=0.1, cite="me")
    config = loss.get_config_dict()
    assert (config["loss"], config["mini_batch_size"], config["temperature"]) == ("infonce_loss", 4, 0.1)
    assert loss.citation == "me"
    with pytest.raises(ValueError, match=r"mini_batch_size must be .* got 0"):
        CachedFusedContrastiveLoss(encoder, fastcse.infonce_loss, mini_batch_size=0)


def test_a_learned_temperature_under_matryoshka_is_refused(encoder):
    inner = CachedFusedContrastiveLoss(
        encoder, fastcse.infonce_loss, mini_batch_size=4, temperature=0.1, learnable_temperature=True
    ).double()  # fmt: skip
    with pytest.raises(ValueError, match=r"learnable_temperature has no right gradient .* MatryoshkaLoss"):
        MatryoshkaLoss(encoder, inner, [WIDTH, 16])(columns_of(encoder, 2), None)
    fixed = CachedFusedContrastiveLoss(encoder, fastcse.infonce_loss, mini_batch_size=4, temperature=0.1)
    MatryoshkaLoss(encoder, fixed, [WIDTH, 16])(columns_of(encoder, 2), None).backward()
