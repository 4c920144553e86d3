"""GradCache around the fused losses: batches whose size does not depend on memory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from torch import Tensor

from ...ops import checks
from .fused import FusedContrastiveLoss


class CachedFusedContrastiveLoss(CachedLossMixin, FusedContrastiveLoss):
    r"""`FusedContrastiveLoss` over a batch that is encoded in mini-batches, with the gradient of the whole batch.

    The batch is encoded without gradients, the loss and its gradients by the embeddings are made for all of it at once,
    and each mini-batch is encoded again, dropout replayed, to carry its gradients into the model (GradCache).
    Activations are those of one mini-batch, and beside them the embeddings and their gradients, O(N D); the price is a
    second forward pass.

    Over several processes each rank encodes its part of the batch, and the embeddings are gathered once.

    Args:
        model, loss: of `FusedContrastiveLoss`.
        mini_batch_size: how many sentences are encoded together; the result does not depend on it but for dropout,
                     which draws its masks mini-batch by mini-batch, and rounding.
        mini_batch_num_tokens: instead, as many sentences as together have at most so many tokens.
        show_progress_bar: one bar for the mini-batches of every step.
        options:     of `FusedContrastiveLoss`, and the loss's own.

    Raises:
        ValueError: a mini-batch below 1, a learned temperature within MatryoshkaLoss, or what `FusedContrastiveLoss`
            refuses.

    Source: Gao, Zhang, Han and Callan, arXiv:2101.06983; the passes are sentence-transformers' `CachedLossMixin`.

    Example:
        >>> loss = CachedFusedContrastiveLoss(model, fastcse.infonce_loss, mini_batch_size=64)         # doctest: +SKIP
        >>> args = SentenceTransformerTrainingArguments("out", per_device_train_batch_size=65536)      # doctest: +SKIP
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss,
        *,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        **options: Any,
    ):
        checks.check_count("mini_batch_size", mini_batch_size)
        if mini_batch_num_tokens is not None:
            checks.check_count("mini_batch_num_tokens", mini_batch_num_tokens)
        super().__init__(model, loss, **options)
        self.mini_batch_size, self.mini_batch_num_tokens = mini_batch_size, mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar
        self._temperature_grad: Tensor | None = None

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; its backward encodes each mini-batch again."""
        columns, self._temperature_grad = list(sentence_features), None
        if len(columns) == 1:
            # Two views: the second pass over the same sentences draws other masks. A copy each, because modules may
            # write into the features.
            columns = [dict(columns[0]), dict(columns[0])]
        loss = self.forward_cached(columns, labels)
        self._keep(columns)
        if self._temperature_grad is not None and loss.requires_grad:
            loss.register_hook(partial(self._carry, gradient=self._temperature_grad))
        return loss

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of embeddings that came mini-batch by mini-batch, one list for each column."""
        loss = self.compute_loss_from_embeddings([torch.cat(column) for column in reps], labels)
        if not with_backward:
            return loss
        if self._temperature_grad is not None:
            raise ValueError(
                "learnable_temperature has no right gradient where the loss is called several times for one batch, as "
                "MatryoshkaLoss does: expected a fixed temperature, or FusedContrastiveLoss"
            )
        # A learned temperature's gradient waits for the upstream gradient, as those of the embeddings do: it may be
        # scaled, by accumulation or by a scaler for half precision.
        parameter = self.log_temperature
        kept = None if parameter is None else parameter.grad
        if parameter is not None:
            parameter.grad = None
        loss.backward()
        if parameter is not None:
            self._temperature_grad, parameter.grad = parameter.grad, kept
        return loss.detach()

    @torch.no_grad()
    def _carry(self, upstream: Tensor, *, gradient: Tensor) -> None:
        more = gradient * upstream
        grad = self.log_temperature.grad
        self.log_temperature.grad = more if grad is None else grad + more

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card writes about this loss."""
        return {
            **super().get_config_dict(),
            "mini_batch_size": self.mini_batch_size,
            "mini_batch_num_tokens": self.mini_batch_num_tokens,
        }
