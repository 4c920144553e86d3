"""Objectives of recipes that need more than text columns: rows for the table in `objectives`, each with its loss."""

from __future__ import annotations

from ...losses.angular import angular_infonce_loss
from ...losses.intermediate import sscl_loss
from ...losses.soft_negative import soft_negative_loss
from ..objective import Objective

KDMCSE = """
@misc{nguyen2024kdmcse,
    title = "KDMCSE: Knowledge Distillation Multimodal Sentence Embeddings with Adaptive Angular margin Contrastive \
Learning",
    author = "Nguyen, Cong-Duy and others",
    year = "2024",
    url = "https://arxiv.org/abs/2403.17486",
}
"""
SNCSE = """
@misc{wang2022sncse,
    title = "SNCSE: Contrastive Learning for Unsupervised Sentence Embedding with Soft Negative Samples",
    author = "Wang, Hao and others",
    year = "2022",
    url = "https://arxiv.org/abs/2201.05979",
}
"""
SSCL = """
@inproceedings{chen2023sscl,
    title = "Alleviating Over-smoothing for Unsupervised Sentence Representation",
    author = "Chen, Nuo and others",
    booktitle = "Proceedings of ACL 2023",
    year = "2023",
    url = "https://github.com/nuochenpku/SSCL",
}
"""

RECIPE_OBJECTIVES = {
    "angular": Objective(angular_infonce_loss, {"temperature": 0.05, "margin": 0.15}, KDMCSE),
    "soft-negative": Objective(
        soft_negative_loss, {"temperature": 0.05, "margin_weight": 1e-3, "alpha": 0.1, "beta": 0.3}, SNCSE, columns=1
    ),
    "sscl": Objective(sscl_loss, {"temperature": 0.05, "parts": 3}, SSCL, layers=True),
}
