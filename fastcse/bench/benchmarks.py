"""Every operation that `fastcse bench` measures, with all who compute it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from . import (
    cached_stage,
    kmeans,
    kmeans_providers,
    mining,
    rowwise,
    topk_providers,
    topk_search,
    train_step,
)
from .case import Case
from .loss import LossCase
from .peers import PEERS
from .provider import Provider


class Benchmark(NamedTuple):
    """An operation, its providers by name, the rounds that a run of the command takes, and what the command says of
    itself."""

    case: type[Case]
    providers: Mapping[str, Provider]
    repeat: int
    about: str


BENCHMARKS = {
    "loss": Benchmark(
        LossCase, PEERS, 7,
        "Contrastive losses: time, TFLOP/s, memory, and accuracy against float64, interleaved in one run.",
    ),
    "topk": Benchmark(
        topk_search.TopkCase, topk_providers.PROVIDERS, 5,
        "Exact nearest rows: time, TFLOP/s, memory, and recall against float64, interleaved in one run.",
    ),
    "mining": Benchmark(
        mining.MiningCase, mining.PROVIDERS, 3,
        "Mining hard negatives: time and memory beside sentence-transformers' miner, with the triplets compared.\n\n"
        "The embeddings are those of a table, so that nothing but mining is measured.",
    ),
    "rows": Benchmark(
        rowwise.RowwiseCase, rowwise.PROVIDERS, 11,
        "Row-wise operations: time and bandwidth beside one copy of the same bytes, memory, accuracy against float64.",
    ),
    "kmeans": Benchmark(
        kmeans.KMeansCase, kmeans_providers.PROVIDERS, 5,
        "K-means over all points from the same start: time, TFLOP/s, memory, inertia and labels against float64.\n\n"
        "iteration makes --iterations of them and then the labels.",
    ),
    "train": Benchmark(
        train_step.StepCase, train_step.PROVIDERS, 3,
        "One training step, GradCache or plain, beside sentence-transformers': sentences a second, memory, the loss.",
    ),
    "train --stage loss": Benchmark(
        cached_stage.CachedCase, cached_stage.PROVIDERS, 3,
        "What is done with the embeddings of a cached batch between the two passes through the encoder.",
    ),
}  # fmt: skip


def benchmark_of(labels: Mapping[str, Any]) -> Benchmark:
    """The operation of a result, by its labels in JSON; those of a loss name no operation."""
    operation = labels.get("operation", "loss")
    for benchmark in BENCHMARKS.values():
        if operation in benchmark.case.operations:
            return benchmark
    raise KeyError(f"operation {operation!r}")


def case_of(labels: Mapping[str, Any]) -> Case:
    """The case of a result, by its labels in JSON; the backend there is the one that ran, not one that was forced."""
    case = benchmark_of(labels).case
    names = {one.name for one in fields(case)} - {"backend"}
    return case(**{name: value for name, value in labels.items() if name in names})
