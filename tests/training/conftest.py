"""Text and encoders of runs, and one trained run for each recipe, shared by all tests that look at what it leaves."""

import functools
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_encoder import sentences, write_tiny_encoder

from fastcse.training import run
from fastcse.training.options import options_of
from fastcse.training.report import TrainReport
from fastcse.training.run import train

# Of 40 sentences in batches of 8: 5 steps an epoch, so that a run ends in its second.
COMMON = {"batch_size": 8, "max_steps": 8, "eval_steps": 3, "lr": 1e-3}
# What a recipe needs for such a batch, and so that its own part acts on every loss.
SMALLER = {
    "simcse-unsup": {"eval_steps": 5},  # a checkpoint between two epochs
    "hsimcse": {"margin": 2.0, "sample": 5, "refresh": "3"},
    "clusterns": {"clusters": 3, "cluster_threshold": 1.0, "cluster_rate": 0.1, "cluster_mode": "adamw",
                  "margin_weight": 1.0},
    "moco-queue": {"queue": 20},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cheaper():
    """Runs on one thread, without a model card for every checkpoint and without a picture: a fifth of their time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SentenceTransformer, "_create_model_card", lambda *_, **__: None)
        patch.setattr(run, "draw", lambda *_: None)
        yield
    torch.set_num_threads(threads)


class Text(NamedTuple):
    """Files of one folder: 40 sentences, as pairs and triplets too, a mined negative for each, and an STS-B dev set."""

    corpus: str
    pairs: str
    triplets: str
    mined: str
    sts: str


class Run(NamedTuple):
    """What was given, the output folder, and what came out."""

    given: dict
    folder: Path
    report: TrainReport

    @property
    def log(self):
        return [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    texts = sentences(120)
    first, second, third = texts[:40], texts[40:80], texts[80:]
    mined = [{"anchor": a, "positive": a, "negative": n} for a, n in zip(first, third)]
    scored = zip(sentences(20, seed=1), sentences(20, seed=2))
    contents = {
        "corpus.txt": "\n".join(first),
        "pairs.tsv": "".join("\t".join(row) + "\n" for row in zip(first, second)),
        "triplets.tsv": "".join("\t".join(row) + "\n" for row in zip(first, second, third)),
        "mined.jsonl": "".join(json.dumps(row) + "\n" for row in mined),
        "sts/stsb.dev.tsv": "sentence1\tsentence2\tscore\n"
        + "".join(f"{a}\t{b}\t{i % 6}\n" for i, (a, b) in enumerate(scored)),
    }
    (folder / "sts").mkdir()
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return Text(*(str(folder / name) for name in ("corpus.txt", "pairs.tsv", "triplets.tsv", "mined.jsonl", "sts")))


@pytest.fixture(scope="session")
def still_path(tmp_path_factory):
    """An encoder without dropout, whose runs can be compared."""
    return write_tiny_encoder(tmp_path_factory.mktemp("still"), dropout=0.0)


def text_of(recipe, text):
    if recipe == "simcse-sup":
        return {"pairs": text.triplets, "sts_dir": text.sts}
    return {"corpus": text.corpus, **({"hard_negatives": text.mined} if recipe == "cards" else {})}


@pytest.fixture(scope="session")
def run_of(tmp_path_factory, encoder_path, text):
    """The run of a recipe, by its name: eight steps, made once. Its folder is only read."""

    @functools.cache
    def make(recipe):
        folder = tmp_path_factory.mktemp("run") / "out"
        given = {"recipe": recipe, "model": encoder_path, **COMMON, **text_of(recipe, text), **SMALLER.get(recipe, {})}
        return Run(given, folder, train(options_of(given | {"output_dir": str(folder)})))

    return make


@pytest.fixture
def cut(tmp_path):
    """Copies a run without its last checkpoint, as of a process that was killed while it wrote that one."""

    def make(run, last=8):
        folder = tmp_path / "cut"
        shutil.copytree(run.folder, folder)
        for path in (folder / f"checkpoint-{last}").rglob("*.json"):
            path.unlink()
        return folder

    return make


@pytest.fixture
def options(tmp_path, encoder_path, text):
    """Options of a run of two steps of InfoNCE over the corpus."""

    def make(**changes):
        given = {"output_dir": str(tmp_path / "out"), "objective": "infonce", "model": encoder_path,
                 "corpus": text.corpus, **COMMON, "max_steps": 2, "eval_steps": 1}  # fmt: skip
        return options_of({name: value for name, value in (given | changes).items() if value is not None})

    return make


def losses(report):
    return [value for _, value in report.loss]
