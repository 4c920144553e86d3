"""What `fastcse train` may be asked: one tree of options, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..clustering.online import MODES, REDUCES, STARTS
from ..errors import OptionError
from ..files import SHA256, sha256_of
from ..losses.clusterns import FALSE_NEGATIVES
from ..mining.corpus_negatives import REFRESH
from ..operands import STEPS
from ..ops.dispatch import check_backend
from ..options import build, check, flat, option, part
from .objectives import OBJECTIVES, Objective, get_objective
from .recipes.table import get_recipe

POOLINGS = ("cls", "mean")
HEADS = ("tanh", "batchnorm")
VIEWS = ("case-switch", "negation")
NONE = "none"  # turns off what a recipe turns on
MOST_CLUSTERS = 128  # of ClusterNS's released settings, with batches of 256 and more
SIMCSE_EVAL_STEPS = 125
# These do not change the losses of a run, so a resumed run may differ in them.
FREE_ON_RESUME = {"output_dir", "resume", "overwrite", "backend", "tensorboard"}

_text = partial(option, panel="Text and model")
_run = partial(option, panel="Run")
_around = partial(option, panel="View, head and queue")
_loss = partial(option, None, panel="Loss")
_bank = partial(option, panel="Corpus bank of hsimcse")
_clusters = partial(option, panel="Clusters of clusterns")


@dataclass(frozen=True)
class ObjectiveOptions:
    """Options of the objective's loss. None is the default of `objectives.OBJECTIVES`."""

    temperature: float | None = _loss("Divisor of the logits.", above=0, shown="the objective's")
    margin: float | None = _loss("Of focal's and angular's negatives, of hsimcse's hinge.", shown="the objective's")
    quadruplet_weight: float | None = _loss("Of hsimcse's hinge beside InfoNCE.", shown="0.22")
    adversarial_step: float | None = _loss("How far hsimcse moves positives.", shown="3")
    adversarial_mode: str | None = _loss("How it moves them.", choices=STEPS, shown="raw")
    noise: float | None = _loss("Length of their random offset.", least=0, shown="1")
    margin_weight: float | None = _loss("Of the margin loss of clusterns and soft-negative.", shown="0.001")
    alpha: float | None = _loss("Its upper margin.", shown="the objective's")
    beta: float | None = _loss("Its lower margin.", shown="0.3")
    false_negatives: str | None = _loss("Pairs of one cluster.", choices=FALSE_NEGATIVES, shown="margin")
    parts: int | None = _loss("Layers of sscl, the last one included.", least=1, shown="3")

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class BankOptions:
    """Options of `CorpusNegatives`. `bank` is a text file or the folder of a saved bank."""

    bank: str | None = _bank(
        None, "Texts, or a saved bank (checkpoint-N/bank).", metavar="FILE", shown="the training text"
    )
    neighbours: int = _bank(3, "Bank rows averaged to a negative.", least=1)
    skip: int = _bank(0, "Nearest bank rows passed over.", least=0)
    sample: int | None = _bank(None, "Draw the rows from this many nearest.", shown="take the first")
    max_similarity: float | None = _bank(None, "More similar bank rows are no negatives.")
    refresh: str | int = _bank(
        "never", "Encode the bank anew every N steps, or row by row.", metavar="never|N|write-through"
    )
    parity: bool = _bank(False, "Bank of raw [CLS] as in HSimCSE's released code.")

    def __post_init__(self):
        check(self)
        if self.sample is not None and self.sample < self.neighbours:
            raise OptionError("sample", f" is {self.sample}: expected at least the {self.neighbours} of ", "neighbours")
        if self.refresh not in REFRESH:
            if not str(self.refresh).isdigit() or int(self.refresh) < 1:
                known = ", ".join(REFRESH)
                raise OptionError("refresh", f" is {self.refresh!r}: expected {known}, or a number of steps")
            object.__setattr__(self, "refresh", int(self.refresh))


@dataclass(frozen=True)
class ClusterOptions:
    """Options of `OnlineKMeans`."""

    clusters: int | None = _clusters(None, "How many.", least=2, shown="128, or half of a smaller batch")
    cluster_mode: str = _clusters("momentum", "How centroids move.", choices=MODES)
    cluster_rate: float = _clusters(1e-3, "How far, in a step.", above=0, most=1)
    centroid_reduce: str = _clusters("sum", "Of a cluster's anchors.", choices=REDUCES)
    cluster_start: str = _clusters("chain", "Choice of the first centroids.", choices=STARTS)
    cluster_threshold: float = _clusters(0.4, "Mean cosine of a batch at which clustering starts.")

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class TrainOptions:
    """The options of a run, under the names of the command line. The defaults are SimCSE's, unsupervised BERT-base.

    Exactly one of `corpus` and `pairs` is given. `batch_size` is that of the whole run, whatever its processes are.
    `bank_options` and `cluster_options` belong to objectives that have a bank or clusters, and are None for others.

    Raises:
        OptionError: an option outside its range or without meaning for the objective, named with its value.

    Example:
        >>> options = TrainOptions("out", corpus="a.txt", objective_options=ObjectiveOptions(margin=0.2))
        >>> options.arguments
        {'temperature': 0.05, 'margin': 0.2}
    """

    output_dir: str = _text(help="Model and checkpoints are written here.", metavar="DIR")
    objective: str = _text("focal", "What to train.", metavar="|".join(OBJECTIVES))
    model: str = _text("minilm", "Hub name, local folder, or minilm.", metavar="NAME")
    pooling: str | None = _text(None, "Of the model.", choices=POOLINGS, shown="the model's own")
    corpus: str | None = _text(None, "One sentence a line, .txt or .gz.", metavar="FILE")
    pairs: str | None = _text(None, "anchor, positive [, negative]: .tsv or .gz.", metavar="FILE")
    hard_negatives: str | None = _text(None, "What fastcse mine wrote for --corpus or --pairs.", metavar="FILE")
    max_length: int = _text(32, "Tokens of a sentence, in training only.", least=3)  # [CLS], one word, [SEP]
    recipe: str | None = _text(None, "A paper's settings where none are given; see fastcse recipes.", metavar="NAME")
    batch_size: int = _run(64, "Sentences, or pairs, in a batch of all processes together.", least=2)
    mini_batch_size: int | None = _run(
        None, "Encode the batch in such parts (GradCache): memory no longer depends on it.", least=1, shown="whole"
    )
    max_gathered_bytes: int | None = _run(
        None, "More candidates of all processes are exchanged in a ring.", least=1, shown="gather all"
    )
    max_steps: int = _run(1000, "Optimizer steps.", least=1)
    lr: float = _run(3e-5, "First learning rate; it decays linearly to 0.", above=0)
    seed: int = _run(42, "The same seed gives the same numbers.", least=0)
    sts_dir: str | None = _run(None, "Its stsb.dev file chooses the checkpoint.", metavar="DIR")
    eval_steps: int | None = _run(
        None, "Steps between evaluations and checkpoints.", least=1, shown="125, or a quarter of a short run"
    )
    patience: int | None = _run(
        None, "Stop after this many evaluations without a better score.", least=1, shown="never"
    )
    bf16: bool = _run(False, "Encode in bfloat16 (autocast).")
    gradient_checkpointing: bool = _run(False, "Less memory of activations, a third more time.")
    tensorboard: bool = _run(False, "Write the log for TensorBoard too, in DIR/runs.")
    resume: bool = _run(False, "Continue the run of --output-dir.")
    overwrite: bool = _run(False, "Replace the model or run that --output-dir holds.")
    backend: str | None = _run(None, "triton, cpp or reference.", metavar="NAME", shown="the fastest that runs")
    view: str = _around(NONE, "Change the second view.", choices=(*VIEWS, NONE))
    view_rate: float = _around(0.05, "Of words whose case is switched.", least=0, most=1)
    head: str = _around(NONE, "A layer of training only.", choices=(*HEADS, NONE))
    queue: int = _around(0, "Past rows that are negatives too.", least=0)
    queue_momentum: float = _around(0.999, "Share of itself that the queue's encoder keeps in a step.", least=0, most=1)
    objective_options: ObjectiveOptions = part(ObjectiveOptions)
    bank_options: BankOptions | None = None
    cluster_options: ClusterOptions | None = None

    def __post_init__(self):
        objective = get_objective(self.objective)
        check(self)
        known = ", ".join(objective.options).replace("_", "-")
        self._refuse_foreign(self.objective_options, objective.options, known)
        self._set("bank_options", BankOptions, objective.bank, "no bank")
        self._set("cluster_options", ClusterOptions, objective.clusters, "no clusters")
        if self.cluster_options is not None and self.cluster_options.clusters is None:
            fitting = min(MOST_CLUSTERS, max(2, self.batch_size // 2))
            object.__setattr__(self, "cluster_options", replace(self.cluster_options, clusters=fitting))
        if self.eval_steps is None:
            object.__setattr__(self, "eval_steps", min(SIMCSE_EVAL_STEPS, max(1, self.max_steps // 4)))
        for wrong, *sentence in self._contradictions(objective):
            if wrong:
                raise OptionError(*sentence)
        check_backend(self.backend)

    def _contradictions(self, objective: Objective) -> Iterator[tuple]:
        """What two options together forbid: whether it is so, and the parts of an OptionError."""
        named, mini, margin = f" {self.objective}", self.mini_batch_size, self.arguments.get("margin", 0.0)
        clusters = 0 if self.cluster_options is None else self.cluster_options.clusters
        size = f" is {clusters}: expected 2 to the {self.batch_size} of "
        yield clusters > self.batch_size, "clusters", size, "batch_size"
        text = ("corpus", f" is {self.corpus!r} and ", "pairs", f" is {self.pairs!r}: expected one")
        yield (self.corpus is None) == (self.pairs is None), *text
        angle = f" is {margin}: expected an angle from 0 to pi / 2 for "
        yield self.objective == "angular" and not 0 <= margin <= math.pi / 2, "margin", angle, "objective", named
        without = objective.columns and self.pairs is None and self.view != "negation"
        third = f"{named} needs a third column of text: expected "
        yield without, "objective", third, "pairs", " that have one, or ", "view", " negation"
        gathered = f" {self.max_gathered_bytes} means nothing to "
        whole = f"{named}: it needs the candidates of all processes whole"
        yield self.max_gathered_bytes and not objective.is_softmax, "max_gathered_bytes", gathered, "objective", whole
        queued = self.queue and not (objective.is_softmax or objective.columns)
        own = f"{named}: its losses have negatives of their own"
        yield queued, "queue", f" {self.queue} means nothing to ", "objective", own
        most = f" is {mini}: expected at most the {self.batch_size} of "
        yield mini is not None and mini > self.batch_size, "mini_batch_size", most, "batch_size"
        part = ("mini_batch_size", f" {mini}: its statistics would be those of a part of the batch")
        yield self.head == "batchnorm" and mini is not None, "head", " batchnorm with ", *part
        yield self.resume and self.overwrite, "resume", " and ", "overwrite", " were both given: expected one"
        waits = f" {self.patience} needs "
        yield self.patience and self.sts_dir is None, "patience", waits, "sts_dir", ", whose scores it waits for"
        absent = self.tensorboard and importlib.util.find_spec("tensorboard") is None
        yield absent, "tensorboard", " needs tensorboard, which is not installed: pip install tensorboard"

    @property
    def arguments(self) -> dict[str, float | str]:
        """The options of the loss, those that were left out by default."""
        given = {name: value for name, value in flat(self.objective_options).items() if value is not None}
        return {**get_objective(self.objective).options, **given}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the tree, with what follows from other options filled in."""
        parts = {"objective_options": self.arguments}
        for name in ("bank_options", "cluster_options"):
            parts[name] = {} if getattr(self, name) is None else flat(getattr(self, name))
        return {**dataclasses.asdict(self), **parts, **self._content()}

    def identity(self) -> dict[str, Any]:
        """By name, the options that a resumed run must share with the run it continues, and the mined file's digest."""
        chosen = {**flat(self), **self.arguments, **self._content()}
        return {name: value for name, value in chosen.items() if name not in FREE_ON_RESUME}

    def _content(self) -> dict[str, str]:
        return {} if self.hard_negatives is None else {f"hard_negatives{SHA256}": sha256_of(self.hard_negatives)}

    def _set(self, name: str, kind: type, has: bool, why: str) -> None:
        """Options of a part that the objective has, or none."""
        given = getattr(self, name)
        if has:
            object.__setattr__(self, name, given or kind())
        elif given is not None:
            self._refuse_foreign(given, (), why)
            raise OptionError("objective", f" {self.objective} has {why}, so options of one mean nothing to it")

    def _refuse_foreign(self, given: Any, known: Mapping[str, Any] | tuple, has: str) -> None:
        for field in dataclasses.fields(given):
            value = getattr(given, field.name)
            if field.name not in known and value != field.default:
                what = (field.name, f" {value} means nothing to ")
                raise OptionError(*what, "objective", f" {self.objective}: it has {has}")


def options_of(given: Mapping[str, Any]) -> TrainOptions:
    """The options of a command line: those that were `given`, by name, then those of its recipe, then the defaults."""
    if "recipe" in given:
        given = get_recipe(given["recipe"]).fill(given)
    return build(TrainOptions, given)
