"""The encoder that follows another."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_encoder import sentences
from torch import nn

from fastcse import NegativeQueue, infonce_loss
from fastcse.training.recipes.queue import MomentumEncoder


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


@pytest.mark.parametrize("rate", [0.0, 0.9, 1.0])
def test_it_follows_by_its_rate(rate):
    online = network().double()
    slow = MomentumEncoder(online, rate)
    before = {k: v.clone() for k, v in slow.encoder.state_dict().items()}
    with torch.no_grad():
        for p in online.parameters():
            p.add_(torch.randn_like(p))
    online(torch.randn(6, 3, dtype=torch.float64))  # moves the buffers
    slow.update(online)
    for name, now in online.state_dict().items():
        want = now if not now.is_floating_point() else rate * before[name] + (1 - rate) * now
        torch.testing.assert_close(slow.encoder.state_dict()[name], want)
    slow.update(online, 0.0)
    for name, now in online.state_dict().items():
        torch.testing.assert_close(slow.encoder.state_dict()[name], now)


def test_it_gives_no_gradient_and_its_mode_is_that_of_the_module_around_it():
    online, x = network().eval(), torch.randn(64, 3)
    slow = MomentumEncoder(online)
    assert not any(p.requires_grad for p in slow.parameters())
    assert not slow.training
    assert not slow.encoder.training
    slow.train()
    assert slow.encoder[2].training
    assert (slow(x) != slow(x)).any()
    assert not slow(torch.randn(4, 3, requires_grad=True)).requires_grad
    slow.eval()
    torch.testing.assert_close(slow(x), slow(x), rtol=0, atol=0)
    slow.update(online)
    assert all(p.requires_grad for p in online.parameters())


def test_mistakes_are_named():
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"rate.*{rate}"):
            MomentumEncoder(network(), rate)
        with pytest.raises(ValueError, match=f"rate.*{rate}"):
            MomentumEncoder(network()).update(network(), rate)
    with pytest.raises(ValueError, match=r"0\.weight"):
        MomentumEncoder(network()).update(nn.Linear(3, 4))


def test_moco_of_a_sentence_encoder(encoder_path):
    model = SentenceTransformer(encoder_path, device="cpu").train()
    slow, queue = MomentumEncoder(model, 0.9), NegativeQueue(8, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = {k: v.clone() for k, v in slow.encoder.state_dict().items()}
    for step in range(4):
        features = model.preprocess(sentences(4, seed=step))
        keys = slow(dict(features))["sentence_embedding"]
        loss = infonce_loss(model(dict(features))["sentence_embedding"], keys, negatives=queue.block())
        queue.push(keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slow.update(model)
    assert len(queue) == 8
    moved = [name for name, value in slow.encoder.state_dict().items() if (value != first[name]).any()]
    assert any("encoder.layer.0" in name for name in moved)
