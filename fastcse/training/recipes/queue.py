"""Negatives of past batches, made by an encoder that follows the trained one (MoCo)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import _create_minibatch, _minibatch_ranges
from torch import Tensor, nn
from transformers import TrainerCallback

from ...distributed import RaggedGather
from ...losses.contrastive import CandidateBlock
from ...losses.negative_queue import NegativeQueue


class MomentumEncoder(nn.Module):
    """A copy of an encoder that follows it: after each step k <- rate k + (1 - rate) q, of weights and float buffers.

    It is called like the encoder, gives no gradient, and has no parameters that require one. As in MoCo it is in
    training mode when the module around it is: its dropout is what makes another view of a sentence.

    Args:
        module: the encoder; copied, not kept.
        rate:   share that the copy keeps of itself in an update, 0 to 1.

    Raises:
        ValueError: a rate outside 0 to 1.

    Numerics: in the weights' own type. Below float32 the steps of a rate of 0.999 round away: keep weights in float32,
        as mixed precision does. Buffers of whole numbers are copied. MoCo's own code leaves buffers to the copy's
        forward passes; sentence encoders have none that matter.

    Source: He et al. (MoCo), arXiv:1911.05722.

    Example:
        >>> online = nn.Linear(3, 2)
        >>> slow = MomentumEncoder(online, rate=0.5)
        >>> _ = online.weight.data.add_(1.0)
        >>> slow.update(online)
        >>> round((online.weight - slow.encoder.weight).mean().item(), 5)
        0.5
    """

    def __init__(self, module: nn.Module, rate: float = 0.999):
        super().__init__()
        self.rate = _checked(rate)
        self.encoder = copy.deepcopy(module).requires_grad_(False)
        self.training = module.training

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy gives, without gradient. A sentence-transformers model writes into the features it gets: hand
        it a copy of them if the encoder sees them too."""
        return self.encoder(*args, **kwargs)

    @torch.no_grad()
    def update(self, module: nn.Module, rate: float | None = None) -> None:
        """Follow `module`, by `rate` or the one of this encoder. Call it after the optimizer's step.

        Raises:
            ValueError: a module with other parameters or buffers than the copied one's, or a rate outside 0 to 1.
        """
        kept = _checked(self.rate if rate is None else rate)
        own, other = _tensors(self.encoder), _tensors(module)
        if own.keys() != other.keys():
            raise ValueError(
                f"module must have the tensors that were copied, got others: {sorted(own.keys() ^ other.keys())}"
            )
        moving = [name for name, value in own.items() if value.is_floating_point()]
        for name in own.keys() - set(moving):
            own[name].copy_(other[name])
        if moving:
            torch._foreach_lerp_([own[n] for n in moving], [other[n].detach() for n in moving], 1.0 - kept)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _checked(rate: float) -> float:
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be from 0 to 1, got {rate}")
    return rate


class MomentumQueue(TrainerCallback):
    """Rows of past batches as negatives: those that the momentum encoder made of each batch's second view.

    All processes push the rows of all, and so hold the same queue. It is no module: the loss that it is part of must
    not take its encoder for its own.
    """

    def __init__(self, model: SentenceTransformer, size: int, rate: float, mini_batch_size: int | None = None):
        self.encoder = MomentumEncoder(model, rate)
        self.rows = NegativeQueue(size, model.get_embedding_dimension(), device=model.device)
        self.mini_batch_size = mini_batch_size

    def block(self, dtype: torch.dtype) -> list[CandidateBlock]:
        """What the queue holds, as blocks of negatives."""
        block = self.rows.block(dtype)
        return [] if block is None else [block]

    @torch.no_grad()
    def push(self, features: dict[str, Any]) -> None:
        """The rows of a tokenized column into the queue."""
        self.encoder.train()
        ranges = _minibatch_ranges(features, self.mini_batch_size or len(features["input_ids"]))
        rows = torch.cat([self._embedded(_create_minibatch(features, *cut)) for cut in ranges])
        self.rows.push(RaggedGather.of([rows]).gather(rows, 0))

    def _embedded(self, features: dict[str, Any]) -> Tensor:
        return self.encoder(dict(features))["sentence_embedding"].float()

    def state_dict(self) -> dict[str, Any]:
        return {"encoder": self.encoder.state_dict(), "rows": self.rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.encoder.load_state_dict(state["encoder"])
        self.rows.load_state_dict(state["rows"])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.encoder.update(getattr(model, "module", model))
