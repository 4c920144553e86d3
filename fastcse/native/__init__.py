"""The launchers of the sweep and of the search over the C++ module: BLAS for the products, one vectorised pass for the
rest.
"""

from .kmeans import assign, cluster_sums
from .quadruplet import quadruplets, scale_gradients, step_rows
from .rows import (
    add_at,
    inverse_norms,
    positive_gradient,
    positive_logits,
    project_gradient,
    row_loss,
    scale_rows,
    scatter_rows,
)
from .sweep import (
    Workspace,
    accumulate_transposed,
    all_pairs,
    keeps_products,
    largest_logits,
    must_launch,
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
    "cluster_sums",
    "inverse_norms",
    "keeps_products",
    "largest_logits",
    "must_launch",
    "plan_rows",
    "positive_gradient",
    "positive_logits",
    "prepare",
    "project_gradient",
    "quadruplets",
    "row_loss",
    "scale_gradients",
    "scale_rows",
    "scatter_rows",
    "step_rows",
    "sweep",
    "times_candidates",
    "topk",
]
