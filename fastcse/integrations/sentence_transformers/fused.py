"""The fused losses as a loss of sentence-transformers' `SentenceTransformerTrainer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch import distributed as dist

from ...clustering.online import OnlineAssignment, OnlineKMeans
from ...distributed import average_gradient, gathered_loss, is_many, total_over_ranks
from ...losses.contrastive import CandidateBlock
from ...mining.corpus_negatives import CorpusNegatives
from ...ops.dispatch import last_backend


class KeySource(Protocol):
    """A queue of past rows."""

    def block(self, dtype: torch.dtype) -> list[CandidateBlock]:
        """What it holds now."""

    def push(self, features: dict[str, Any]) -> None:
        """A tokenized column, to be encoded and kept."""


class FusedContrastiveLoss(nn.Module):
    r"""A fastcse loss for `SentenceTransformerTrainer`, over the columns anchor, positive, negative_1 ... negative_n.

    With rows a, p, n_k of the columns, the loss is `loss(a, p, negatives=[n_1, ...], **options)`: in-batch positives of
    other rows and all hard negatives of the batch are every row's negatives. With ONE column the sentences are encoded
    twice in one forward pass, and the two dropout masks are the two views (SimCSE, unsupervised); that needs dropout.

    The embeddings come from the model at each call, so data-parallel and compiled wrappers work, and so do
    MatryoshkaLoss around this loss and `learning_rate_mapping` for a learnable temperature.

    Args:
        model:   the encoder; its `sentence_embedding` is used, of any width.
        loss:    `fastcse.infonce_loss`, `fastcse.focal_infonce_loss`, or any function with their arguments.
        learnable_temperature: train the temperature, from `options["temperature"]`; it is stored as its logarithm.
        corpus_negatives: for `fastcse.hsimcse_loss`: called as `loss(a, p, rows, ...)` with one corpus negative for
                 each anchor. The dataset needs a column `label` with the id in the bank of each anchor, or a list: of
                 its anchor and its positive; -1 where the bank does not hold the text.
        clusters: for `fastcse.clusterns_loss`: moves with every batch in training, and once it has started the loss is
                 called as `loss(a, p, index, centroids, counts, ...)`.
        queue:   past rows as more negatives: asked for its `block(dtype)`, and in training then given the last view of
                 the batch to `push`.
        extra_columns: how many columns behind the positive are arguments of the loss, before its negatives.
        gather_across_devices: over several processes, take every rank's rows as candidates, with the gradient that one
                 process would have: see `fastcse.distributed.gathered_loss`.
        max_gathered_bytes: where all ranks' rows would take more they travel in a ring; see there.
        backend: "triton" | "cpp" | "reference"; None lets fastcse choose.
        cite:    BibTeX for the model card.
        options: keyword arguments of `loss`, such as `temperature`, `margin` and `symmetric`.

    Raises:
        ValueError: no column, a learnable temperature without a first value, or what `loss` refuses.

    Example:
        >>> loss = FusedContrastiveLoss(model, fastcse.focal_infonce_loss, temperature=0.05)          # doctest: +SKIP
        >>> SentenceTransformerTrainer(model=model, train_dataset=pairs, loss=loss).train()      # doctest: +SKIP
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: Callable,
        *,
        learnable_temperature: bool = False,
        corpus_negatives: CorpusNegatives | None = None,
        clusters: OnlineKMeans | None = None,
        queue: KeySource | None = None,
        extra_columns: int = 0,
        gather_across_devices: bool = False,
        max_gathered_bytes: int | None = None,
        backend: str | None = None,
        cite: str = "",
        **options: Any,
    ):
        super().__init__()
        if learnable_temperature and not options.get("temperature", 0) > 0:
            raise ValueError(f"learnable_temperature needs a first temperature > 0, got {options.get('temperature')}")
        self.model = model
        self.loss = loss
        self.corpus_negatives, self.clusters = corpus_negatives, clusters
        self.queue, self.extra_columns = queue, extra_columns
        self.gather_across_devices, self.max_gathered_bytes = gather_across_devices, max_gathered_bytes
        self.backend = backend
        self.cite = cite
        self.options = options
        self.log_temperature = (
            nn.Parameter(torch.tensor(math.log(options["temperature"]))) if learnable_temperature else None
        )
        self.used_backend: str | None = None  # of the last forward
        self._sums: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; `sentence_features` holds one tokenized batch per column, `labels` the anchors' ids in
        the bank where there is one."""
        columns = list(sentence_features)
        rows = two_views(self.model, columns[0]) if len(columns) == 1 else [embed(self.model, one) for one in columns]
        loss = self.compute_loss_from_embeddings(rows, labels)
        self._keep(columns)
        return loss

    def _keep(self, columns: list[dict[str, Any]]) -> None:
        """The batch's second views into the queue, for the batches to come."""
        if self.queue is not None and self.training:
            self.queue.push(columns[0] if len(columns) == 1 else columns[1])

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss of columns that are already embedded: [(N, D) anchor, (N, D) positive, (N, D) negative ...]."""
        if len(embeddings) < 2:
            raise ValueError(f"expected at least 2 columns of embeddings, anchor and positive, got {len(embeddings)}")
        anchor, positive, *negatives = embeddings
        options = dict(self.options)
        if self.log_temperature is not None:
            options["temperature"] = self.log_temperature.exp()
            if not self.gather_across_devices:
                # Data-parallel wrappers average the model's gradients over processes, and not this one's.
                options["temperature"] = average_gradient(options["temperature"])
        more, negatives = negatives[: self.extra_columns], negatives[self.extra_columns :]
        more += [] if self.corpus_negatives is None else [self._from_corpus(anchor, positive, labels)]
        if self.clusters is not None:
            more += self._clustered(anchor, positive)
        options |= {"negatives": negatives or None, "backend": self.backend, "return_stats": True}
        past = [] if self.queue is None else self.queue.block(anchor.dtype)
        if self.gather_across_devices:
            options["replicated"] = past
            options["max_gathered_bytes"] = self.max_gathered_bytes
            loss, stats = gathered_loss(self.loss, anchor, positive, *more, **options)
        else:
            options["negatives"] = [*negatives, *past] or None
            loss, stats = self.loss(anchor, positive, *more, **options)
        self.used_backend = last_backend()
        found = stats.hardest_similarity > -torch.inf
        hardest = torch.where(found, stats.hardest_similarity, 0.0).sum() / found.sum().clamp_min(1)
        self._record({**stats.scalars(), "hardest_similarity": hardest})
        return loss

    def _from_corpus(self, anchor: Tensor, positive: Tensor, ids: Tensor | None) -> Tensor:
        """(N, D) corpus negatives; then the batch's own rows may be written to the bank."""
        if ids is None or ids.is_floating_point() or len(ids) != len(anchor):
            got = None if ids is None else f"{tuple(ids.shape)} of {ids.dtype}"
            raise ValueError(
                "corpus_negatives needs a column 'label' with the id in the bank of each of the "
                f"{len(anchor)} anchors, or -1, got {got}"
            )
        rows = self.corpus_negatives.rows(anchor, ids)
        if self.training:
            for column, own in zip(ids.reshape(len(ids), -1).T, (anchor, positive)):
                self.corpus_negatives.write(column, own)
        return rows

    def _clustered(self, anchor: Tensor, positive: Tensor) -> list[Tensor]:
        """Index, centroids and counts of the batch; nothing before the clustering has started."""
        found: OnlineAssignment | None = self.clusters(anchor, positive)
        if found is None:
            return []
        # Not bincount, which reads its result's size from a GPU.
        sizes = torch.zeros_like(found.counts).scatter_add(0, found.index.clamp_min(0), (found.index >= 0).long())
        self._record({"largest_cluster": sizes.max().float(), "empty_clusters": (sizes == 0).sum().float()})
        # A copy: the next batch moves the centroids, and this one's backward pass may come later.
        return [found.index, self.clusters.centroids.clone(), found.counts]

    def _record(self, stats: dict[str, Tensor]) -> None:
        # Kept on the device and summed there: reading a value at every step would stall a GPU.
        for name, value in stats.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
            self._calls[name] = self._calls.get(name, 0) + 1

    def take_stats(self) -> dict[str, float]:
        """Accuracy, mean similarities and what else the loss has numbers of, since the last call of this method, each
        the mean over the forwards, and over the ranks if they gather: then all of them call it."""
        names = sorted(self._sums)
        if not names:
            return {}
        means = torch.stack([(self._sums[name] / self._calls[name]).double() for name in names])
        if self.gather_across_devices and is_many():
            means = total_over_ranks(means) / dist.get_world_size()
        self._sums, self._calls = {}, {}
        return dict(zip(names, means.tolist()))

    @property
    def temperature(self) -> float | None:
        """The temperature now, also when it is learned; None for a loss without one."""
        return self.options.get("temperature") if self.log_temperature is None else self.log_temperature.exp().item()

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card writes about this loss."""
        learned = {} if self.log_temperature is None else {"learnable_temperature": True}
        return {
            "loss": getattr(self.loss, "__name__", str(self.loss)),
            **self.options,
            **learned,
            **({"gather_across_devices": True} if self.gather_across_devices else {}),
            "backend": self.backend,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the objective."""
        return self.cite


def embed(model: nn.Module, features: dict[str, Any]) -> Tensor:
    """(N, D) embeddings of one tokenized column."""
    return model(features)["sentence_embedding"]


def two_views(model: nn.Module, features: dict[str, Any]) -> list[Tensor]:
    """Two embeddings of the same sentences, [(N, D), (N, D)], from one forward pass over the doubled batch.

    Dropout draws a mask per row, so the copies of a sentence differ. A batch that cannot be doubled along its first
    axis (sequences packed into one row for flash attention) is encoded twice instead, to the same effect.
    """
    tensors = [value for value in features.values() if isinstance(value, Tensor)]
    rows = len(features["input_ids"]) if "input_ids" in features else -1
    packed = "cu_seq_lens_q" in features or any(t.ndim == 0 or len(t) != rows for t in tensors)
    if packed:
        return [embed(model, dict(features)), embed(model, dict(features))]
    double = {name: torch.cat([v, v]) if isinstance(v, Tensor) else v for name, v in features.items()}
    return list(embed(model, double).chunk(2))
