"""The operations that can be measured, each by the type of its problems."""

from __future__ import annotations

from .clusters.problem import ClustersProblem
from .clusters.subject import CLUSTERS
from .loss import LOSS
from .mining import MINING, MiningProblem
from .nearest.problem import TopkProblem
from .nearest.subject import NEAREST
from .problem import LossProblem
from .rows.problem import RowsProblem
from .rows.subject import ROWS
from .steps.cached import CACHED, CachedProblem
from .steps.measure import STEPS
from .steps.problem import StepProblem
from .subject import Problem, Subject

SUBJECTS: dict[type, Subject] = {
    LossProblem: LOSS, TopkProblem: NEAREST, MiningProblem: MINING, RowsProblem: ROWS, ClustersProblem: CLUSTERS,
    CachedProblem: CACHED, StepProblem: STEPS,
}  # fmt: skip


def subject_of(problem: Problem) -> Subject:
    """The operation that a problem asks for."""
    return SUBJECTS[type(problem)]
