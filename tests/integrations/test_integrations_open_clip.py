"""ClipLoss beside open_clip's own where that is installed, and beside its formula typed by hand."""

import doctest
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastcse
from fastcse.integrations import open_clip as ours


class ByHand:
    """The formula of open_clip's ClipLoss in one process."""

    def __call__(self, image, text, logit_scale, logit_bias=None, output_dict=False):
        x = logit_scale * image @ text.T + (0.0 if logit_bias is None else logit_bias)
        own = torch.arange(len(image))
        loss = (F.cross_entropy(x, own) + F.cross_entropy(x.T, own)) / 2
        return {"contrastive_loss": loss} if output_dict else loss


def installed():
    """open_clip/loss.py alone: importing the package needs torchvision, the loss needs torch."""
    found = importlib.util.find_spec("open_clip")
    if found is None:
        pytest.skip("open_clip_torch is not installed; its formula is tested beside this")
    path = Path(found.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss()


def features(rows=9, width=16, dtype=torch.float32):
    made = [F.normalize(torch.randn(rows, width, dtype=torch.float64), dim=1) for _ in range(2)]
    return [x.to(dtype).requires_grad_() for x in made]


@pytest.mark.parametrize("peer", [ByHand, installed], ids=["formula", "open_clip"])
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [None, -10.0])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_process(peer, rows, dtype, bias, shape):
    rtol, atol = (1e-10, 1e-11) if dtype == torch.float64 else (1e-4, 2e-5)
    leaves = features(rows, dtype=dtype)
    log_scale = torch.full(shape, 2.5, dtype=dtype, requires_grad=True)
    bias = bias if bias is None else torch.tensor(bias, dtype=dtype, requires_grad=True)
    inputs = [*leaves, log_scale] + ([] if bias is None else [bias])
    loss = ours.ClipLoss()
    got = loss(*leaves, log_scale.exp(), logit_bias=bias)
    expected = peer()(*leaves, log_scale.exp(), logit_bias=bias)
    assert loss.used_backend == ("reference" if dtype == torch.float64 else "cpp") == fastcse.last_backend()
    assert got.shape == ()
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)
    for one, other in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def test_features_are_not_normalised_here():
    image, text = torch.randn(2, 5, 8)
    torch.testing.assert_close(ours.ClipLoss()(image, text, 0.3), ByHand()(image, text, 0.3))


def test_a_scale_in_half_precision_keeps_its_digits():
    image, text = features(dtype=torch.bfloat16)
    scale = torch.tensor(14.3125, dtype=torch.bfloat16, requires_grad=True)
    loss = ours.ClipLoss()(image, text, scale)
    torch.testing.assert_close(loss, ByHand()(image.float(), text.float(), 14.3125))
    loss.backward()
    assert scale.grad.dtype == torch.bfloat16


def test_the_dictionary():
    out = ours.ClipLoss(cache_labels=True)(*features(), 10.0, output_dict=True)
    assert list(out) == ["contrastive_loss"]
    assert out["contrastive_loss"].shape == ()


def test_wrong_arguments_are_named():
    for options, word in [({"use_horovod": True}, "use_horovod"), ({"world_size": 0}, "world_size"),
                          ({"rank": 2, "world_size": 2}, "got 2 and 2")]:  # fmt: skip
        with pytest.raises(ValueError, match=word):
            ours.ClipLoss(**options)
    with pytest.raises(ValueError, match="logit_scale"):
        ours.ClipLoss()(*features(), 0.0)
    with pytest.raises(ValueError, match="world_size must be the process group's, got 2"):
        ours.ClipLoss(world_size=2)(*features(), 1.0)


def test_examples_run():
    assert doctest.testmod(ours, extraglobs={"torch": torch}).failed == 0
