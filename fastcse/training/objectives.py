"""The objectives that can be trained: one row per loss. A new objective adds a row, and nothing else changes."""

from __future__ import annotations

from ..errors import InputError
from ..losses.clusterns import clusterns_loss
from ..losses.focal import focal_infonce_loss
from ..losses.hsimcse import hsimcse_loss
from ..losses.infonce import infonce_loss
from .objective import Objective
from .recipes.objectives import RECIPE_OBJECTIVES

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
HSIMCSE = """
@inproceedings{hsimcse2023,
    title = "HSimCSE: Improving Contrastive Learning of Unsupervised Sentence Representation with Adversarial Hard \
Positives and Dual Hard Negatives",
    booktitle = "Proceedings of IJCNN 2023",
    year = "2023",
    url = "https://github.com/xubodhu/HSimCSE",
}
"""
CLUSTERNS = """
@inproceedings{deng2023clusterns,
    title = "Clustering-Aware Negative Sampling for Unsupervised Sentence Representation",
    author = "Deng, Jinghao and Wan, Fanqi and Yang, Tao and Quan, Xiaojun and Wang, Rui",
    booktitle = "Findings of ACL 2023",
    year = "2023",
    url = "https://arxiv.org/abs/2305.09892",
}
"""

OBJECTIVES = {
    "infonce": Objective(infonce_loss, {"temperature": 0.05}, SIMCSE),
    "focal": Objective(focal_infonce_loss, {"temperature": 0.05, "margin": 0.3}, FOCAL),
    "hsimcse": Objective(
        hsimcse_loss,
        {
            "temperature": 0.05,
            "margin": 0.0,
            "quadruplet_weight": 0.22,
            "adversarial_step": 3.0,
            "adversarial_mode": "raw",
            "noise": 1.0,
        },
        HSIMCSE,
        bank=True,
    ),
    "clusterns": Objective(
        clusterns_loss,
        {"temperature": 0.05, "margin_weight": 1e-3, "alpha": 0.0, "beta": 0.3, "false_negatives": "margin"},
        CLUSTERNS,
        clusters=True,
    ),
    **RECIPE_OBJECTIVES,
}


def get_objective(name: str) -> Objective:
    """The row called `name`, or an InputError that lists the names there are."""
    if name not in OBJECTIVES:
        raise InputError(f"--objective {name!r} is unknown: expected {' or '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def resolve_options(name: str, given: dict[str, float | str | None]) -> dict[str, float | str]:
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
            known, flag = ", ".join(options).replace("_", "-"), option.replace("_", "-")
            raise InputError(f"--{flag} {value} means nothing to --objective {name}: it has {known}")
    return {**options, **chosen}
