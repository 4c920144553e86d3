"""The objectives that can be trained: one row per loss. A new objective adds a row, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import OptionError
from ..losses.angular import angular_infonce_loss
from ..losses.clusterns import clusterns_loss
from ..losses.focal import focal_infonce_loss
from ..losses.hsimcse import hsimcse_loss
from ..losses.infonce import infonce_loss
from ..losses.soft_negative import soft_negative_loss
from ..losses.sscl import sscl_loss


class Paper(NamedTuple):
    """Where an objective or a recipe was published; `venue` is empty for a preprint."""

    key: str
    title: str
    author: str
    venue: str
    year: str
    url: str

    @property
    def bibtex(self) -> str:
        """The entry for a model card."""
        fields = {"title": self.title, "author": self.author, "booktitle": self.venue, "year": self.year,
                  "url": self.url}  # fmt: skip
        lines = "".join(f'    {name} = "{value}",\n' for name, value in fields.items() if value)
        return f"\n@{'inproceedings' if self.venue else 'misc'}{{{self.key},\n{lines}}}\n"


SIMCSE = Paper(
    "gao2021simcse", "SimCSE: Simple Contrastive Learning of Sentence Embeddings",
    "Gao, Tianyu and Yao, Xingcheng and Chen, Danqi", "Proceedings of EMNLP 2021", "2021",
    "https://arxiv.org/abs/2104.08821",
)  # fmt: skip
FOCAL = Paper(
    "hou2023focal", "Improving Contrastive Learning of Sentence Embeddings with Focal-InfoNCE",
    "Hou, Pengyue and Li, Xingyu", "Findings of EMNLP 2023", "2023", "https://arxiv.org/abs/2310.06918",
)  # fmt: skip
HSIMCSE = Paper(
    "hsimcse2023", "HSimCSE: Improving Contrastive Learning of Unsupervised Sentence Representation with Adversarial "
    "Hard Positives and Dual Hard Negatives", "", "Proceedings of IJCNN 2023", "2023",
    "https://github.com/xubodhu/HSimCSE",
)  # fmt: skip
CLUSTERNS = Paper(
    "deng2023clusterns", "Clustering-Aware Negative Sampling for Unsupervised Sentence Representation",
    "Deng, Jinghao and Wan, Fanqi and Yang, Tao and Quan, Xiaojun and Wang, Rui", "Findings of ACL 2023", "2023",
    "https://arxiv.org/abs/2305.09892",
)  # fmt: skip
KDMCSE = Paper(
    "nguyen2024kdmcse", "KDMCSE: Knowledge Distillation Multimodal Sentence Embeddings with Adaptive Angular margin "
    "Contrastive Learning", "Nguyen, Cong-Duy and others", "", "2024", "https://arxiv.org/abs/2403.17486",
)  # fmt: skip
SNCSE = Paper(
    "wang2022sncse", "SNCSE: Contrastive Learning for Unsupervised Sentence Embedding with Soft Negative Samples",
    "Wang, Hao and others", "", "2022", "https://arxiv.org/abs/2201.05979",
)  # fmt: skip
SSCL = Paper(
    "chen2023sscl", "Alleviating Over-smoothing for Unsupervised Sentence Representation", "Chen, Nuo and others",
    "Proceedings of ACL 2023", "2023", "https://github.com/nuochenpku/SSCL",
)  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """A public loss `loss(anchor, positive, negatives=..., **options)` of fastcse, and the options a user may set.

    With `bank` it is called with one corpus negative for each anchor, as `loss(anchor, positive, rows, ...)`; with
    `clusters`, once they have started, as `loss(anchor, positive, index, centroids, counts, ...)`. Of the columns
    behind the positive the first `columns` are arguments of the loss, before its negatives. With `layers` a row holds
    as many embeddings as its option `parts` says, of layers from the last down.
    """

    loss: Callable
    options: dict[str, float | str]  # name -> default
    paper: Paper
    bank: bool = False
    clusters: bool = False
    columns: int = 0
    layers: bool = False

    @property
    def is_softmax(self) -> bool:
        """Whether the loss is a softmax over the candidates and nothing else, so that they need not be gathered."""
        return not (self.bank or self.clusters or self.columns or self.layers)


OBJECTIVES = {
    "infonce": Objective(infonce_loss, {"temperature": 0.05}, SIMCSE),
    "focal": Objective(focal_infonce_loss, {"temperature": 0.05, "margin": 0.3}, FOCAL),
    "hsimcse": Objective(
        hsimcse_loss,
        {"temperature": 0.05, "margin": 0.0, "quadruplet_weight": 0.22, "adversarial_step": 3.0,
         "adversarial_mode": "raw", "noise": 1.0},
        HSIMCSE, bank=True,
    ),
    "clusterns": Objective(
        clusterns_loss,
        {"temperature": 0.05, "margin_weight": 1e-3, "alpha": 0.0, "beta": 0.3, "false_negatives": "margin"},
        CLUSTERNS, clusters=True,
    ),
    "angular": Objective(angular_infonce_loss, {"temperature": 0.05, "margin": 0.15}, KDMCSE),
    "soft-negative": Objective(
        soft_negative_loss, {"temperature": 0.05, "margin_weight": 1e-3, "alpha": 0.1, "beta": 0.3}, SNCSE, columns=1
    ),
    "sscl": Objective(sscl_loss, {"temperature": 0.05, "parts": 3}, SSCL, layers=True),
}  # fmt: skip


def get_objective(name: str) -> Objective:
    """The row called `name`, or an OptionError that lists the names there are."""
    if name not in OBJECTIVES:
        raise OptionError("objective", f" {name!r} is unknown: expected {' or '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
