"""The launchers of the sweep and of the search over the C++ module: BLAS for the products, one vectorised pass for the
rest.
"""

from .kmeans import assign, cluster_sums
from .quadruplet import quadruplets, scale_gradients, step_rows
from .rows import add_at, close_rows, finish_rows, inverse_norms, open_rows, pull_rows, scale_rows, scatter_rows
from .sweep import (
    Workspace,
    accumulate_transposed,
    all_pairs,
    is_open,
    keeps_products,
    largest_logits,
    plan_rows,
    prepare,
    sweep,
    times_candidates,
)
from .topk_search import topk

__all__ = [
    "Workspace",
    "accumulate_transposed",
    "add_at",
    "all_pairs",
    "assign",
    "close_rows",
    "cluster_sums",
    "finish_rows",
    "inverse_norms",
    "is_open",
    "keeps_products",
    "largest_logits",
    "open_rows",
    "plan_rows",
    "prepare",
    "pull_rows",
    "quadruplets",
    "scale_gradients",
    "scale_rows",
    "scatter_rows",
    "step_rows",
    "sweep",
    "times_candidates",
    "topk",
]
