"""Heads and intermediate layers: what they compute in training, nothing in evaluation, gone when the model is saved."""

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from tiny_encoder import WIDTH, sentences
from torch import nn

import fastcse
from fastcse.integrations.sentence_transformers import FusedContrastiveLoss, two_views
from fastcse.training.recipes import heads
from fastcse.training.recipes.heads import (
    IntermediateLayers,
    TrainingHead,
    append_head,
    append_intermediate_layers,
    strip_training_layers,
)
from fastcse.training.trainer import make_trainer

TEXTS = sentences(5)


@pytest.fixture
def model(still_path):
    return SentenceTransformer(still_path, device="cpu")


def embed(model, texts=TEXTS):
    return model(model.preprocess(texts))["sentence_embedding"]


@pytest.mark.parametrize("kind", heads.KINDS)
def test_a_head_is_its_papers_formula(kind):
    torch.manual_seed(0)
    head, e = TrainingHead(kind, 64).double(), torch.randn(90, 64, dtype=torch.float64)
    linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    for layer in linear:  # as BERT's layers start
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias is None or not layer.bias.any()
    for parameter in head.parameters():
        nn.init.normal_(parameter)

    def normal(x):
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()

    if kind == "tanh":
        want = torch.tanh(e @ linear[0].weight.T + linear[0].bias)
    else:
        first, norm, _, second, last = head.layers
        assert first.weight.shape == (128, 64)
        assert first.bias is second.bias is last.weight is None
        want = normal((normal(e @ first.weight.T) * norm.weight + norm.bias).relu() @ second.weight.T)
    torch.testing.assert_close(head.train()({"sentence_embedding": e})["sentence_embedding"], want)
    assert head.eval()({"sentence_embedding": e})["sentence_embedding"] is e


@pytest.mark.parametrize("kind", heads.KINDS)
def test_an_appended_head_learns_and_leaves_no_trace(model, kind, tmp_path):
    before = embed(model.eval()).detach()
    model.train()
    head = append_head(model, kind)
    assert head.training
    first, second = two_views(model, model.preprocess(TEXTS))
    assert (first - before).abs().max() > 1e-3, "the head is on in training"
    fastcse.infonce_loss(first, second.roll(1, 0)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    torch.testing.assert_close(embed(model.eval()), before)
    assert model.get_embedding_dimension() == WIDTH
    assert strip_training_layers(model) == [head]
    model.save_pretrained(str(tmp_path))
    saved = SentenceTransformer(str(tmp_path), device="cpu")  # needs no class of fastcse
    assert [type(m).__name__ for m in saved] == ["Transformer", "Pooling"]
    torch.testing.assert_close(embed(saved.train()), before)


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("layers", [1, 2])
def test_intermediate_layers_are_pooled_hidden_states(model, mode, layers):
    model[1] = type(model[1])(WIDTH, pooling_mode=mode)
    features = model.preprocess(TEXTS)
    final = embed(model.eval()).detach()
    made = append_intermediate_layers(model, layers)
    given = {k: features[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    hidden = model[0].model(**given, output_hidden_states=True).hidden_states
    mask = features["attention_mask"][..., None].float()

    def pooled(h):
        return h[:, 0] if mode == "cls" else (h * mask).sum(1) / mask.sum(1)

    expected = torch.cat([final, *(pooled(hidden[-k]) for k in range(2, layers + 2))], dim=1)
    torch.testing.assert_close(embed(model.train()), expected)
    torch.testing.assert_close(embed(model.eval()), final)
    assert strip_training_layers(model) == [made]
    assert model[0].model.config.output_hidden_states is False
    torch.testing.assert_close(embed(model.train()), final)


def test_sscl_trains_the_layers_through_one_column(model):
    append_intermediate_layers(model.train(), 2)
    first, second = two_views(model, model.preprocess(TEXTS))
    assert first.shape == (5, 3 * WIDTH)
    loss = fastcse.sscl_loss(first, second, parts=3)
    loss.backward()
    grads = [p.grad for p in model[0].model.encoder.parameters()]
    assert all(torch.isfinite(g).all() for g in grads)
    assert all(g.abs().sum() > 0 for g in grads if g.ndim > 1)


def test_mistakes_are_named(model):
    def embedded():
        model.append(IntermediateLayers(1, model[1]).train())
        return embed(model)

    def too_deep():
        strip_training_layers(model)
        append_intermediate_layers(model.train(), 3)
        return embed(model)

    alone = SentenceTransformer(modules=[TrainingHead("tanh", 4)], device="cpu")
    for call, says in (
        (lambda: TrainingHead("gelu", 4), r"kind.*'gelu'"),
        (lambda: TrainingHead("tanh", 0), r"dim.*0"),
        (lambda: append_intermediate_layers(model, 0), r"layers.*0"),
        (lambda: append_intermediate_layers(alone), "TrainingHead"),
        (embedded, r"layers=1 .*none"),
        (too_deep, r"layers=3 .*2 before"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


@pytest.mark.parametrize("what", ["tanh", "batchnorm", "layers"])
def test_a_run_goes_on_from_a_checkpoint_with_its_head(still_path, tmp_path, what):
    """The Trainer writes the head into its checkpoints and reads it from there; two halves are the whole."""

    def finished(folder, resume=None):
        torch.manual_seed(3)
        model = SentenceTransformer(still_path, device="cpu")
        append_intermediate_layers(model, 1) if what == "layers" else append_head(model, what)
        kind = (fastcse.sscl_loss, {"parts": 2}) if what == "layers" else (fastcse.infonce_loss, {})
        pairs = Dataset.from_dict({"anchor": sentences(16, seed=1), "positive": sentences(16, seed=2)})
        options = {"batch_size": 4, "max_steps": 4, "lr": 1e-2, "max_length": 32, "seed": 3, "save_steps": 2}
        loss = FusedContrastiveLoss(model, kind[0], **kind[1])
        make_trainer(model, pairs, loss, output_dir=folder, **options).train(resume_from_checkpoint=resume)
        return model

    whole = finished(tmp_path / "whole")
    half = finished(tmp_path / "half", resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert whole.state_dict().keys() == half.state_dict().keys()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    first = SentenceTransformer(still_path, device="cpu").state_dict()
    assert any((whole.state_dict()[name] != value).any() for name, value in first.items())
