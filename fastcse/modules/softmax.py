"""nn.Module shells: the losses with their options kept, and a temperature that can be learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..losses.angular import angular_infonce_loss
from ..losses.clusterns import ClusterNSStats
from ..losses.contrastive import CandidateBlock, ContrastiveStats, LossAndStats
from ..losses.focal import focal_infonce_loss
from ..losses.hsimcse import HSimCSEStats
from ..losses.infonce import infonce_loss
from ..ops import checks


class ContrastiveLoss(nn.Module):
    """Base of the softmax losses: keeps `options` for `loss_fn`, and the temperature, as a float or as a parameter in
    log space.

    Args:
        loss_fn:               the function behind the module.
        temperature:           > 0, the value or the start of the learned one.
        learnable_temperature: keep it as the parameter `log_temperature`; it is saved in the state_dict and receives
                               a gradient.
        stats:                 fill `.stats` at each call.
        options:               keyword arguments of `loss_fn`.
    """

    def __init__(self, loss_fn, *, temperature: float, learnable_temperature: bool, stats: bool, **options):
        super().__init__()
        checks.check_above_zero("temperature", temperature)
        self.loss_fn, self.options, self.keep_stats = loss_fn, options, stats
        self.stats: ContrastiveStats | HSimCSEStats | ClusterNSStats | None = None
        self._temperature = float(temperature)
        log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learnable_temperature else None
        self.register_parameter("log_temperature", log_temperature)

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in force: a float, or a 0-dim tensor with a gradient."""
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(
        self,
        anchor: Tensor,
        candidate: Tensor,
        positive: Tensor | None = None,
        *,
        negatives: Tensor | CandidateBlock | list | None = None,
        anchor_id: Tensor | None = None,
        candidate_id: Tensor | None = None,
    ) -> Tensor:
        """The loss; arguments as in the function of the same name."""
        return self._kept(
            anchor, candidate, positive, negatives=negatives, anchor_id=anchor_id, candidate_id=candidate_id
        )

    def _kept(self, *rows: Tensor | None, **more) -> Tensor:
        """The loss, by-products kept where they are asked for."""
        result = self.loss_fn(*rows, **more, temperature=self.temperature, return_stats=self.keep_stats, **self.options)
        if isinstance(result, LossAndStats):
            self.stats = result.stats
            return result.loss
        return result

    def extra_repr(self) -> str:
        learned = ", learnable" if self.log_temperature is not None else ""
        temperature = float(torch.as_tensor(self.temperature).detach())
        return ", ".join([f"temperature={temperature:.4g}{learned}", *[f"{k}={v!r}" for k, v in self.options.items()]])


class InfoNCELoss(ContrastiveLoss):
    """`infonce_loss` as a module.

    Example:
        >>> loss = InfoNCELoss(temperature=0.05, stats=True)
        >>> _ = loss(torch.eye(3), torch.eye(3))
        >>> loss.stats.accuracy.item()
        1.0
    """

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        learnable_temperature: bool = False,
        symmetric: bool = False,
        normalize: bool = True,
        reduction: str = "mean",
        stats: bool = False,
        max_workspace_bytes: int | None = None,
        backend: str | None = None,
    ):
        super().__init__(
            infonce_loss, temperature=temperature, learnable_temperature=learnable_temperature, stats=stats,
            symmetric=symmetric,
            normalize=normalize, reduction=reduction, max_workspace_bytes=max_workspace_bytes, backend=backend,
        )  # fmt: skip


class FocalInfoNCELoss(ContrastiveLoss):
    """`focal_infonce_loss` as a module.

    Example:
        >>> FocalInfoNCELoss(margin=0.2)(torch.eye(3), torch.eye(3)).item() < 1e-6
        True
    """

    def __init__(
        self,
        temperature: float = 0.05,
        margin: float = 0.3,
        *,
        detach_modulation: bool = False,
        learnable_temperature: bool = False,
        symmetric: bool = False,
        normalize: bool = True,
        reduction: str = "mean",
        stats: bool = False,
        max_workspace_bytes: int | None = None,
        backend: str | None = None,
    ):
        super().__init__(
            focal_infonce_loss, temperature=temperature, learnable_temperature=learnable_temperature, stats=stats,
            margin=margin,
            detach_modulation=detach_modulation, symmetric=symmetric, normalize=normalize, reduction=reduction,
            max_workspace_bytes=max_workspace_bytes, backend=backend,
        )  # fmt: skip


class AngularInfoNCELoss(ContrastiveLoss):
    """`angular_infonce_loss` as a module.

    Example:
        >>> AngularInfoNCELoss(margin=0.1)(torch.eye(3), torch.eye(3)).item() < 1e-6
        True
    """

    def __init__(
        self,
        temperature: float = 0.05,
        margin: float = 0.15,
        *,
        learnable_temperature: bool = False,
        symmetric: bool = False,
        normalize: bool = True,
        reduction: str = "mean",
        stats: bool = False,
        max_workspace_bytes: int | None = None,
        backend: str | None = None,
    ):
        super().__init__(
            angular_infonce_loss, temperature=temperature, learnable_temperature=learnable_temperature, stats=stats,
            margin=margin,
            symmetric=symmetric, normalize=normalize, reduction=reduction,
            max_workspace_bytes=max_workspace_bytes, backend=backend,
        )  # fmt: skip
