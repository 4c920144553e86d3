"""What every backend is handed: the blocks of candidates, and the arrays of a chunk of anchor rows. Data only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A row shorter than this is a zero row: similarity 0 with everything, gradient 0. torch's cosine_similarity clamps at
# the same length.
SHORTEST_NORM = 1e-8


@dataclass
class Block:
    """Candidates that anchors are compared with.

    `rows` (M, D); `scale` (M,) float32, 1 / norm or 1; `bias` (M,) float32, the log-weight of each column, zeros unless
    `weighted`; `id` (M,) int64 or None. The block of the positives (`holds_positives`) leaves each anchor's positive
    out; another block adds `own_log_weight` at the column that has the anchor's own number.
    """

    rows: Tensor
    scale: Tensor
    bias: Tensor
    weighted: bool
    id: Tensor | None
    own_log_weight: float
    holds_positives: bool
    needs_grad: bool
    half_rows: Tensor | None = None  # the rows as the gradient products multiply them, where that is another type


@dataclass
class Logits:
    """How a similarity becomes a logit: transform, margin, and inverse temperature (0-dim float32, on the device).

    `inv_temperature_value` is the same number where the host knows it without reading the device, else None: then the
    temperature may be learned, and its gradient is summed.
    """

    transform: str
    margin: float
    inv_temperature: Tensor
    inv_temperature_value: float | None


@dataclass
class RowStats:
    """By-products of a chunk of R rows, gathered while the pairs are swept. All (R,)."""

    similarity_sum: Tensor
    count: Tensor
    hardest: Tensor
    hardest_col: Tensor

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> RowStats:
        zero = torch.zeros(rows, dtype=torch.float32, device=device)
        none = torch.full((rows,), -1, dtype=torch.int64, device=device)
        return cls(zero, zero.clone(), torch.full_like(zero, -torch.inf), none)


@dataclass
class RowChunk:
    """R anchor rows and their arrays, all (R,) but `rows` (R, D).

    `similarity` and `logit` are the positive's; `shift` is taken off every logit; `weight` (None: 1) multiplies what is
    stored for the gradient. `sum` and `f_sum` start at zero and are added to by every block's sweep.
    """

    rows: Tensor
    scale: Tensor
    positive: Tensor
    own: Tensor | None
    id: Tensor | None
    similarity: Tensor
    logit: Tensor
    shift: Tensor
    weight: Tensor | None
    sum: Tensor
    f_sum: Tensor
    stats: RowStats | None = None


@dataclass
class Columns:
    """The column direction of the symmetric loss: `shift` (M,) d_j.

    With `weight` (M,) H_j gradient weights are made; without it column sums are added to `sum` (M,).
    """

    shift: Tensor
    weight: Tensor | None = None
    sum: Tensor | None = None


# In the order of the C++ module's enum.
METRICS = ("cosine", "ip", "l2")


@dataclass
class TopKQuery:
    """One search for the k best rows of a corpus.

    `query` (N, D), `corpus` (M, D); ids are both there or both None. `least`, `most` (N,) float64 bound the scores that
    take part. A score is larger the better: a squared distance counts negative.
    """

    query: Tensor
    corpus: Tensor
    k: int
    metric: str
    query_id: Tensor | None
    corpus_id: Tensor | None
    least: Tensor
    most: Tensor


# In the order of the C++ module's enum.
STEPS = ("raw", "l2", "sign")


@dataclass
class Quadruplets:
    """Anchors, each with a positive and two negatives: all (N, D) rows, but with `index` (N,) the batch negatives are
    those rows of `batch_negative` (M, D), -1 being none.

    With `classic` each negative has its hinge and its margin, else both are weighed in one hinge with margins[0].
    """

    anchor: Tensor
    positive: Tensor
    batch_negative: Tensor
    corpus_negative: Tensor
    index: Tensor | None
    weights: tuple[float, float]
    margins: tuple[float, float]
    classic: bool
    normalize: bool

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.anchor, self.positive, self.batch_negative, self.corpus_negative


@dataclass
class Slope:
    """Which gradients of quadruplets are asked for: four flags in the order of their rows, and what multiplies them,
    `factor` and, where it is given, `upstream` (N,) by row.
    """

    wanted: tuple[bool, bool, bool, bool]
    factor: float
    upstream: Tensor | None = None
