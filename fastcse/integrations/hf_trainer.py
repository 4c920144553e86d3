"""The fused losses in transformers' plain `Trainer`, by its `compute_loss_func` or by a class.

A batch is a table of sentences: `columns` texts an example, tokenized into consecutive rows, anchor first. Accumulating
gradients adds batches, not negatives: the gradient of a step is the mean of its batches' gradients, each against its
own negatives. sentence-transformers' cached losses make negatives of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from ..losses.infonce import infonce_loss
from ..ops import checks
from ..ops.dispatch import last_backend

POOLINGS = ("mean", "cls", "pooler")


class ContrastiveLossFunc:
    r"""A fastcse loss as the `compute_loss_func` of a `Trainer`: called as (outputs, labels, num_items_in_batch).

    The model's outputs hold (N C, ...) rows for N examples of C columns; pooled to (N C, D) they are the columns a, p,
    n_1 ..., and the loss is `loss(a, p, negatives=[n_1, ...], **options)`, the mean over the batch.

    A Trainer that has such a function does not divide its losses by the number of accumulated batches, which would make
    gradients of a batch mean that many times too large, and multiplies them by the number of processes. `attach` tells
    the Trainer what this loss is; without it the loss divides itself by `gradient_accumulation_steps` when gradients
    are made, which is the same but for an epoch's last step if that has fewer batches. With labels on several
    processes, `attach` or `average_tokens_across_devices=False` is needed.

    Args:
        loss:     `fastcse.infonce_loss`, `fastcse.focal_infonce_loss`, or any function with their arguments.
        columns:  texts of an example, at least 2.
        pooling:  "mean" over the tokens (in `ContrastiveTrainer` only: the outputs do not hold the attention mask),
                  "cls", the first token, "pooler", the model's own; or a function of the outputs, to (N C, D).
        gradient_accumulation_steps: what the Trainer accumulates, unless `attach` is called.
        options:  keyword arguments of `loss`, such as `temperature`, `margin`, `symmetric` and `backend`.

    `labels`, one (N,) integer an example, are ids: positives of the anchor's own id are none of its negatives.
    `used_backend` is the backend that ran last.

    Raises:
        ValueError: unknown pooling, fewer than 2 columns, rows that are no whole number of examples, or labels of
        another shape.

    Numerics, Source: those of `loss`. Interface: transformers 5.

    Example:
        >>> func = ContrastiveLossFunc(temperature=0.05, pooling=lambda outputs: outputs)
        >>> func(torch.eye(4).repeat_interleave(2, 0)).item() < 1e-6
        True
        >>> trainer = Trainer(model, args, compute_loss_func=func, ...)                          # doctest: +SKIP
        >>> func.attach(trainer)                                                                 # doctest: +SKIP
    """

    def __init__(
        self,
        loss: Callable = infonce_loss,
        *,
        columns: int = 2,
        pooling: str | Callable[[Any], Tensor] = "cls",
        gradient_accumulation_steps: int = 1,
        **options: Any,
    ):
        checks.check_count("columns", columns, least=2)
        checks.check_count("gradient_accumulation_steps", gradient_accumulation_steps)
        if not callable(pooling):
            checks.check_choice("pooling", pooling, POOLINGS)
        self.loss, self.columns, self.pooling, self.options = loss, columns, pooling, options
        self.steps = gradient_accumulation_steps
        self.used_backend: str | None = None
        self._trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> ContrastiveLossFunc:
        """Tells `trainer` that this loss is a mean over one batch, for it to divide by the batches of a step, and
        takes its factor for processes back out; returns self."""
        trainer.loss_is_scaled_for_ga = False
        self._trainer, self.steps = trainer, 1
        return self

    def __call__(
        self, outputs: Any, labels: Tensor | None = None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of a batch; `num_items_in_batch`, a number of tokens or labels, is not what it is a mean over."""
        loss = self.of_rows(self.pooled(outputs), labels)
        if self._trainer is not None and num_items_in_batch is not None:
            loss = loss / _processes(self._trainer)
        return loss / self.steps if torch.is_grad_enabled() else loss

    def pooled(self, outputs: Any, attention_mask: Tensor | None = None) -> Tensor:
        """(N C, D) embeddings of the model's outputs."""
        if callable(self.pooling):
            return self.pooling(outputs)
        if self.pooling == "pooler":
            return outputs["pooler_output"]
        tokens = outputs["last_hidden_state"]  # (N C, L, D)
        if self.pooling == "cls":
            return tokens[:, 0]
        if attention_mask is None:
            raise ValueError("pooling='mean' needs the attention mask, which ContrastiveTrainer has, got outputs alone")
        weight = attention_mask[:, :, None].to(tokens.dtype)
        return (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)

    def of_rows(self, rows: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scalar: the mean loss of (N C, D) embeddings, the columns of an example in consecutive rows."""
        if len(rows) % self.columns:
            raise ValueError(f"outputs must hold {self.columns} rows for each example, got {len(rows)} rows")
        anchor, positive, *negatives = rows.reshape(-1, self.columns, rows.shape[-1]).unbind(1)
        ids = {}
        if labels is not None:
            checks.check_vector("labels", labels, len(anchor), "anchor", rows, dtype=None)
            ids = {"anchor_id": labels.long(), "candidate_id": labels.long()}
        loss = self.loss(anchor, positive, negatives=negatives or None, **ids, **self.options)
        self.used_backend = last_backend()
        return loss


class ContrastiveTrainerMixin:
    """A fastcse loss for any subclass of `Trainer`: its `compute_loss` is a mean over one batch, and says so, so that
    the Trainer divides it by the batches that a step accumulates.

    Comes before the Trainer among the bases; takes one more argument, `contrastive`, a `ContrastiveLossFunc`.

    Example:
        >>> class MyTrainer(ContrastiveTrainerMixin, SomeTrainer): ...                           # doctest: +SKIP
    """

    # transformers' own word for a loss that it must still divide.
    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, contrastive: ContrastiveLossFunc, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.contrastive = contrastive
        self.can_return_loss = True  # evaluation has a loss without labels, too

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The mean loss of the batch, with the outputs where they are asked for."""
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        outputs = model(**inputs)
        loss = self.contrastive.of_rows(self.contrastive.pooled(outputs, inputs.get("attention_mask")), labels)
        return (loss, outputs) if return_outputs else loss


class ContrastiveTrainer(ContrastiveTrainerMixin, Trainer):
    """transformers' `Trainer` with a fastcse loss; see `ContrastiveTrainerMixin`.

    Example:
        >>> args = TrainingArguments("out", gradient_accumulation_steps=4, remove_unused_columns=False) # doctest: +SKIP
        >>> loss = ContrastiveLossFunc(pooling="mean", temperature=0.05)                         # doctest: +SKIP
        >>> ContrastiveTrainer(model, args, train_dataset=pairs, data_collator=TextColumns(tokenizer),
        ...                    contrastive=loss).train()                                         # doctest: +SKIP
    """


class TextColumns:
    """A `data_collator` of examples with a text in each of `columns`: their tokens in consecutive rows, anchor first.

    A column `label` of integers becomes `labels`. `TrainingArguments(remove_unused_columns=False)` lets the texts
    through to it.

    Args:
        tokenizer: of transformers.
        columns:   names, anchor first.
        options:   keyword arguments of the tokenizer, beside padding, truncation and tensors.

    Example:
        >>> TextColumns(tokenizer)([{"anchor": "a cat", "positive": "cats"}])["input_ids"].shape   # doctest: +SKIP
        torch.Size([2, 4])
    """

    def __init__(self, tokenizer: Any, columns: Sequence[str] = ("anchor", "positive"), **options: Any):
        self.tokenizer, self.columns, self.options = tokenizer, tuple(columns), options

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [example[name] for example in examples for name in self.columns]
        batch = dict(self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt", **self.options))
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        return batch


def _processes(trainer: Trainer) -> int:
    """The factor that a Trainer puts on a loss of `compute_loss_func` where it has counted labels."""
    if not trainer.args.average_tokens_across_devices:
        return 1
    return trainer.args.n_gpu if trainer.args.n_gpu > 1 else trainer.accelerator.num_processes
