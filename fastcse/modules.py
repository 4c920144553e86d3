"""The losses as modules: options kept, and a temperature that can be learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any

import torch
from torch import Tensor, nn

from .clustering.online import OnlineKMeans
from .losses.angular import angular_infonce_loss
from .losses.clusterns import clusterns_loss
from .losses.contrastive import CandidateBlock, ContrastiveStats, LossAndStats
from .losses.focal import focal_infonce_loss
from .losses.hsimcse import hsimcse_loss
from .losses.infonce import infonce_loss
from .losses.quadruplet import quadruplet_loss
from .ops import checks

# Keyword arguments of the functions that belong to one call.
_OF_A_CALL = {"positive", "negatives", "candidate", "candidate_id", "candidate_index", "anchor_id", "anchor_index"}
_OF_A_CALL |= {"all_anchor", "generator", "return_stats"}


class ContrastiveLoss(nn.Module):
    """Base of the modules: a subclass names its function, `loss_fn = staticmethod(infonce_loss)`, and has the
    function's options as arguments, with the same defaults; temperature and margin may be positional.

    Args:
        temperature:           > 0, the value or the start of the learned one.
        learnable_temperature: keep it as the parameter `log_temperature`; it is saved in the state_dict and receives
                               a gradient.
        stats:                 fill `.stats` at each call.
        options:               of the function.

    Raises:
        TypeError: an option that the function does not have, by name.
        ValueError: temperature <= 0. Other options are checked by the function.
    """

    loss_fn: Callable[..., Tensor | LossAndStats]

    def __init_subclass__(cls, **more: Any):
        super().__init_subclass__(**more)
        own = list(signature(cls.__init__).parameters.values())[1:]
        named = [p for p in own if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        cls.__signature__ = Signature(own if own == named else [*named, *_options_of(cls.loss_fn)])

    def __init__(self, *values: Any, **options: Any):
        super().__init__()
        bound = Signature(_options_of(self.loss_fn)).bind(*values, **options)
        bound.apply_defaults()
        self.options: dict[str, Any] = bound.arguments
        self.keep_stats = self.options.pop("stats", False)
        self.stats: ContrastiveStats | None = None
        learnable = self.options.pop("learnable_temperature", False)
        self._temperature = self.options.pop("temperature", None)
        if self._temperature is not None:
            checks.check_above_zero("temperature", self._temperature)
            self._temperature = float(self._temperature)
        log_temperature = nn.Parameter(torch.tensor(math.log(self._temperature))) if learnable else None
        self.register_parameter("log_temperature", log_temperature)

    @property
    def temperature(self) -> float | Tensor | None:
        """The temperature in force: a float, or a 0-dim tensor with a gradient; None for a loss without one."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, *rows: Tensor | None, **more: Any) -> Tensor:
        """The loss; arguments as in the function of the same name."""
        kept = self.options if self._temperature is None else {**self.options, "temperature": self.temperature}
        if not self.keep_stats:
            return self.loss_fn(*rows, **more, **kept)
        loss, self.stats = self.loss_fn(*rows, **more, **kept, return_stats=True)
        return loss

    def extra_repr(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        if self._temperature is not None:
            learned = "" if self.log_temperature is None else ", learnable"
            options.insert(0, f"temperature={float(torch.as_tensor(self.temperature).detach()):.4g}{learned}")
        return ", ".join(options)


def _options_of(function: Callable) -> list[Parameter]:
    """The parameters of a function's module."""
    given = signature(function).parameters
    options = {n: p for n, p in given.items() if p.kind is Parameter.KEYWORD_ONLY and n not in _OF_A_CALL}
    names = [n for n in ("temperature", "margin") if n in options]
    first = [options.pop(n).replace(kind=Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    flags = {"learnable_temperature": "temperature", "stats": "return_stats"}
    more = [Parameter(n, Parameter.KEYWORD_ONLY, default=False) for n, needed in flags.items() if needed in given]
    return [*first, *options.values(), *more]


class InfoNCELoss(ContrastiveLoss):
    """`infonce_loss` as a module.

    Example:
        >>> loss = InfoNCELoss(temperature=0.05, stats=True)
        >>> _ = loss(torch.eye(3), torch.eye(3))
        >>> loss.stats.accuracy.item()
        1.0
    """

    loss_fn = staticmethod(infonce_loss)


class FocalInfoNCELoss(ContrastiveLoss):
    """`focal_infonce_loss` as a module.

    Example:
        >>> FocalInfoNCELoss(margin=0.2)(torch.eye(3), torch.eye(3)).item() < 1e-6
        True
    """

    loss_fn = staticmethod(focal_infonce_loss)


class AngularInfoNCELoss(ContrastiveLoss):
    """`angular_infonce_loss` as a module.

    Example:
        >>> AngularInfoNCELoss(margin=0.1)(torch.eye(3), torch.eye(3)).item() < 1e-6
        True
    """

    loss_fn = staticmethod(angular_infonce_loss)


class HSimCSELoss(ContrastiveLoss):
    """`hsimcse_loss` as a module: called with anchors, candidates and a corpus negative of each anchor, as
    `CorpusNegatives` finds them.

    Example:
        >>> loss = HSimCSELoss(noise=0.0, stats=True)
        >>> _ = loss(torch.eye(3), torch.eye(3), torch.ones(3, 3))
        >>> loss.stats.active_share.item()
        0.0
    """

    loss_fn = staticmethod(hsimcse_loss)


class QuadrupletLoss(ContrastiveLoss):
    """`quadruplet_loss` as a module; it has no temperature and no statistics.

    Example:
        >>> a, p, n = torch.eye(2), torch.ones(2, 2), torch.eye(2).flip(0)
        >>> QuadrupletLoss(margin=0.5)(a, p, n, n).item()
        0.0
    """

    loss_fn = staticmethod(quadruplet_loss)


class ClusterNSLoss(ContrastiveLoss):
    """`clusterns_loss` as a module, with its clustering, which is updated by every call in training mode and is part of
    the state_dict.

    Args:
        clusters: an `OnlineKMeans`; until it has started the loss is InfoNCE.

    Example:
        >>> loss = ClusterNSLoss(OnlineKMeans(2, 3, threshold=1.0, seed=0))
        >>> z = torch.eye(3)
        >>> loss(z, z).item() < loss(z, z).item()
        True
    """

    loss_fn = staticmethod(clusterns_loss)

    def __init__(self, clusters: OnlineKMeans, *values: Any, **options: Any):
        super().__init__(*values, **options)
        self.clusters = clusters

    def forward(
        self, anchor: Tensor, candidate: Tensor, *, negatives: Tensor | CandidateBlock | list | None = None
    ) -> Tensor:
        """The loss; candidate i is anchor i's positive."""
        found = self.clusters(anchor, candidate)
        if found is None:
            return super().forward(anchor, candidate, negatives=negatives)
        # A copy: the next call updates the centroids, maybe before this one's backward pass.
        centroids = self.clusters.centroids.clone()
        return super().forward(anchor, candidate, found.index, centroids, found.counts, negatives=negatives)
