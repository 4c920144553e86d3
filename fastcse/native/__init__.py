"""The launchers of the sweep over the C++ module: BLAS for the products, one vectorised pass for the exponentials."""

from .sweep import (
    Workspace,
    accumulate_transposed,
    all_pairs,
    finish_rows,
    inverse_norms,
    is_open,
    largest_logits,
    paired_similarity,
    plan_rows,
    prepare,
    scale_rows,
    scatter_rows,
    sweep,
    times_candidates,
)

__all__ = [
    "Workspace",
    "accumulate_transposed",
    "all_pairs",
    "finish_rows",
    "inverse_norms",
    "is_open",
    "largest_logits",
    "paired_similarity",
    "plan_rows",
    "prepare",
    "scale_rows",
    "scatter_rows",
    "sweep",
    "times_candidates",
]
