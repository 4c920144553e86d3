"""What a training recipe is: a paper, the settings it published, and what this library runs for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...errors import InputError

NESTED = ("objective_options", "bank_options", "cluster_options")


@dataclass(frozen=True)
class Setting:
    """One published setting and where it stands."""

    name: str
    value: str
    source: str


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

    def fill(self, given: dict[str, Any]) -> dict[str, Any]:
        """`given` keyword arguments of `TrainOptions`, with the recipe's options where they are None or absent.

        Raises:
            InputError: another objective than the recipe's.

        Example:
            >>> from fastcse.training.recipes import get_recipe
            >>> get_recipe("focal").fill({"lr": 2e-5, "objective_options": {"margin": 0.2, "temperature": None}})
            {'objective': 'focal', 'model': 'roberta-base', 'pooling': 'cls', 'head': 'tanh', 'batch_size': 512, \
'lr': 2e-05, 'max_length': 32, 'objective_options': {'temperature': 0.05, 'margin': 0.2}}
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        if chosen.get("objective", self.objective) != self.objective:
            raise InputError(
                f"--objective {chosen['objective']!r} contradicts --recipe {self.name}, which trains {self.objective!r}"
            )
        options = dict(self.options)
        if "sts_dir" not in chosen:
            options.pop("patience", None)  # there are no scores to wait for
        filled = {"objective": self.objective, **options, **chosen}
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
