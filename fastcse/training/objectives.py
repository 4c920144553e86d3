"""The objectives that can be trained: one row per loss. A new objective adds a row, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..evaluation.files import InputError
from ..losses.focal import focal_infonce_loss
from ..losses.infonce import infonce_loss


@dataclass(frozen=True)
class Objective:
    """A public loss `loss(anchor, positive, negatives=..., **options)` of fastcse, and the options a user may set."""

    loss: Callable
    options: dict[str, float]  # name -> default
    source: str  # a reference, as BibTeX


SIMCSE = """
@inproceedings{gao2021simcse,
    title = "SimCSE: Simple Contrastive Learning of Sentence Embeddings",
    author = "Gao, Tianyu and Yao, Xingcheng and Chen, Danqi",
    booktitle = "Proceedings of EMNLP 2021",
    year = "2021",
    url = "https://arxiv.org/abs/2104.08821",
}
"""
FOCAL = """
@inproceedings{hou2023focal,
    title = "Improving Contrastive Learning of Sentence Embeddings with Focal-InfoNCE",
    author = "Hou, Pengyue and Li, Xingyu",
    booktitle = "Findings of EMNLP 2023",
    year = "2023",
    url = "https://arxiv.org/abs/2310.06918",
}
"""

OBJECTIVES = {
    "infonce": Objective(infonce_loss, {"temperature": 0.05}, SIMCSE),
    "focal": Objective(focal_infonce_loss, {"temperature": 0.05, "margin": 0.3}, FOCAL),
}


def get_objective(name: str) -> Objective:
    """The row called `name`, or an InputError that lists the names there are."""
    if name not in OBJECTIVES:
        raise InputError(f"--objective {name!r} is unknown: expected {' or '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def resolve_options(name: str, given: dict[str, float | None]) -> dict[str, float]:
    """The options of an objective: its defaults, overridden by those of `given` that are not None.

    Raises:
        InputError: an option that this objective does not have.

    Example:
        >>> resolve_options("focal", {"temperature": 0.1, "margin": None})
        {'temperature': 0.1, 'margin': 0.3}
    """
    options = get_objective(name).options
    chosen = {option: value for option, value in given.items() if value is not None}
    for option, value in chosen.items():
        if option not in options:
            raise InputError(f"--{option} {value} means nothing to --objective {name}: it has {', '.join(options)}")
    return {**options, **chosen}
