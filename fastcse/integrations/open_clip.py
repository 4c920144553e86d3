"""open_clip's ClipLoss over fastcse's sweeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..distributed import gather_equal_rows
from ..losses.infonce import infonce_loss
from ..ops import checks
from ..ops.dispatch import last_backend


class ClipLoss(nn.Module):
    r"""open_clip's loss of the same name, arguments and call, without the two (N, N) matrices of logits.

    With x_ij = logit_scale <image_i, text_j>, for features that the model has normalised:

        loss = mean_i (logsumexp_j x_ij - x_ii) / 2 + mean_j (logsumexp_i x_ij - x_jj) / 2

    Over several processes `local_loss=True, gather_with_grad=True` is the one to choose: each computes its own rows
    against all, and the mean over the processes has the gradient of the whole batch. The others are kept as they are in
    open_clip: without `local_loss` every process computes all N^2 pairs; without `gather_with_grad` only own features
    have a gradient, which with all rows is the whole batch's divided by the number of processes, and with local rows
    lacks the other processes' part.

    Args:
        local_loss:       own rows against all; False: all against all.
        gather_with_grad: whether features of other processes have a gradient.
        cache_labels:     nothing to keep: there are no labels.
        rank, world_size: of this process; above 1 the default process group gathers, of equally many rows each.
        use_horovod:      must be False.
        backend:          "triton" | "cpp" | "reference"; None lets fastcse choose; `used_backend` is the last one's.

    Called as `loss(image_features, text_features, logit_scale, logit_bias=None, output_dict=False)`: (N, D) features of
    one dtype; logit_scale a number or a tensor of one element > 0, that may require grad; logit_bias, the same for
    every pair, cancels, and has gradient 0. Returns a float32 scalar, or {"contrastive_loss": scalar}.

    Raises:
        ValueError: use_horovod; logit_scale not above 0; world_size and the process group disagree; shapes and dtypes
        as `infonce_loss`.

    Numerics: those of `infonce_loss`. open_clip's logits have the features' dtype, these are float32.

    Source: Radford et al., arXiv:2103.00020. Interface: open_clip 3.

    Example:
        >>> ClipLoss()(torch.eye(3), torch.eye(3), logit_scale=torch.tensor(100.0)).item() < 1e-6
        True
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        backend: str | None = None,
    ):
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod must be False: rows are gathered by torch.distributed, got True")
        checks.check_count("world_size", world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 and below world_size, got {rank} and {world_size}")
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size, self.use_horovod = rank, world_size, use_horovod
        self.backend = backend
        self.used_backend: str | None = None  # of the last forward

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a batch."""
        options = {"temperature": _temperature(logit_scale), "normalize": False, "backend": self.backend}
        if self.world_size == 1:
            loss = infonce_loss(image_features, text_features, symmetric=True, **options)
        else:
            images, texts = (self._gathered(x) for x in (image_features, text_features))
            if self.local_loss:
                first = self.rank * len(image_features)
                own = torch.arange(first, first + len(image_features), device=image_features.device)
                by_image = infonce_loss(image_features, texts, own, **options)
                loss = (by_image + infonce_loss(text_features, images, own, **options)) / 2
            else:
                loss = infonce_loss(images, texts, symmetric=True, **options)
        self.used_backend = last_backend()
        if isinstance(logit_bias, Tensor):
            # A parameter that data-parallel training waits for must have its zeros.
            loss = loss + 0.0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss

    def _gathered(self, own: Tensor) -> Tensor:
        """(W N, D) rows of all processes, with the gradient by the options."""
        if self.gather_with_grad:
            rows, _ = gather_equal_rows(own)
        else:
            rows, _ = gather_equal_rows(own.detach())
            if not self.local_loss:
                begin, end = self.rank * len(own), (self.rank + 1) * len(own)
                rows = torch.cat([rows[:begin], own, rows[end:]])
        if len(rows) != self.world_size * len(own):
            raise ValueError(
                f"world_size must be the process group's, got {self.world_size}, and {len(rows)} rows gathered from "
                f"{len(own)}"
            )
        return rows


def _temperature(logit_scale: Tensor | float) -> Tensor | float:
    if isinstance(logit_scale, Tensor):
        # Not in half precision, where 1 / x has three digits.
        return logit_scale.to(torch.promote_types(logit_scale.dtype, torch.float32)).reciprocal()
    checks.check_above_zero("logit_scale", logit_scale)
    return 1.0 / logit_scale
