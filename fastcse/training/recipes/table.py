"""The recipes that `fastcse train --recipe` knows. A new one is a row."""

from __future__ import annotations

from ...errors import InputError
from .recipe import Recipe, Setting


def _published(source: str, **settings: str) -> tuple[Setting, ...]:
    return tuple(Setting(name.replace("_", " "), value, source) for name, value in settings.items())


SIMCSE_SCRIPTS = "README and run_unsup_example.sh, run_sup_example.sh of github.com/princeton-nlp/SimCSE"
BERT = {"model": "bert-base-uncased", "pooling": "cls"}
ROBERTA = {"model": "roberta-base", "pooling": "cls"}
LENGTH = "One epoch over the paper's million sentences of Wikipedia is not set: --max-steps is the length of a run."
HALF = "float16: --bf16 is the half precision here, and off unless asked for."
HEAD = {"head": "tanh"}
NOT_LOOKED_UP = "Its batch, learning rate and length were not found: those of SimCSE for BERT-base stand in."
TEXT, PAIRS = "--corpus wiki.txt --sts-dir STS --output-dir out", "--pairs nli.tsv --sts-dir STS --output-dir out"


def _train(name: str, rest: str = TEXT) -> str:
    return f"fastcse train --recipe {name} {rest}"


_ROWS = (
    Recipe(
        "simcse-unsup", "SimCSE: Simple Contrastive Learning of Sentence Embeddings (unsupervised)",
        "https://arxiv.org/abs/2104.08821", "infonce",
        _published(
            SIMCSE_SCRIPTS, model="bert-base-uncased", batch="64", lr="3e-5", epochs="1", temperature="0.05",
            length="32", head="tanh(Linear), in training only", text="1,000,000 sentences of Wikipedia",
            evaluation="STS-B dev every 125 steps",
        ),
        {**BERT, **HEAD, "batch_size": 64, "lr": 3e-5, "max_length": 32,
         "objective_options": {"temperature": 0.05}},
        (LENGTH, HALF, "The optional term of masked words, which is off in the paper's scripts too."),
        _train("simcse-unsup"),
    ),
    Recipe(
        "simcse-sup", "SimCSE: Simple Contrastive Learning of Sentence Embeddings (supervised)",
        "https://arxiv.org/abs/2104.08821", "infonce",
        _published(
            SIMCSE_SCRIPTS, model="bert-base-uncased", batch="512", lr="5e-5", epochs="3", temperature="0.05",
            length="32", head="tanh(Linear), at evaluation too", hard_negative_weight="0",
            text="314,000 triplets of SNLI and MNLI",
        ),
        {**BERT, **HEAD, "batch_size": 512, "lr": 5e-5, "max_length": 32,
         "objective_options": {"temperature": 0.05}},
        ("Three epochs are not set: --max-steps is the length of a run.", HALF,
         "The head at evaluation: it is taken off before the model is saved.",
         "A weight on a pair's own contradiction, which is 0 in the paper's scripts too."),
        _train("simcse-sup", PAIRS),
    ),
    Recipe(
        "focal", "Improving Contrastive Learning of Sentence Embeddings with Focal-InfoNCE",
        "https://arxiv.org/abs/2310.06918", "focal",
        _published(
            "script and argument defaults of github.com/puerrrr/Focal-InfoNCE", model="roberta-base", batch="512",
            lr="1e-5", epochs="1", temperature="0.05", margin="0.3", length="32",
            head="tanh(Linear), in training only",
        ),
        {**ROBERTA, **HEAD, "batch_size": 512, "lr": 1e-5, "max_length": 32,
         "objective_options": {"temperature": 0.05, "margin": 0.3}},
        (LENGTH, HALF, "Margin, temperature and learning rate of other backbones were not found."),
        _train("focal"),
    ),
    Recipe(
        "hsimcse", "HSimCSE: Improving Contrastive Learning of Unsupervised Sentence Representation with Adversarial "
        "Hard Positives and Dual Hard Negatives", "https://github.com/xubodhu/HSimCSE", "hsimcse",
        _published(
            "script and simcse/models.py of github.com/xubodhu/HSimCSE", model="roberta-base", batch="64", lr="2e-5",
            epochs="1", temperature="0.05", length="32", quadruplet_weight="0.22", weights="0.9 and 0.11",
            margin="0", adversarial_step="3.0", neighbours="mean of the 3 best of 7", bank="raw [CLS], never refreshed",
        ),
        {**ROBERTA, **HEAD, "batch_size": 64, "lr": 2e-5, "max_length": 32,
         "objective_options": {"temperature": 0.05, "margin": 0.0, "quadruplet_weight": 0.22, "adversarial_step": 3.0,
                               "adversarial_mode": "raw", "noise": 1.0},
         "bank_options": {"neighbours": 3, "refresh": "never", "parity": True}},
        (LENGTH, HALF, "The choice of the checkpoint by STS test sets: here STS-B dev chooses.",
         "Its comparison of token ids that excludes the wrong sentence, or none: here a sentence is never its own "
         "negative."),
        _train("hsimcse"),
    ),
    Recipe(
        "clusterns", "Clustering-Aware Negative Sampling for Unsupervised Sentence Representation",
        "https://arxiv.org/abs/2305.09892", "clusterns",
        _published(
            "README of github.com/djz233/ClusterNS, row of BERT-base", model="bert-base-uncased", batch="256",
            lr="5e-5", epochs="1", temperature="0.05", length="32", clusters="128", cluster_rate="1e-3",
            start="mean cosine of a batch at most 0.4", margin_weight="1e-3", alpha="0", beta="0.3",
            stop="after 3 evaluations without a better one",
        ),
        {**BERT, **HEAD, "patience": 3, "batch_size": 256, "lr": 5e-5, "max_length": 32,
         "objective_options": {"temperature": 0.05, "margin_weight": 1e-3, "alpha": 0.0, "beta": 0.3},
         "cluster_options": {"clusters": 128, "cluster_mode": "momentum", "cluster_rate": 1e-3,
                             "cluster_threshold": 0.4}},
        (LENGTH, HALF, "The flavour with prompts."),
        _train("clusterns"),
    ),
    Recipe(
        "cards", "Improving Contrastive Learning of Sentence Embeddings with Case-Augmented Positives and Retrieved "
        "Negatives", "https://github.com/alibaba/SimCSE-with-CARDS", "infonce",
        _published(
            "README of github.com/alibaba/SimCSE-with-CARDS, row of RoBERTa-base", model="roberta-base",
            batch="512 (128 on 4 GPUs)", lr="4e-5", temperature="0.05", case_switch="0.05 of words",
            negative="1 drawn of the 65 nearest sentences of the corpus, encoded with gradient",
        ),
        {**ROBERTA, **HEAD, "view": "case-switch", "view_rate": 0.05, "batch_size": 512, "lr": 4e-5, "max_length": 32,
         "objective_options": {"temperature": 0.05}},
        (LENGTH, HALF,
         "A negative drawn anew at every step: --hard-negatives holds those that fastcse mine found before the run.",
         "The write-through of its bank during training."),
        "fastcse mine --corpus wiki.txt --num-negatives 1 --range-max 65 --sampling random --output mined.jsonl && "
        + _train("cards", "--corpus wiki.txt --hard-negatives mined.jsonl --sts-dir STS --output-dir out"),
    ),
    Recipe(
        "sncse", "SNCSE: Contrastive Learning for Unsupervised Sentence Embedding with Soft Negative Samples",
        "https://arxiv.org/abs/2201.05979", "soft-negative",
        _published("github.com/Sense-GVT/SNCSE", alpha="0.1", beta="0.3",
                   margin_weight="1e-3 for BERT, 5e-4 for RoBERTa"),
        {**BERT, **HEAD, "view": "negation", "batch_size": 64, "lr": 3e-5, "max_length": 32,
         "objective_options": {"temperature": 0.05, "margin_weight": 1e-3, "alpha": 0.1, "beta": 0.3}},
        (LENGTH, HALF, NOT_LOOKED_UP,
         "The negation by a dependency parse: a short list of rules on words negates, and falls back to "
         "'It is not true that'.",
         "Prompts and pooling of the paper's encoder: the embedding is [CLS]."),
        _train("sncse"),
    ),
    Recipe(
        "diffcse", "DiffCSE: Difference-based Contrastive Learning for Sentence Embeddings (its contrastive part)",
        "https://arxiv.org/abs/2204.10298", "infonce",
        _published(
            "README and diffcse/models.py of github.com/voidism/DiffCSE", model="bert-base-uncased", batch="64",
            lr="7e-6", epochs="2", masked_words="0.30", weight_of_the_detection="0.005",
            head="two layers with batch normalisation",
        ),
        {**BERT, "head": "batchnorm", "batch_size": 64, "lr": 7e-6, "max_length": 32,
         "objective_options": {"temperature": 0.05}},
        ("Two epochs are not set: --max-steps is the length of a run.", HALF,
         "The detection of replaced words, from which the paper has its name and its gain: this is SimCSE with the "
         "paper's head and learning rate.",
         "Temperature and length of its script were not found: those of SimCSE stand in."),
        _train("diffcse"),
    ),
    Recipe(
        "sscl", "Alleviating Over-smoothing for Unsupervised Sentence Representation (SSCL)",
        "https://github.com/nuochenpku/SSCL", "sscl",
        _published("sscl/models.py of github.com/nuochenpku/SSCL", layers="2, the last but one and the last but two",
                   columns="5 batches", loss="mean of plain and extended InfoNCE"),
        {**BERT, "batch_size": 64, "lr": 3e-5, "max_length": 32,
         "objective_options": {"temperature": 0.05, "parts": 3}},
        (LENGTH, HALF, NOT_LOOKED_UP, "The choice of the checkpoint by transfer tasks: here STS-B dev chooses.",
         "A head: the intermediate vectors have none, so the final one has none either."),
        _train("sscl"),
    ),
    Recipe(
        "adapacse", "KDMCSE: Knowledge Distillation Multimodal Sentence Embeddings with Adaptive Angular margin "
        "Contrastive Learning (its text part)",
        "https://arxiv.org/abs/2403.17486", "angular",
        _published(
            "src/model.py and scripts of github.com/duyngtr16061999/KDMCSE", batch="64", lr="3e-5", epochs="3",
            temperature="0.05", margin="0.15", projection="256", weight_of_images="0.01",
        ),
        {**BERT, **HEAD, "batch_size": 64, "lr": 3e-5, "max_length": 32,
         "objective_options": {"temperature": 0.05, "margin": 0.15}},
        ("Three epochs are not set: --max-steps is the length of a run.", HALF,
         "Images, captions and the margin that a teacher's similarity of the pair makes smaller: every negative has "
         "the whole margin.",
         "The projection to 256: the head is SimCSE's."),
        _train("adapacse"),
    ),
    Recipe(
        "moco-queue", "Momentum Contrast for Unsupervised Visual Representation Learning, on sentences",
        "https://arxiv.org/abs/1911.05722", "infonce",
        _published("main_moco.py of github.com/facebookresearch/moco, for images", batch="256", queue="65,536",
                   momentum="0.999", temperature="0.07", lr="0.03 with SGD", epochs="200"),
        {**BERT, **HEAD, "queue": 4096, "queue_momentum": 0.999, "batch_size": 64, "lr": 3e-5, "max_length": 32,
         "objective_options": {"temperature": 0.05}},
        (LENGTH, HALF, "All but the queue and the momentum encoder: batch, learning rate and temperature for sentences "
         "are those of SimCSE for BERT-base, and 4,096 rows of queue were chosen here, not published.",
         "A sum over positive and queue alone: the other rows of the batch are negatives too.",
         "A positive of the momentum encoder: both views come from the encoder, with gradient.",
         "The shuffling of batch normalisation between GPUs: sentence encoders have none."),
        _train("moco-queue"),
    ),
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in _ROWS}


def get_recipe(name: str) -> Recipe:
    """The recipe called `name`, or an InputError that lists the names there are."""
    if name not in RECIPES:
        raise InputError(f"--recipe {name!r} is unknown: expected {' or '.join(RECIPES)}")
    return RECIPES[name]
