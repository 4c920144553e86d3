"""sentence-transformers' GISTEmbedLoss and its gradient-cached twin, in chunks of rows."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.base.losses.gradcache import _create_minibatch
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...ops import checks
from .. import citations
from ..gathering import first_row, gathered
from .guided import Guided, guided_loss
from .ranking_options import check_pieces

MARGINS = ("absolute", "relative")


class GISTEmbedLoss(nn.Module):
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
        model:              the encoder; the embeddings come from it at each call.
        guide:              the encoder that judges. It reads the text anew if its tokenizer is another one.
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

    def __init__(
        self,
        model: SentenceTransformer,
        guide: SentenceTransformer,
        temperature: float = 0.01,
        margin_strategy: str = "absolute",
        margin: float = 0.0,
        contrast_anchors: bool = True,
        contrast_positives: bool = True,
        gather_across_devices: bool = False,
    ):
        super().__init__()
        checks.check_above_zero("temperature", temperature)
        checks.check_choice("margin_strategy", margin_strategy, MARGINS)
        checks.check_finite("margin", margin)
        self.must_retokenize = _reads_otherwise(model, guide)
        if self.must_retokenize:
            self.tokenizer = model.tokenizer
        self.model, self.guide, self.temperature = model, guide, temperature
        self.margin_strategy, self.margin = margin_strategy, margin
        self.contrast_anchors, self.contrast_positives = contrast_anchors, contrast_positives
        self.gather_across_devices = gather_across_devices
        self.used_backend: str | None = None  # of the last forward

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; `sentence_features` holds one tokenized batch per column, `labels` are not read."""
        columns = list(sentence_features)
        # Copies: the guide writes its embeddings where MatryoshkaLoss looks for the model's.
        judged = [dict(features) for features in columns]
        embeddings = embed_columns(self.model, columns)
        with torch.no_grad():
            guides = embed_columns(self.guide, [self._for_guide(features) for features in judged])
        return self.compute_loss_from_embeddings(embeddings, guides)

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
            # Anchors of other processes are no negatives of anybody.
            embeddings, guides = ([xs[0], *[gathered(x) for x in xs[1:]]] for xs in (embeddings, guides))
            first = first_row(embeddings[0])
        options = Guided(
            self.temperature, self.margin_strategy == "relative", self.margin, self.contrast_anchors,
            self.contrast_positives, first,
        )  # fmt: skip
        self.used_backend = "torch"
        return guided_loss(embeddings, guides, options)

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

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card writes about this loss."""
        return {
            "guide": self.guide,
            "temperature": self.temperature,
            "margin_strategy": self.margin_strategy,
            "margin": self.margin,
            "contrast_anchors": self.contrast_anchors,
            "contrast_positives": self.contrast_positives,
            "gather_across_devices": self.gather_across_devices,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the objective."""
        return citations.GIST


class CachedGISTEmbedLoss(CachedLossMixin, GISTEmbedLoss):
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

    def __init__(
        self,
        model: SentenceTransformer,
        guide: SentenceTransformer,
        temperature: float = 0.01,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        margin_strategy: str = "absolute",
        margin: float = 0.0,
        contrast_anchors: bool = True,
        contrast_positives: bool = True,
        gather_across_devices: bool = False,
    ):
        super().__init__(
            model, guide, temperature, margin_strategy, margin, contrast_anchors, contrast_positives,
            gather_across_devices,
        )  # fmt: skip
        check_pieces(model, mini_batch_size, mini_batch_num_tokens)
        self.mini_batch_size, self.mini_batch_num_tokens = mini_batch_size, mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar
        self._judged: list[Tensor] = []  # the guide's pieces of the batch at hand, in the order of the columns

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; its gradient runs through the pieces when `backward` is called."""
        self._judged = []
        return self.forward_cached(sentence_features, labels)

    def embed_minibatch(self, sentence_feature: dict[str, Any], begin: int, end: int, with_grad: bool, **more: Any):
        """A piece of the model's embeddings; the first time, the guide's are kept beside it."""
        embedded = super().embed_minibatch(sentence_feature, begin, end, with_grad, **more)
        if not with_grad:
            with torch.no_grad():
                piece = self._for_guide(_create_minibatch(sentence_feature, begin, end))
                self._judged.append(self.guide(piece)["sentence_embedding"])
        return embedded

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of columns in pieces; with `with_backward` the pieces receive their gradients."""
        pieces = iter(self._judged)
        guides = [torch.cat([next(pieces) for _ in column]) for column in reps]
        loss = self.compute_loss_from_embeddings([torch.cat(column) for column in reps], guides)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card writes about this loss."""
        pieces = {"mini_batch_size": self.mini_batch_size, "mini_batch_num_tokens": self.mini_batch_num_tokens}
        return {**super().get_config_dict(), **pieces}


def _reads_otherwise(model: SentenceTransformer, guide: SentenceTransformer) -> bool:
    """Whether the guide needs tokens of its own."""
    for name, one in (("model", model), ("guide", guide)):
        if not isinstance(getattr(one, "tokenizer", None), PreTrainedTokenizerBase):
            got = type(getattr(one, "tokenizer", None)).__name__
            raise ValueError(f"{name} must have a tokenizer of transformers, to read one text with both, got {got}")
    other = model.tokenizer.get_vocab() != guide.tokenizer.get_vocab() or guide.max_seq_length < model.max_seq_length
    if other and isinstance(model[0], StaticEmbedding):
        raise ValueError("guide must have the tokenizer of a model that is a StaticEmbedding, got another vocabulary")
    return other
