"""The options of what stands around an objective, checked without loading what makes it."""

from __future__ import annotations

import math
from typing import Any

from ..errors import InputError
from .checks import check_at_least, flag
from .objectives import get_objective

HEADS = ("tanh", "batchnorm")
VIEWS = ("case-switch", "negation")
NONE = "none"  # turns off what a recipe turns on


def check_surroundings(options: Any) -> None:
    """Of `TrainOptions`: an InputError for a head, view or queue that is unknown, out of range, or fits nothing."""
    for name, known in (("head", HEADS), ("view", VIEWS)):
        value = getattr(options, name)
        if value not in (None, NONE, *known):
            raise InputError(f"{flag(name)} {value!r} is unknown: expected {' or '.join(known)}, or {NONE}")
    for name, highest in (("view_rate", 1.0), ("queue_momentum", 1.0)):
        if not 0 <= getattr(options, name) <= highest:
            raise InputError(f"{flag(name)} is {getattr(options, name)}: expected 0 to 1")
    check_at_least("queue", options.queue, 0)
    objective = get_objective(options.objective)
    margin = options.objective_options.get("margin", 0.0)
    if options.objective == "angular" and not 0 <= margin <= math.pi / 2:
        raise InputError(f"--margin is {margin}: expected an angle from 0 to pi / 2 for --objective angular")
    if options.queue and (objective.layers or objective.bank or objective.clusters):
        raise InputError(f"--queue {options.queue} means nothing to --objective {options.objective}: its losses have "
                         "negatives of their own")  # fmt: skip
    if options.head == "batchnorm" and options.mini_batch_size is not None:
        raise InputError(f"--head batchnorm with --mini-batch-size {options.mini_batch_size}: its statistics would be "
                         "those of a part of the batch")  # fmt: skip
    if objective.columns and options.pairs is None and options.view != "negation":
        raise InputError(f"--objective {options.objective} needs a third column of text: expected --pairs that have "
                         "one, or --view negation")  # fmt: skip
