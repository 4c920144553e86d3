"""The objectives of the papers as modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..clustering.online import OnlineKMeans
from ..losses.clusterns import clusterns_loss
from ..losses.contrastive import CandidateBlock
from ..losses.hsimcse import hsimcse_loss
from ..losses.quadruplet import WEIGHTS, quadruplet_loss
from .softmax import ContrastiveLoss


class HSimCSELoss(ContrastiveLoss):
    """`hsimcse_loss` as a module: called with anchors, candidates and what `CorpusNegatives` found for the anchors.

    Example:
        >>> loss = HSimCSELoss(noise=0.0, stats=True)
        >>> _ = loss(torch.eye(3), torch.eye(3), torch.ones(3, 3))
        >>> loss.stats.active_share.item()
        0.0
    """

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        quadruplet_weight: float = 0.22,
        weights: Sequence[float] = WEIGHTS,
        margin: float | Sequence[float] = 0.0,
        form: str = "weighted",
        adversarial_step: float = 3.0,
        adversarial_mode: str = "raw",
        noise: float = 1.0,
        learnable_temperature: bool = False,
        symmetric: bool = False,
        reduction: str = "mean",
        stats: bool = False,
        max_workspace_bytes: int | None = None,
        backend: str | None = None,
    ):
        super().__init__(
            hsimcse_loss, temperature=temperature, learnable_temperature=learnable_temperature, stats=stats,
            quadruplet_weight=quadruplet_weight, weights=weights, margin=margin, form=form,
            adversarial_step=adversarial_step, adversarial_mode=adversarial_mode, noise=noise, symmetric=symmetric,
            reduction=reduction, max_workspace_bytes=max_workspace_bytes, backend=backend,
        )  # fmt: skip

    def forward(
        self,
        anchor: Tensor,
        candidate: Tensor,
        corpus_negative: Tensor,
        positive: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        negatives: Tensor | CandidateBlock | list | None = None,
        anchor_id: Tensor | None = None,
        candidate_id: Tensor | None = None,
    ) -> Tensor:
        """The loss; arguments as in the function of the same name."""
        return self._kept(
            anchor, candidate, corpus_negative, positive, generator=generator, negatives=negatives,
            anchor_id=anchor_id, candidate_id=candidate_id,
        )  # fmt: skip


class ClusterNSLoss(ContrastiveLoss):
    """`clusterns_loss` as a module, with its clustering: it moves with every call in training mode and is in the
    state_dict.

    Args:
        clusters: an `OnlineKMeans`; until it has started the loss is InfoNCE.

    Example:
        >>> loss = ClusterNSLoss(OnlineKMeans(2, 3, threshold=1.0, seed=0))
        >>> z = torch.eye(3)
        >>> loss(z, z).item() < loss(z, z).item()
        True
    """

    def __init__(
        self,
        clusters: OnlineKMeans,
        temperature: float = 0.05,
        *,
        margin_weight: float = 1e-3,
        alpha: float = 0.0,
        beta: float = 0.3,
        margin_reduction: str = "ref",
        false_negatives: str = "margin",
        learnable_temperature: bool = False,
        stats: bool = False,
        max_workspace_bytes: int | None = None,
        backend: str | None = None,
    ):
        super().__init__(
            clusterns_loss, temperature=temperature, learnable_temperature=learnable_temperature, stats=stats,
            margin_weight=margin_weight, alpha=alpha, beta=beta, margin_reduction=margin_reduction,
            false_negatives=false_negatives, max_workspace_bytes=max_workspace_bytes, backend=backend,
        )  # fmt: skip
        self.clusters = clusters

    def forward(
        self, anchor: Tensor, candidate: Tensor, *, negatives: Tensor | CandidateBlock | list | None = None
    ) -> Tensor:
        """The loss; candidate i is anchor i's positive."""
        found = self.clusters(anchor, candidate)
        if found is None:
            return self._kept(anchor, candidate, negatives=negatives)
        # A copy: the next call moves the centroids, and this one's backward pass may come later.
        return self._kept(
            anchor, candidate, found.index, self.clusters.centroids.clone(), found.counts, negatives=negatives
        )


class QuadrupletLoss(nn.Module):
    """`quadruplet_loss` as a module.

    Example:
        >>> a, p, n = torch.eye(2), torch.ones(2, 2), torch.eye(2).flip(0)
        >>> QuadrupletLoss(margin=0.5)(a, p, n, n).item()
        0.0
    """

    def __init__(
        self,
        *,
        weights: Sequence[float] = WEIGHTS,
        margin: float | Sequence[float] = 0.0,
        form: str = "weighted",
        normalize: bool = True,
        reduction: str = "mean",
        backend: str | None = None,
    ):
        super().__init__()
        self.options = dict(
            weights=weights, margin=margin, form=form, normalize=normalize, reduction=reduction, backend=backend
        )

    def forward(
        self,
        anchor: Tensor,
        positive: Tensor,
        batch_negative: Tensor,
        corpus_negative: Tensor,
        *,
        candidate: Tensor | None = None,
    ) -> Tensor:
        """The loss; arguments as in the function of the same name."""
        return quadruplet_loss(anchor, positive, batch_negative, corpus_negative, candidate=candidate, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items())
