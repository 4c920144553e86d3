"""What stands around an objective: a view of the text, a head, intermediate layers, a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from ..errors import InputError
from .objectives import get_objective
from .recipes.heads import append_head, append_intermediate_layers
from .recipes.views import apply_view
from .surrounding_options import NONE

if TYPE_CHECKING:
    from .options import TrainOptions


def seen(dataset: Dataset, options: TrainOptions) -> Dataset:
    """The text with its view; an objective that takes a third column has it, or this is an InputError."""
    view = None if options.view == NONE else options.view
    dataset = apply_view(dataset, view, rate=options.view_rate, seed=options.seed)
    negatives = [name for name in dataset.column_names if name.startswith("negative")]
    missing = get_objective(options.objective).columns - len(negatives)
    if missing > 0:
        raise InputError(f"--objective {options.objective} needs a third column of text, and --pairs {options.pairs!r} "
                         f"has {', '.join(dataset.column_names)}")  # fmt: skip
    return dataset


def surround(model: SentenceTransformer, options: TrainOptions) -> None:
    """Put the layers behind the model that only training has."""
    if get_objective(options.objective).layers:
        parts = int(options.objective_options["parts"])
        depth = getattr(getattr(model[0], "model", None), "config", None)
        depth = getattr(depth, "num_hidden_layers", parts)
        if not 2 <= parts <= depth + 1:
            raise InputError(f"--parts is {parts}: expected 2 to {depth + 1}, the layers of --model {options.model!r}")
        try:
            append_intermediate_layers(model, parts - 1)
        except ValueError as error:
            raise InputError(f"--objective {options.objective}: {error}") from None
    if options.head not in (None, NONE):
        append_head(model, options.head)
