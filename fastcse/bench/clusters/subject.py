"""K-means as what is measured: inertia and labels against float64, and the products of all pairs as the limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..nearest.subject import bare_product
from ..subject import Entry, Metric, Result, Subject, WrongAnswer
from . import cuda, libraries, own
from .plain import make_inputs
from .problem import ClustersProblem
from .provider import Provider
from .truth import Outcome, Truth, exact, misses

PROVIDERS: dict[str, Provider] = {p.name: p for room in (own, libraries, cuda) for p in room.PROVIDERS}
# Largest inertia error, and least share of float64's labels: points between two centroids may fall to either by
# rounding, and move these a little.
BOUNDS = (1e-4, 0.999)
# Half-precision centroids are rounded before each product, and the borders between them move: of 2000 points in 16
# clusters plain torch in bfloat16 has 0.95 of the labels after three iterations, and an inertia error of 4e-4.
ROUNDED_BOUNDS = (2e-3, 0.9)


@dataclass
class ClustersRow(Entry):
    """A provider of k-means."""

    inertia_error: float | None = None
    same_labels: float | None = None


class WrongClusters(WrongAnswer):
    """fastcse's labels or centroids are not what they must be."""


def bare_products(problem: ClustersProblem) -> Callable[..., None]:
    """All products of points and centroids in panels, as often as the problem needs them: the limit."""
    product = bare_product(problem)

    def run(points: Tensor, start: Tensor, labels: Tensor | None) -> None:
        for _ in range(problem.assignments):
            product(points, start)

    return run


def _limit_note(problem: ClustersProblem) -> str:
    if problem.what == "iteration":
        return "iteration: the products of all assignments in panels, nothing found"
    of_what = "of the one assignment that it belongs to" if problem.what == "update" else "once"
    return f"{problem.what}: the products {of_what} in panels, nothing found"


def _prepare(provider: Provider, problem: ClustersProblem, choice: int | None, inputs: tuple) -> Callable:
    return provider.run(problem, choice, inputs)


def _judge(row: ClustersRow, provider: Provider, outcome: Outcome, truth: Truth) -> None:
    row.inertia_error, row.same_labels = misses(outcome, truth)


def bounds(problem: ClustersProblem) -> tuple[float, float]:
    """Largest inertia error and least share of float64's labels that fastcse may have."""
    return ROUNDED_BOUNDS if problem.dtype != "float32" and problem.what == "iteration" else BOUNDS


def _check(result: Result) -> None:
    ours = next((row for row in result.rows if row.provider == "fastcse"), None)
    if ours is None or ours.inertia_error is None:
        return
    problem = result.problem
    largest, least = bounds(problem)
    if not abs(ours.inertia_error) <= largest:
        raise WrongClusters(
            f"fastcse's inertia is off by {ours.inertia_error:.1e}, more than {largest:.0e}, at "
            f"{problem.title}: nothing is reported; run the tests"
        )
    if ours.same_labels is not None and not ours.same_labels >= least:
        raise WrongClusters(
            f"only {ours.same_labels:.5f} of fastcse's labels are float64's, less than {least:g}, at "
            f"{problem.title}: nothing is reported; run the tests"
        )


def _result_bytes(problem: ClustersProblem, inputs: tuple) -> int:
    """int64 labels and float32 centroids, those that the problem asks for."""
    labels, centroids = 8 * problem.n, 4 * problem.m * problem.d
    return {"assignment": labels, "update": centroids, "iteration": labels + centroids}[problem.what]


CLUSTERS = Subject(
    row=ClustersRow, peers=PROVIDERS, inputs=make_inputs, exact=exact, prepare=_prepare, judge=_judge, check=_check,
    wrong=WrongClusters, limit=bare_products, limit_note=_limit_note, output_bytes=_result_bytes,
    metrics=(
        Metric("inertia_error", "inertia\nerror", "inertia error", "relative", "+.1e"),
        Metric("same_labels", "same\nlabels", "same labels", "share", ".5f"),
    ),
    legend="MiB: beyond points, labels and centroids; inertia error: relative to float64 with the same start and "
    "iterations, below 0 is better than that; same labels: share that are float64's.",
    axes=("what", "n", "m", "d", "metric", "data"),
)  # fmt: skip
