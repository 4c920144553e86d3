"""pytorch-metric-learning's SupConLoss, with one positive a row.

Its denominator runs over the positives and negatives of the row, in `ref_emb`: with one positive that is InfoNCE.
NTXentLoss gives the same value, but spreads each of the N positives over all N (M - 1) negative pairs: cubic memory.
"""

from __future__ import annotations

import torch

from ..problem import LossProblem
from .peer import Loss, Peer


def _supcon(problem: LossProblem) -> Loss:
    from pytorch_metric_learning.losses import SupConLoss
    from pytorch_metric_learning.reducers import MeanReducer

    # Its own reducer leaves rows whose loss is zero out of the mean.
    supcon = SupConLoss(temperature=problem.temperature, reducer=MeanReducer())
    label, candidate_label = (torch.arange(rows, device=problem.device) for rows in (problem.n, problem.m))
    return lambda a, c: supcon(a, label, ref_emb=c, ref_labels=candidate_label)


PEERS = (
    Peer(
        "pytorch-metric-learning",
        _supcon,
        ("infonce",),
        ("pytorch_metric_learning",),
        "pip install pytorch-metric-learning",
        "whole matrix, and a list of all its pairs",
    ),
)
