"""The recipes that `fastcse train --recipe` knows: a paper, the settings it published, and what is run here for it. A
new one is a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...errors import OptionError
from ..objectives import CLUSTERNS, FOCAL, HSIMCSE, KDMCSE, SIMCSE, SNCSE, SSCL, Paper

SHORT = {"batch_size": "batch", "max_length": "length"}  # names of published settings, where not the options'


class Setting(NamedTuple):
    """One published setting and where it stands."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Recipe:
    """A published way of training, as `fastcse train --recipe NAME` runs it.

    Args:
        name:           on the command line.
        paper, about:   where it was published, and what of it this is.
        objective:      the key in the table of objectives.
        source:         where the settings stand.
        published:      options of `TrainOptions`, by name, that are set as published.
        chosen:         further options, that were not found or stand in for what was published.
        stated:         published settings that are not set, in words; or the wording of one that is, as of a head.
        not_reproduced: one sentence for each thing that is published and not done here.
        text:           the arguments of a command that runs it.
        before:         a command that must run first.
    """

    name: str
    paper: Paper
    objective: str
    source: str
    not_reproduced: tuple[str, ...]
    published: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    about: str = ""
    text: str = "--corpus wiki.txt --sts-dir STS --output-dir out"
    before: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """What it sets of `TrainOptions`, by name."""
        return {**self.published, **self.chosen}

    @property
    def example(self) -> str:
        """A command that runs it."""
        return f"{self.before}fastcse train --recipe {self.name} {self.text}"

    def fill(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The `given` options, by name, and the recipe's for the rest.

        Raises:
            OptionError: another objective than the recipe's.

        Example:
            >>> get_recipe("focal").fill({"lr": 2e-5, "margin": 0.2})
            {'objective': 'focal', 'model': 'roberta-base', 'batch_size': 512, 'lr': 2e-05, 'temperature': 0.05, \
'margin': 0.2, 'max_length': 32, 'head': 'tanh', 'pooling': 'cls'}
        """
        if given.get("objective", self.objective) != self.objective:
            raise OptionError(
                "objective", f" {given['objective']!r} contradicts ", "recipe", f" {self.name} of {self.objective!r}"
            )
        filled = {"objective": self.objective, **self.options, **given}
        if "sts_dir" not in given and "patience" not in given:
            filled.pop("patience", None)  # there are no scores to wait for
        return filled

    def settings(self) -> list[Setting]:
        """What was published, whether it is set here or not."""
        values = {SHORT.get(name, name): value for name, value in self.published.items()} | self.stated
        return [Setting(name.replace("_", " "), f"{value}", self.source) for name, value in values.items()]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name, "title": self.title, "url": self.paper.url, "objective": self.objective,
            "published": [setting._asdict() for setting in self.settings()], "options": self.options,
            "not_reproduced": list(self.not_reproduced), "example": self.example,
        }  # fmt: skip

    @property
    def title(self) -> str:
        """Of the paper, and what of it this is."""
        return f"{self.paper.title} ({self.about})" if self.about else self.paper.title


SIMCSE_SCRIPTS = "README and run_unsup_example.sh, run_sup_example.sh of github.com/princeton-nlp/SimCSE"
BERT, ROBERTA, CLS = {"model": "bert-base-uncased"}, {"model": "roberta-base"}, {"pooling": "cls"}
COMMON = {"temperature": 0.05, "max_length": 32}
TANH = {"head": "tanh"}
AS_SIMCSE = {**BERT, **CLS, "batch_size": 64, "lr": 3e-5, **COMMON}
LENGTH = "One epoch over the paper's million sentences of Wikipedia is not set: --max-steps is the length of a run."
HALF = "float16: --bf16 is the half precision here, and off unless asked for."
NOT_LOOKED_UP = "Its batch, learning rate and length were not found: those of SimCSE for BERT-base stand in."
PAIRS = "--pairs nli.tsv --sts-dir STS --output-dir out"
CARDS = Paper(
    "wang2022cards", "Improving Contrastive Learning of Sentence Embeddings with Case-Augmented Positives and "
    "Retrieved Negatives", "Wang, Wei and others", "Proceedings of SIGIR 2022", "2022",
    "https://github.com/alibaba/SimCSE-with-CARDS",
)  # fmt: skip
DIFFCSE = Paper(
    "chuang2022diffcse", "DiffCSE: Difference-based Contrastive Learning for Sentence Embeddings",
    "Chuang, Yung-Sung and others", "Proceedings of NAACL 2022", "2022", "https://arxiv.org/abs/2204.10298",
)  # fmt: skip
MOCO = Paper(
    "he2020moco", "Momentum Contrast for Unsupervised Visual Representation Learning", "He, Kaiming and others",
    "Proceedings of CVPR 2020", "2020", "https://arxiv.org/abs/1911.05722",
)  # fmt: skip

_ROWS = (
    Recipe(
        "simcse-unsup", SIMCSE, "infonce", SIMCSE_SCRIPTS, about="unsupervised",
        published={**BERT, "batch_size": 64, "lr": 3e-5, **COMMON, **TANH},
        chosen=CLS,
        stated={"epochs": "1", "head": "tanh(Linear), in training only", "text": "1,000,000 sentences of Wikipedia",
                "evaluation": "STS-B dev every 125 steps"},
        not_reproduced=(LENGTH, HALF, "The optional term of masked words, which is off in the paper's scripts too."),
    ),
    Recipe(
        "simcse-sup", SIMCSE, "infonce", SIMCSE_SCRIPTS, about="supervised", text=PAIRS,
        published={**BERT, "batch_size": 512, "lr": 5e-5, **COMMON, **TANH},
        chosen=CLS,
        stated={"epochs": "3", "head": "tanh(Linear), at evaluation too", "hard_negative_weight": "0",
                "text": "314,000 triplets of SNLI and MNLI"},
        not_reproduced=(
            "Three epochs are not set: --max-steps is the length of a run.", HALF,
            "The head at evaluation: it is taken off before the model is saved.",
            "A weight on a pair's own contradiction, which is 0 in the paper's scripts too.",
        ),
    ),
    Recipe(
        "focal", FOCAL, "focal", "script and argument defaults of github.com/puerrrr/Focal-InfoNCE",
        published={**ROBERTA, "batch_size": 512, "lr": 1e-5, "temperature": 0.05, "margin": 0.3, "max_length": 32,
                   **TANH},
        chosen=CLS,
        stated={"epochs": "1", "head": "tanh(Linear), in training only"},
        not_reproduced=(LENGTH, HALF, "Margin, temperature and learning rate of other backbones were not found."),
    ),
    Recipe(
        "hsimcse", HSIMCSE, "hsimcse", "script and simcse/models.py of github.com/xubodhu/HSimCSE",
        published={**ROBERTA, "batch_size": 64, "lr": 2e-5, **COMMON, "quadruplet_weight": 0.22, "margin": 0.0,
                   "adversarial_step": 3.0, "neighbours": 3},
        chosen={**CLS, **TANH, "adversarial_mode": "raw", "noise": 1.0, "refresh": "never", "parity": True},
        stated={"epochs": "1", "weights": "0.9 and 0.11", "neighbours_searched": "7",
                "bank": "raw [CLS], never refreshed"},
        not_reproduced=(
            LENGTH, HALF, "The choice of the checkpoint by STS test sets: here STS-B dev chooses.",
            "Its comparison of token ids that excludes the wrong sentence, or none: here a sentence is never its own "
            "negative.",
        ),
    ),
    Recipe(
        "clusterns", CLUSTERNS, "clusterns", "README of github.com/djz233/ClusterNS, row of BERT-base",
        published={**BERT, "batch_size": 256, "lr": 5e-5, **COMMON, "clusters": 128, "cluster_rate": 1e-3,
                   "cluster_threshold": 0.4, "margin_weight": 1e-3, "alpha": 0.0, "beta": 0.3, "patience": 3},
        chosen={**CLS, **TANH, "cluster_mode": "momentum"},
        stated={"epochs": "1"},
        not_reproduced=(LENGTH, HALF, "The flavour with prompts."),
    ),
    Recipe(
        "cards", CARDS, "infonce", "README of github.com/alibaba/SimCSE-with-CARDS, row of RoBERTa-base",
        text="--corpus wiki.txt --hard-negatives mined.jsonl --sts-dir STS --output-dir out",
        before="fastcse mine --corpus wiki.txt --num-negatives 1 --range-max 65 --sampling random --output mined.jsonl "
               "&& ",
        published={**ROBERTA, "batch_size": 512, "lr": 4e-5, "temperature": 0.05, "view_rate": 0.05},
        chosen={**CLS, **TANH, "view": "case-switch", "max_length": 32},
        stated={"batch_of_a_GPU": "128, on 4 of them",
                "negative": "1 drawn of the 65 nearest sentences of the corpus, encoded with gradient"},
        not_reproduced=(
            LENGTH, HALF,
            "A negative drawn anew at every step: --hard-negatives holds those that fastcse mine found before the run.",
            "The write-through of its bank during training.",
        ),
    ),
    Recipe(
        "sncse", SNCSE, "soft-negative", "github.com/Sense-GVT/SNCSE",
        published={"alpha": 0.1, "beta": 0.3, "margin_weight": 1e-3},
        chosen={**AS_SIMCSE, **TANH, "view": "negation"},
        stated={"margin_weight_of_RoBERTa": "5e-4"},
        not_reproduced=(
            LENGTH, HALF, NOT_LOOKED_UP,
            "The negation by a dependency parse: a short list of rules on words negates, and falls back to "
            "'It is not true that'.",
            "Prompts and pooling of the paper's encoder: the embedding is [CLS].",
        ),
    ),
    Recipe(
        "diffcse", DIFFCSE, "infonce", "README and diffcse/models.py of github.com/voidism/DiffCSE",
        about="its contrastive part",
        published={**BERT, "batch_size": 64, "lr": 7e-6, "head": "batchnorm"},
        chosen={**CLS, **COMMON},
        stated={"epochs": "2", "masked_words": "0.30", "weight_of_the_detection": "0.005",
                "head": "two layers with batch normalisation"},
        not_reproduced=(
            "Two epochs are not set: --max-steps is the length of a run.", HALF,
            "The detection of replaced words, from which the paper has its name and its gain: this is SimCSE with the "
            "paper's head and learning rate.",
            "Temperature and length of its script were not found: those of SimCSE stand in.",
        ),
    ),
    Recipe(
        "sscl", SSCL, "sscl", "sscl/models.py of github.com/nuochenpku/SSCL", about="SSCL",
        published={"parts": 3},
        chosen=AS_SIMCSE,
        stated={"columns": "5 batches", "loss": "mean of plain and extended InfoNCE"},
        not_reproduced=(
            LENGTH, HALF, NOT_LOOKED_UP, "The choice of the checkpoint by transfer tasks: here STS-B dev chooses.",
            "A head: the intermediate vectors have none, so the final one has none either.",
        ),
    ),
    Recipe(
        "adapacse", KDMCSE, "angular", "src/model.py and scripts of github.com/duyngtr16061999/KDMCSE",
        about="its text part",
        published={"batch_size": 64, "lr": 3e-5, "temperature": 0.05, "margin": 0.15},
        chosen={**BERT, **CLS, **TANH, "max_length": 32},
        stated={"epochs": "3", "projection": "256", "weight_of_images": "0.01"},
        not_reproduced=(
            "Three epochs are not set: --max-steps is the length of a run.", HALF,
            "Images, captions and the margin that a teacher's similarity of the pair makes smaller: every negative has "
            "the whole margin.",
            "The projection to 256: the head is SimCSE's.",
        ),
    ),
    Recipe(
        "moco-queue", MOCO, "infonce", "main_moco.py of github.com/facebookresearch/moco, for images",
        about="on sentences",
        published={"queue_momentum": 0.999},
        chosen={**AS_SIMCSE, **TANH, "queue": 4096},
        stated={"batch": "256", "queue": "65,536", "temperature": "0.07", "lr": "0.03 with SGD", "epochs": "200"},
        not_reproduced=(
            LENGTH, HALF, "All but the queue and the momentum encoder: batch, learning rate and temperature for "
            "sentences are those of SimCSE for BERT-base, and 4,096 rows of queue were chosen here, not published.",
            "A sum over positive and queue alone: the other rows of the batch are negatives too.",
            "A positive of the momentum encoder: both views come from the encoder, with gradient.",
            "The shuffling of batch normalisation between GPUs: sentence encoders have none.",
        ),
    ),
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in _ROWS}


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`, or an OptionError that lists the names there are."""
    if name not in RECIPES:
        raise OptionError("recipe", f" {name!r} is unknown: expected {' or '.join(RECIPES)}")
    return RECIPES[name]
