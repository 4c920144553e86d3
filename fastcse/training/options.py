"""What `fastcse train` may be asked, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..losses.clusterns import FALSE_NEGATIVES
from ..ops.dispatch import backends
from ..pairs import STEPS
from .bank_options import BankOptions
from .checks import check_at_least, check_finite, check_positive, flag
from .cluster_options import ClusterOptions
from .objectives import get_objective, resolve_options
from .surrounding_options import check_surroundings

POOLINGS = ("cls", "mean")
# These do not change the losses of a run, so a resumed run may differ in them.
FREE_ON_RESUME = {"output_dir", "resume", "overwrite", "backend", "tensorboard"}
SIMCSE_EVAL_STEPS = 125
DIGEST = "_sha256"  # ends the name of what is no option, but the content of the file that an option names


@dataclass(frozen=True)
class TrainOptions:
    """The options of a run, under the names of the command line. The defaults are SimCSE's, unsupervised BERT-base.

    Exactly one of `corpus` and `pairs` is given; `hard_negatives` is a file of `fastcse mine` for it. `pooling=None`
    keeps the model's own; `eval_steps=None` is every 125 steps as in SimCSE, or four times in a shorter run.
    `objective_options` holds the options of the objective, by name, `bank_options` those of its corpus bank, and
    `cluster_options` those of its clustering.

    `batch_size` is that of the whole run, whatever its processes are; with `mini_batch_size` it is encoded in such
    parts (GradCache), so that memory does not depend on it. `patience` evaluations without a better score end the run.
    `head` is a layer that only training has, `view` a change of the text of the second view, `queue` the number of past
    rows that are negatives too, kept by an encoder that follows the trained one by `queue_momentum`. `recipe` names
    where options came from. Candidates of all processes travel in a ring where they would take more than
    `max_gathered_bytes`.

    Raises:
        InputError: an option outside its range, named with the value that came.
    """

    output_dir: str
    objective: str = "focal"
    model: str = "minilm"
    pooling: str | None = None
    corpus: str | None = None
    pairs: str | None = None
    hard_negatives: str | None = None
    batch_size: int = 64
    mini_batch_size: int | None = None
    max_gathered_bytes: int | None = None
    max_steps: int = 1000
    lr: float = 3e-5
    max_length: int = 32
    objective_options: dict[str, float | str | None] = field(default_factory=dict)
    bank_options: dict[str, Any] = field(default_factory=dict)
    cluster_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 42
    sts_dir: str | None = None
    eval_steps: int | None = None
    patience: int | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    tensorboard: bool = False
    resume: bool = False
    overwrite: bool = False
    backend: str | None = None
    recipe: str | None = None
    head: str | None = None
    view: str | None = None
    view_rate: float = 0.05
    queue: int = 0
    queue_momentum: float = 0.999

    def __post_init__(self):
        object.__setattr__(self, "objective_options", resolve_options(self.objective, self.objective_options))
        object.__setattr__(self, "bank_options", _bank_options(self.objective, self.bank_options))
        made = _cluster_options(self.objective, self.cluster_options, self.batch_size)
        object.__setattr__(self, "cluster_options", made)
        if self.eval_steps is None:
            object.__setattr__(self, "eval_steps", min(SIMCSE_EVAL_STEPS, max(1, self.max_steps // 4)))
        if (self.corpus is None) == (self.pairs is None):
            raise InputError(f"expected exactly one of --corpus and --pairs, got {self.corpus!r} and {self.pairs!r}")
        check_pooling(self.pooling)
        check_batch_size(self.batch_size, lowest=2)
        _check_mini_batch(self)
        check_at_least("max_steps", self.max_steps, 1)
        check_at_least("eval_steps", self.eval_steps, 1)
        check_at_least("max_length", self.max_length, 3)  # [CLS], one word, [SEP]
        check_at_least("seed", self.seed, 0)
        check_positive("lr", self.lr)
        for name, value in self.objective_options.items():
            _check_objective_option(name, value)
        _check_ending(self)
        if self.resume and self.overwrite:
            raise InputError("expected one of --resume and --overwrite, got both")
        check_surroundings(self)
        check_backend(self.backend)

    def identity(self) -> dict[str, Any]:
        """The options that a resumed run must share with the run it continues, and the content of the mined file."""
        chosen = {name: value for name, value in asdict(self).items() if name not in FREE_ON_RESUME}
        if self.hard_negatives is not None:
            content = Path(self.hard_negatives).read_bytes()
            chosen[f"hard_negatives{DIGEST}"] = hashlib.sha256(content).hexdigest()
        return chosen


def _check_mini_batch(options: TrainOptions) -> None:
    if options.max_gathered_bytes is not None:
        check_at_least("max_gathered_bytes", options.max_gathered_bytes, 1)
        objective = get_objective(options.objective)
        if objective.bank or objective.clusters or objective.layers or objective.columns:
            raise InputError(f"--max-gathered-bytes {options.max_gathered_bytes} means nothing to --objective "
                             f"{options.objective}: it needs the candidates of all processes whole")  # fmt: skip
    if options.mini_batch_size is None:
        return
    check_at_least("mini_batch_size", options.mini_batch_size, 1)
    if options.mini_batch_size > options.batch_size:
        raise InputError(f"--mini-batch-size is {options.mini_batch_size}: expected at most the "
                         f"{options.batch_size} of --batch-size")  # fmt: skip


def _check_ending(options: TrainOptions) -> None:
    if options.patience is not None:
        check_at_least("patience", options.patience, 1)
        if options.sts_dir is None:
            raise InputError(f"--patience {options.patience} needs --sts-dir, whose scores it waits for")
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs tensorboard, which is not installed: pip install tensorboard")


def _bank_options(objective: str, given: dict[str, Any]) -> dict[str, Any]:
    """All options of the bank, or none for an objective without one."""
    if get_objective(objective).bank:
        return asdict(BankOptions.of(given))
    _refuse(given, objective, "no bank")
    return {}


def _cluster_options(objective: str, given: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """All options of the clustering, or none for an objective without one."""
    if get_objective(objective).clusters:
        return ClusterOptions.of(given, batch_size).as_dict()
    _refuse(given, objective, "no clusters")
    return {}


def _refuse(given: dict[str, Any], objective: str, why: str) -> None:
    """An InputError if an option was set that has nothing to act on."""
    for name, value in given.items():
        if value not in (None, False):
            raise InputError(f"{flag(name)} {value} means nothing to --objective {objective}: it has {why}")


def _check_objective_option(name: str, value: float | str) -> None:
    if name == "adversarial_mode":
        if value not in STEPS:
            raise InputError(f"--adversarial-mode {value!r} is unknown: expected {' or '.join(STEPS)}")
    elif name == "false_negatives":
        if value not in FALSE_NEGATIVES:
            raise InputError(f"--false-negatives {value!r} is unknown: expected {' or '.join(FALSE_NEGATIVES)}")
    elif name == "parts":
        check_at_least(name, value, 1)
        if value != int(value):
            raise InputError(f"--parts is {value}: expected a whole number")
    elif name == "temperature":
        check_positive(name, value)
    elif name == "noise":
        check_finite(name, value)
        check_at_least(name, value, 0)
    else:
        check_finite(name, value)


def check_pooling(name: str | None) -> None:
    """An InputError unless `name` is None or a known pooling."""
    if name is not None and name not in POOLINGS:
        raise InputError(f"--pooling {name!r} is unknown: expected {' or '.join(POOLINGS)}")


def check_batch_size(value: int, *, lowest: int) -> None:
    """An InputError below `lowest`: 1 to encode, 2 to train, because a batch of one has no negatives."""
    check_at_least("batch_size", value, lowest)


def check_backend(name: str | None) -> None:
    """An InputError unless `name` is None or a backend that runs here."""
    if name is None:
        return
    status = backends()
    if name not in status:
        raise InputError(f"--backend {name!r} is unknown: expected {', '.join(status)}")
    if not status[name].available:
        raise InputError(f"--backend {name!r} cannot run here: {status[name].reason}")
