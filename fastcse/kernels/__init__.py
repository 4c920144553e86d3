"""The launchers of the sweep and of the search over Triton kernels and the library's matrix product. No nn, no
autograd, no choice of backend.
"""

from .kmeans import assign, cluster_sums
from .quadruplet import quadruplets, scale_gradients, step_rows
from .rows import add_at, close_rows, finish_rows, inverse_norms, open_rows, pull_rows, scale_rows, scatter_rows
from .sweep import all_pairs, is_open, largest_logits, sweep
from .topk_search import topk
from .workspace import Workspace, accumulate_transposed, keeps_products, plan_rows, prepare, times_candidates

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
