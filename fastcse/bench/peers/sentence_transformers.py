"""sentence-transformers' losses of multiple negatives, from the embeddings on: no model takes part."""

from __future__ import annotations

import torch

from ..problem import LossProblem
from .peer import Loss, Peer

LOSSES = ("infonce", "symmetric")
MODULES = ("sentence_transformers",)
INSTALL = "pip install sentence-transformers"
DEFAULT_ROWS = 32


def _options(problem: LossProblem) -> dict:
    """Constructor arguments that make it the plain formula: one softmax a direction, their mean."""
    options = dict(scale=1 / problem.temperature)
    if problem.loss == "symmetric":
        options |= dict(directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")
    return options


def _columns(problem: LossProblem, anchor, candidate) -> list:
    """Anchors, positives and, if there are any, the negatives: as its data loader would bring them."""
    parts = (anchor, candidate[: problem.n], candidate[problem.n :])
    return [part for part in parts if len(part)]


def _ranking(problem: LossProblem) -> Loss:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    stage = MultipleNegativesRankingLoss(None, **_options(problem))
    return lambda a, c: stage.compute_loss_from_embeddings(_columns(problem, a, c), None)


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


def _cached(problem: LossProblem, rows: int = DEFAULT_ROWS) -> Loss:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    # Its constructor looks at the first module of a model.
    model = torch.nn.Sequential(torch.nn.Identity())
    stage = CachedMultipleNegativesRankingLoss(model, mini_batch_size=rows, **_options(problem))

    def calculate(anchor, candidate, **options):
        return stage.calculate_loss([[part] for part in _columns(problem, anchor, candidate)], **options)

    def loss(anchor, candidate):
        if torch.is_grad_enabled():
            return _Cached.apply(calculate, anchor, candidate)
        return calculate(anchor, candidate)

    return loss


PEERS = (
    Peer("sentence-transformers", _ranking, LOSSES, MODULES, INSTALL, "whole matrix, float32 whatever comes"),
    Peer(
        "sentence-transformers cached",
        _cached,
        LOSSES,
        MODULES,
        INSTALL,
        f"re-normalises all rows each chunk of {DEFAULT_ROWS}",
    ),
    Peer(
        "sentence-transformers cached large",
        _cached,
        LOSSES,
        MODULES,
        INSTALL,
        "its mini-batch, which is the encoder's too, raised to suit the loss",
        choices=(256, 1024, 4096),
    ),
)
