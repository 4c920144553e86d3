"""sentence-transformers' GISTEmbedLoss and its gradient-cached twin: InfoNCE whose negatives a guide model filters pair
by pair, in chunks of rows.

No sweep masks single pairs, so this is plain torch: exact, and with memory for one chunk of rows only, because each
chunk's gradients are computed before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer import losses as peer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...distributed import gather_equal_rows
from ...ops import checks
from ...reference import log_ratio_loss, unit_rows

# Logits of a chunk over all blocks: 32 MiB in float32, ten times that with their masks and gradients; and the fewest
# rows of one, whatever that takes, because each chunk visits all columns and their gradients.
LOGITS, FEWEST = 2**23, 64
# Rows of equal texts must stay equal to the guide, however a product rounds them.
ROUNDING = 8


class _Guided:
    """The loss of both classes, of embeddings."""

    used_backend: str | None = None  # of the last forward
    citation = peer.GISTEmbedLoss.citation

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], guides: list[Tensor]) -> Tensor:
        """The loss of columns that both models have embedded: [(N, D) anchor, (N, D) positive, (N, D) negative ...]
        twice, of any two widths."""
        if len(embeddings) < 2 or len(embeddings) != len(guides):
            raise ValueError(
                "expected at least 2 columns of embeddings, and as many of the guide's, "
                f"got {len(embeddings)} and {len(guides)}"
            )
        guides, first = [g.detach() for g in guides], 0
        if self.gather_across_devices:
            # Anchors of other processes are no negatives.
            _, first = gather_equal_rows(embeddings[1])
            embeddings, guides = ([xs[0], *(gather_equal_rows(x)[0] for x in xs[1:])] for xs in (embeddings, guides))
        contrasted = (self.contrast_anchors, self.contrast_positives)
        options = Guided(self.temperature, self.margin_strategy == "relative", self.margin, *contrasted, first)
        self.used_backend = "torch"
        return guided_loss(embeddings, guides, options)


def _check(loss: Any) -> None:
    checks.check_above_zero("temperature", loss.temperature)
    checks.check_finite("margin", loss.margin)


class GISTEmbedLoss(_Guided, peer.GISTEmbedLoss):
    r"""sentence-transformers' loss of the same name and arguments, in O(N D) memory: InfoNCE without the negatives
    that a guide model takes for positives.

    With s the cosines of the model and g those of the guide, for anchors a and positives p:

        loss_i = log(exp(s(a_i, p_i) / t) + sum of exp(s / t) over the negatives that are kept) - s(a_i, p_i) / t

    Negatives of row i are (a_i, p_j), (a_i, n_j) for every column of negatives, (a_i, a_j) and (p_i, p_j); one is kept
    if its g is at most g(a_i, p_i) - margin ("absolute") or g(a_i, p_i) - margin |g(a_i, p_i)| ("relative").

    No sweep of fastcse masks single pairs, so this is plain torch on chunks of rows: `used_backend` is "torch". Memory
    beside the rows and their gradients is O(chunk N), about 400 MiB, time that of the products of all blocks for model
    and guide. sentence-transformers' class multiplies rows pair by pair, with O(N^2 D) memory.

    Args:
        model:              the encoder; the embeddings are computed by it at each call.
        guide:              the encoder that filters. The text is tokenized again if its tokenizer is another one.
        temperature:        t > 0.
        margin_strategy:    "absolute" | "relative".
        margin:             see above.
        contrast_anchors, contrast_positives: whether (a_i, a_j) and (p_i, p_j) are negatives.
        gather_across_devices: positives and negatives of all processes, which must hold equally many rows.

    Raises:
        ValueError: an argument is none of its values, a model without a tokenizer of transformers, fewer than two
        columns.

    Numerics: float32, or float64 for float64 embeddings. A pair within 8 roundings of the bar counts as equal to it and
    is kept, so that copies of a positive do not depend on how a product rounds. Any number of negative columns.

    Source: Solatorio, arXiv:2402.16829. Interface: sentence-transformers 6.2.

    Example:
        >>> loss = GISTEmbedLoss(model, guide, margin_strategy="relative", margin=0.05)          # doctest: +SKIP
        >>> SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=loss).train()      # doctest: +SKIP
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        _check(self)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; `sentence_features` holds one tokenized batch per column, `labels` are not read."""
        columns = list(sentence_features)
        # Copies: the guide writes its embeddings where MatryoshkaLoss looks for the model's.
        judged = [dict(features) for features in columns]
        embeddings = embed_columns(self.model, columns)
        with torch.no_grad():
            guides = embed_columns(self.guide, [self._for_guide(features) for features in judged])
        return self.compute_loss_from_embeddings(embeddings, guides)

    def _for_guide(self, features: dict[str, Any]) -> dict[str, Any]:
        """A column, in the guide's tokens."""
        if not self.must_retokenize:
            return features
        ids = features["input_ids"]
        if "cu_seq_lens_q" in features:  # sentences packed into one row
            cuts = features["cu_seq_lens_q"].tolist()
            ids = [ids[0][begin:end] for begin, end in pairwise(cuts)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return batch_to_device(self.guide.preprocess(texts), self.guide.device)


class CachedGISTEmbedLoss(_Guided, peer.CachedGISTEmbedLoss):
    r"""`GISTEmbedLoss` over batches whose activations do not fit in memory (GradCache).

    Both models embed the batch in pieces, the guide once and the model twice.

    Args:
        mini_batch_size:       sentences in a piece.
        mini_batch_num_tokens: if given, tokens in a piece, instead of a number of sentences.
        show_progress_bar:     one bar for each column.
        All others are those of `GISTEmbedLoss`.

    Raises:
        ValueError: as there; or the model is a StaticEmbedding, whose input has no pieces.

    Numerics: the gradient is the one of the plain loss, dropout masks included.

    Source: Gao et al., arXiv:2101.06983, through sentence-transformers' `CachedLossMixin`.

    Example:
        >>> loss = CachedGISTEmbedLoss(model, guide, mini_batch_size=64)                         # doctest: +SKIP
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        checks.check_count("mini_batch_size", self.mini_batch_size)
        _check(self)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; its gradient runs through the pieces when `backward` is called."""
        return super().forward(sentence_features, labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], reps_guided: list[list[Tensor]], *, with_backward: bool = False
    ) -> Tensor:
        """The loss of columns in pieces; with `with_backward` the pieces receive their gradients."""
        columns, guides = ([torch.cat(pieces) for pieces in xs] for xs in (reps, reps_guided))
        loss = self.compute_loss_from_embeddings(columns, guides)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss


class Guided(NamedTuple):
    """The options of the filter; `first` is the row among all positives at which this process's start."""

    temperature: float
    relative: bool
    margin: float
    contrast_anchors: bool
    contrast_positives: bool
    first: int

    def threshold(self, positive: Tensor) -> Tensor:
        """The largest similarity of a negative, by the guide, for the positive's."""
        allowed = positive - (positive.abs() if self.relative else 1.0) * self.margin
        return allowed + ROUNDING * torch.finfo(positive.dtype).eps


def guided_loss(columns: list[Tensor], guides: list[Tensor], options: Guided) -> Tensor:
    """Scalar: the mean over the (N, D) anchors `columns[0]`; the others are (M, D): positives, and negatives."""
    wide = ([x.to(torch.promote_types(x.dtype, torch.float32)) for x in xs] for xs in (columns, guides))
    rows, seen = ([unit_rows(x) for x in xs] for xs in wide)
    anchors = len(rows[0])
    width = sum(len(x) for x in rows[1:])
    width += options.contrast_anchors * anchors + options.contrast_positives * len(rows[1])

    def losses(leaves: list[Tensor], begin: int, end: int) -> Tensor:
        return _chunk(leaves, seen, begin, end, options)

    total = _SumOverChunks.apply(losses, max(FEWEST, LOGITS // width), torch.is_grad_enabled(), *rows)
    return total / anchors


def _chunk(rows: list[Tensor], seen: list[Tensor], begin: int, end: int, o: Guided) -> Tensor:
    """Sum of the losses of the anchors begin:end."""
    own = slice(o.first + begin, o.first + end)
    sides = [(0, slice(begin, end), k) for k in range(1, len(rows))]  # row and column blocks, as indices of `rows`
    sides += [(0, slice(begin, end), 0)] * o.contrast_anchors + [(1, own, 1)] * o.contrast_positives
    row = torch.arange(end - begin, device=rows[0].device)
    column = row + own.start
    bar, logits, kept = None, [], []
    for left, part, right in sides:
        with torch.no_grad():
            guided = seen[left][part] @ seen[right].T  # (n, M)
            # The first block holds the positives.
            bar = o.threshold(guided[row, column])[:, None] if bar is None else bar
            kept.append(~(guided > bar))
        logits.append(rows[left][part] @ rows[right].T / o.temperature)
    positive = logits[0][row, column]
    kept[0][row, column] = False  # it is no negative, whatever the guide says
    return log_ratio_loss(torch.cat(logits, 1), torch.cat(kept, 1), positive).sum()


class _SumOverChunks(torch.autograd.Function):
    """A sum of chunks' losses that holds gradients of the rows instead of chunks' graphs."""

    @staticmethod
    def forward(ctx, losses: Callable, chunk: int, gradients: bool, *rows):
        total = rows[0].new_zeros(())
        made = [torch.zeros_like(x) if gradients and x.requires_grad else None for x in rows]
        wanted = [k for k, g in enumerate(made) if g is not None]
        for begin in range(0, len(rows[0]), chunk):
            leaves = [x.detach().requires_grad_(g is not None) for x, g in zip(rows, made)]
            with torch.set_grad_enabled(bool(wanted)), torch.autocast(rows[0].device.type, enabled=False):
                part = losses(leaves, begin, min(begin + chunk, len(rows[0])))
            if wanted:
                for k, g in zip(wanted, torch.autograd.grad(part, [leaves[k] for k in wanted])):
                    made[k] += g
            total += part.detach()
        ctx.save_for_backward(*made)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        return None, None, None, *[None if g is None else g * upstream for g in ctx.saved_tensors]
