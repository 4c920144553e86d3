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


def test_the_tanh_head_is_simcses():
    head, e = TrainingHead("tanh", 6), torch.randn(4, 6)
    weight, bias = head.layers[0].weight, head.layers[0].bias
    nn.init.normal_(bias)
    got = head.train()({"sentence_embedding": e})["sentence_embedding"]
    torch.testing.assert_close(got, torch.tanh(e @ weight.T + bias))
    assert head.eval()({"sentence_embedding": e})["sentence_embedding"] is e


def test_the_batchnorm_head_is_diffcses():
    head, e = TrainingHead("batchnorm", 6).double(), torch.randn(9, 6, dtype=torch.float64)
    first, norm, _, second, last = head.layers
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert first.weight.shape == (12, 6)
    assert first.bias is second.bias is last.weight is None

    def normal(x):
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()

    hidden = (normal(e @ first.weight.T) * norm.weight + norm.bias).relu()
    got = head.train()({"sentence_embedding": e})["sentence_embedding"]
    torch.testing.assert_close(got, normal(hidden @ second.weight.T))
    assert head.eval()({"sentence_embedding": e})["sentence_embedding"] is e


def test_a_head_starts_as_berts_layers_do():
    torch.manual_seed(0)
    for kind in heads.KINDS:
        for layer in TrainingHead(kind, 64).layers:
            if isinstance(layer, nn.Linear):
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
                assert layer.bias is None or not layer.bias.any()


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
    hidden = (
        model[0]
        .model(**{k: features[k] for k in ("input_ids", "attention_mask", "token_type_ids")}, output_hidden_states=True)
        .hidden_states
    )
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
    with pytest.raises(ValueError, match=r"kind.*'gelu'"):
        TrainingHead("gelu", 4)
    with pytest.raises(ValueError, match=r"dim.*0"):
        TrainingHead("tanh", 0)
    with pytest.raises(ValueError, match=r"layers.*0"):
        append_intermediate_layers(model, 0)
    append_intermediate_layers(model.train(), 3)
    with pytest.raises(ValueError, match=r"layers=3 .*2 before"):
        embed(model)
    strip_training_layers(model)
    model.append(IntermediateLayers(1, model[1]).train())
    with pytest.raises(ValueError, match=r"layers=1 .*none"):
        embed(model)
    with pytest.raises(ValueError, match="TrainingHead"):
        append_intermediate_layers(SentenceTransformer(modules=[TrainingHead("tanh", 4)], device="cpu"))


@pytest.mark.parametrize("what", ["tanh", "batchnorm", "layers"])
def test_a_run_goes_on_from_a_checkpoint_with_its_head(still_path, tmp_path, what):
    """The Trainer writes the head into its checkpoints and reads it from there; two halves are the whole."""

    def finished(folder, resume=None):
        torch.manual_seed(3)
        model = SentenceTransformer(still_path, device="cpu")
        append_intermediate_layers(model, 1) if what == "layers" else append_head(model, what)
        loss = fastcse.sscl_loss if what == "layers" else fastcse.infonce_loss
        options = {"parts": 2} if what == "layers" else {}
        pairs = Dataset.from_dict({"anchor": sentences(16, seed=1), "positive": sentences(16, seed=2)})
        trainer = make_trainer(
            model, pairs, FusedContrastiveLoss(model, loss, **options), output_dir=folder, batch_size=4, max_steps=4,
            lr=1e-2, max_length=32, seed=3, save_steps=2,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = finished(tmp_path / "whole")
    half = finished(tmp_path / "half", resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert whole.state_dict().keys() == half.state_dict().keys()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    first = SentenceTransformer(still_path, device="cpu").state_dict()
    assert any((whole.state_dict()[name] != value).any() for name, value in first.items())
