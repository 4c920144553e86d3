"""Losses of training libraries: sentence-transformers, open_clip, pytorch-metric-learning, GradCache."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from ..loss import LossCase
from ..provider import Provider, named, unit
from .pytorch import INFONCE, Loss, linear_loss

SENTENCE_TRANSFORMERS = (("infonce", "symmetric"), ("sentence_transformers",), "pip install sentence-transformers")
DEFAULT_ROWS = 32


def _options(case: LossCase) -> dict:
    """Constructor arguments that make it the plain formula: one softmax a direction, their mean."""
    options = {"scale": 1 / case.temperature}
    if case.loss == "symmetric":
        options |= {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    return options


def _columns(case: LossCase, anchor, candidate) -> list:
    """Anchors, positives and, if there are any, the negatives: as its data loader has them."""
    parts = (anchor, candidate[: case.n], candidate[case.n :])
    return [part for part in parts if len(part)]


def _ranking(case: LossCase) -> Loss:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    stage = MultipleNegativesRankingLoss(None, **_options(case))
    return lambda a, c: stage.compute_loss_from_embeddings(_columns(case, a, c), None)


class _Cached(torch.autograd.Function):
    """The loss stage as its training runs it: every chunk is sent backward at once and only the gradients are kept."""

    @staticmethod
    def forward(ctx, calculate, anchor, candidate):
        leaves = [x.detach().requires_grad_() for x in (anchor, candidate)]
        with torch.enable_grad():
            loss = calculate(*leaves, with_backward=True)
        ctx.save_for_backward(*(x.grad for x in leaves))
        return loss

    @staticmethod
    def backward(ctx, dloss):
        return None, *(dloss * grad for grad in ctx.saved_tensors)


def _cached(case: LossCase, rows: int = DEFAULT_ROWS) -> Loss:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    # Its constructor takes the first module of a model.
    model = torch.nn.Sequential(torch.nn.Identity())
    stage = CachedMultipleNegativesRankingLoss(model, mini_batch_size=rows, **_options(case))

    def calculate(anchor, candidate, **options):
        return stage.calculate_loss([[part] for part in _columns(case, anchor, candidate)], **options)

    def loss(anchor, candidate):
        if torch.is_grad_enabled():
            return _Cached.apply(calculate, anchor, candidate)
        return calculate(anchor, candidate)

    return loss


def _open_clip_loss() -> ModuleType:
    """open_clip/loss.py alone: it needs only torch, while importing the package needs torchvision."""
    folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(folder) / "loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _open_clip(case: LossCase) -> Loss:
    clip = _open_clip_loss().ClipLoss(cache_labels=True)
    return lambda a, c: clip(unit(a), unit(c), 1 / case.temperature)


def _metric_learning(case: LossCase) -> Loss:
    """SupConLoss with one positive a row: its denominator runs over the positives and negatives of the row, in
    `ref_emb`, which is InfoNCE. NTXentLoss gives the same value, but spreads each of the N positives over all N (M - 1)
    negative pairs: cubic memory."""
    from pytorch_metric_learning.losses import SupConLoss
    from pytorch_metric_learning.reducers import MeanReducer

    # Its own reducer leaves rows whose loss is zero out of the mean.
    supcon = SupConLoss(temperature=case.temperature, reducer=MeanReducer())
    label, candidate_label = (torch.arange(rows, device=case.device) for rows in (case.n, case.m))
    return lambda a, c: supcon(a, label, ref_emb=c, ref_labels=candidate_label)


def _grad_cache(case: LossCase) -> Loss:
    from gradcache.loss import SimpleContrastiveLoss

    contrastive = SimpleContrastiveLoss()
    # By default anchor i's positive is row i (M / N).
    return linear_loss(case, lambda a, c, label: contrastive(a, c, target=label))


PEERS = named(
    Provider("sentence-transformers", _ranking, *SENTENCE_TRANSFORMERS, "whole matrix, float32 whatever comes"),
    Provider("sentence-transformers cached", _cached, *SENTENCE_TRANSFORMERS,
             f"re-normalises all rows each chunk of {DEFAULT_ROWS}"),
    Provider("sentence-transformers cached large", _cached, *SENTENCE_TRANSFORMERS,
             "its mini-batch, which is the encoder's too, raised to suit the loss", (256, 1024, 4096)),
    Provider("open_clip", _open_clip, ("symmetric",), ("open_clip",), "pip install open_clip_torch",
             "both whole matrices, each its own product"),
    Provider("pytorch-metric-learning", _metric_learning, INFONCE, ("pytorch_metric_learning",),
             "pip install pytorch-metric-learning", "whole matrix, and a list of all its pairs"),
    Provider("GradCache", _grad_cache, INFONCE, ("gradcache",), "pip install gradcache", "whole matrix"),
)  # fmt: skip
