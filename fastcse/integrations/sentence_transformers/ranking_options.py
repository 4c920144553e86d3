"""What a ranking loss may be told, said once."""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.losses.gradcache import has_static_embedding_input

from ...ops import checks

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
PARTITIONS = ("joint", "per_direction")
HARDNESS = (None, "in_batch_negatives", "hard_negatives", "all_negatives")


def check_ranking(scale: float, directions: tuple, partition_mode: str, hardness_mode: str | None, strength: float):
    """The options of multiple negatives ranking."""
    checks.check_above_zero("scale", scale)
    unknown = [d for d in directions if d not in DIRECTIONS]
    if unknown or isinstance(directions, str):
        raise ValueError(f"directions must be a tuple of names from {DIRECTIONS}, got {directions!r}")
    if "query_to_doc" not in directions:
        raise ValueError(f"directions must have 'query_to_doc', which holds the positive, got {tuple(directions)!r}")
    checks.check_choice("partition_mode", partition_mode, PARTITIONS)
    without = sorted(set(directions) & {"query_to_query", "doc_to_doc"})
    if partition_mode == "per_direction" and without:
        raise ValueError(
            f"partition_mode='per_direction' needs the positive in every direction, got {without} without one; "
            "'joint' takes them"
        )
    checks.check_choice("hardness_mode", hardness_mode, HARDNESS)
    checks.check_finite("hardness_strength", strength)
    if strength < 0:
        raise ValueError(f"hardness_strength must be at least 0, got {strength!r}")


def check_pieces(model: Any, mini_batch_size: int, mini_batch_num_tokens: int | None) -> None:
    """The pieces of a cached loss."""
    if has_static_embedding_input(model):
        raise ValueError("a cached loss cuts its input into pieces, which the input of a StaticEmbedding has not")
    checks.check_count("mini_batch_size", mini_batch_size)
    if mini_batch_num_tokens is not None:
        checks.check_count("mini_batch_num_tokens", mini_batch_num_tokens)
