"""What a training recipe is: a paper, the settings it published, and what this library runs for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..evaluation.files import InputError

NESTED = ("objective_options", "bank_options", "cluster_options")


@dataclass(frozen=True)
class Setting:
    """One published setting and where it stands."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Ingredients:
    """What a recipe puts around its objective, apart from the options of a run.

    `view` is a name of `views.VIEWS` and `view_rate` its probability; `head` a kind of `heads.TrainingHead`; `layers`
    the number of intermediate layers of `heads.IntermediateLayers`; `queue` the rows of a `NegativeQueue`, filled by a
    `momentum.MomentumEncoder` that keeps `momentum` of itself at each step. With `soft_negative` the third column of
    the text is the loss's third argument and no column of the softmax.
    """

    view: str | None = None
    view_rate: float = 0.0
    head: str | None = None
    layers: int = 0
    queue: int = 0
    momentum: float = 0.0
    soft_negative: bool = False


@dataclass(frozen=True)
class Recipe:
    """A published way of training, as `fastcse train --recipe NAME` runs it.

    Args:
        name:           on the command line.
        title, url:     of the paper.
        objective:      the key in the table of objectives.
        published:      the settings of the paper or its released code, each with its source.
        options:        what it sets of `TrainOptions`, by name; those of the objective, the bank and the clustering are
                        dictionaries in it.
        ingredients:    what stands around the objective.
        not_reproduced: one sentence for each thing that is published and not done here.
        example:        a command that runs it.
    """

    name: str
    title: str
    url: str
    objective: str
    published: tuple[Setting, ...]
    options: dict[str, Any]
    not_reproduced: tuple[str, ...]
    example: str
    ingredients: Ingredients = field(default_factory=Ingredients)

    def fill(self, given: dict[str, Any]) -> dict[str, Any]:
        """`given` keyword arguments of `TrainOptions`, with the recipe's options where they are None or absent.

        Raises:
            InputError: another objective than the recipe's.

        Example:
            >>> from fastcse.training.recipes import get_recipe
            >>> get_recipe("focal").fill({"lr": 2e-5, "objective_options": {"margin": 0.2, "temperature": None}})
            {'objective': 'focal', 'model': 'roberta-base', 'pooling': 'cls', 'batch_size': 512, 'lr': 2e-05, \
'max_length': 32, 'objective_options': {'temperature': 0.05, 'margin': 0.2}}
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        if chosen.get("objective", self.objective) != self.objective:
            raise InputError(
                f"--objective {chosen['objective']!r} contradicts --recipe {self.name}, which trains {self.objective!r}"
            )
        filled = {"objective": self.objective, **self.options, **chosen}
        for name in NESTED:
            own = {k: v for k, v in (given.get(name) or {}).items() if v is not None}
            # A switch that is off was not asked for: it does not turn off what the recipe turns on.
            own = {k: v for k, v in own.items() if v is not False or k not in self.options.get(name, {})}
            if name in filled:
                filled[name] = {**self.options.get(name, {}), **own}
        return filled

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
