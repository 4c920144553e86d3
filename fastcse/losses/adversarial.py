"""The adversarial positive of HSimCSE: a view moved along the gradient of its loss."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..operands import STEPS
from ..ops import checks
from ..ops.adversarial import adversarial_op
from ..ops.dispatch import choose_backend, record
from .infonce import SCALED
from .quadruplet import check_paired


@torch.no_grad()
def adversarial_positive(
    anchor: Tensor,
    positive: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    step: float = 3.0,
    mode: str = "raw",
    noise: float = 1.0,
    generator: torch.Generator | None = None,
    anchor_index: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Each positive moved along the gradient of the contrastive loss: a harder positive, which carries no gradient.

        d_i = a draw from U(-1/2, 1/2)^D brought to length `noise`
        x   = positive + d
        g   = gradient by x of mean_i CE_i(cos(x_i, anchor_j) / temperature), label j = i
        raw:  x_i + step g_i
        l2:   x_i + step |positive_i| g_i / |g_i|
        sign: x_i + step |positive_i| sign(g_i) / sqrt(D)

    g is computed in closed form by the sweep of the losses: no second graph, and no (N, N) matrix. Under "l2" and
    "sign" `step` is the length of the move relative to the row's norm: 0.1 is already much. Under "raw" the released
    3.0 hardly moves rows of a nearly solved batch, and most of the change is the noise.

    Args:
        anchor:      (N, D) float16 | bfloat16 | float32 | float64. Read only, any strides.
        positive:    (N, D) same dtype and device; row i belongs to anchor i. Fewer rows with `anchor_index`.
        temperature: > 0, a float or a tensor of one element.
        step:        length of the move; a negative one makes positives easier.
        mode:        "raw" | "l2" | "sign".
        noise:       length of the random offset, >= 0; 0 draws nothing.
        generator:   of the device; None draws from torch's own.
        anchor_index: (rows of `positive`,) int64, the anchor that each belongs to; None: anchor i. One rank of a group
                     moves its own positives against the anchors of all; the mean is over the anchors.
        backend:     "triton" | "cpp" | "reference"; None chooses by device and dtype.

    Returns:
        (N, D) in the dtype of the input, without gradient.

    Raises:
        ValueError: shapes, dtypes or devices disagree, empty input, temperature <= 0, a step that is not finite, a
            negative noise, unknown mode or backend.
        IndexError: an anchor_index out of range, on the CPU; a GPU, which would stall, does not check.
        RuntimeError: the backend asked for cannot run here.

    Numerics:
        Half-precision input is moved in its own type. g is orthogonal to x. A row without a gradient (N = 1, a zero
        row) is left at x.

    Source: github.com/xubodhu/HSimCSE (raw, 3.0, 1.0), where autograd computes g.

    Example:
        >>> z1, z2 = torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
        >>> adversarial_positive(z1, z2, step=0.5, mode="l2", noise=0.0)[0].tolist()
        [0.5, 1.5]
    """
    checks.check_rows("anchor", anchor)
    checks.check_same_kind("positive", positive, "anchor", anchor)
    if anchor_index is None:
        check_paired("positive", positive, anchor)
    else:
        checks.check_vector("anchor_index", anchor_index, positive.shape[0], "positive", positive)
    checks.check_temperature(temperature)
    checks.check_finite("step", step)
    checks.check_choice("mode", mode, STEPS)
    checks.check_finite("noise", noise)
    if noise < 0:
        raise ValueError(f"noise must be at least 0, got {noise!r}")
    chosen, step, noise, offset = choose_backend(anchor, backend), float(step), float(noise), None
    if noise > 0:
        drawn = torch.rand(positive.shape, generator=generator, dtype=torch.float32, device=positive.device)
        offset = drawn - 0.5
    if chosen == "reference":
        record(chosen)
        checks.check_index("anchor_index", anchor_index, anchor.shape[0], "anchor")
        dtype = torch.promote_types(positive.dtype, torch.float32)
        a, start = anchor.to(dtype), positive.to(dtype)
        x = start if offset is None else reference.step_rows(start, offset.to(dtype), noise, "l2")
        inverse = 1.0 / (temperature.reshape(()).to(dtype) if isinstance(temperature, Tensor) else temperature)
        g = reference.attack_gradient(x, a, inverse, anchor_index)
        radius = step if mode == "raw" else step * torch.linalg.vector_norm(start, dim=1)
        return reference.step_rows(x, g, radius, mode).to(positive.dtype)
    rows, inverse, fixed = (anchor.detach(), positive.detach(), offset, noise), None, 0.0
    if isinstance(temperature, Tensor):
        inverse = temperature.detach().float().reciprocal().reshape(())
    else:
        fixed = float(temperature)
    return adversarial_op(*rows, inverse, fixed, SCALED.name, step, mode, anchor_index, chosen)
