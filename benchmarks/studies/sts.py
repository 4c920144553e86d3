"""SimCSE training on real sentences, several seeds: STS-B dev chooses the checkpoint, STS-B test is scored once.

    python -m benchmarks.studies.sts --corpus wiki.txt.gz --sts-dir STS --work DIR [--seeds 1 2 3]
                                     [--objectives infonce ...] [--more sts15.tsv.gz sts16.tsv.gz]

An objective may carry options: "hsimcse --margin 0.2", "focal --batch-size 1024 --max-steps 8". The sets of `--more`
are scored once too, whole and without the pairs that STS-B has as well (their column in_stsb). The bank of hsimcse
holds the first sentences of the corpus, encoded once. A run whose result lies in DIR already is not made again. Writes
benchmarks/results/sts.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastcse.bench.environment import environment
from fastcse.files import read_lines, write_atomic

from .cache import cached

# The setting of the SimCSE papers, shortened: 100 steps of 64 sentences.
TRAIN = (
    "--model minilm --pooling cls --batch-size 64 --max-steps 100 --lr 3e-5 --max-length 32 --temperature 0.05 "
    "--eval-steps 25"
)
OBJECTIVES = ["infonce", "focal", "hsimcse", "clusterns"]
BANK_TEXTS = 50_000
RESULT = Path(__file__).resolve().parents[1] / "results" / "sts.json"
WHAT = (
    "STS-B Spearman x 100 after 100 steps of 64 Wikipedia sentences, MiniLM with CLS pooling; checkpoint chosen on "
    "dev; alignment and uniformity on test; mean ± standard deviation over seeds. The bank of hsimcse: the first "
    f"{BANK_TEXTS:,} sentences, never refreshed."
)


def fastcse(path: Path, *arguments: str, uncompared: tuple[str, ...] = ()) -> dict[str, Any]:
    """The output of a command of `fastcse` with --json, cached in `path`. It does not run again because `uncompared`
    arguments changed."""

    def run() -> dict[str, Any]:
        command = [sys.executable, "-m", "fastcse", *arguments, *uncompared, "--json"]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)

    return cached(path, {"arguments": arguments}, run)


def bank(corpus: Path, work: Path) -> Path:
    """The argument of `--bank`: the bank that an earlier run encoded, else its texts."""
    made = sorted(work.glob("hsimcse*/checkpoint-*/bank"))
    if made:
        return made[0]
    texts = work / "bank.txt"
    if not texts.exists():
        write_atomic(texts, "\n".join(read_lines(corpus, "--corpus")[:BANK_TEXTS]) + "\n")
    return texts


def make_sets(sts_dir: Path, more: list[Path], folder: Path) -> None:
    """The files that are scored, in one folder: STS-B dev and test, and each further set, whole and without the pairs
    that are in STS-B."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = {name: read_lines(sts_dir / f"{name}.tsv.gz", "--sts-dir") for name in ("stsb.dev", "stsb.test")}
    for path in more:
        header, *rows = read_lines(path, "--more")
        where, name = header.split("\t").index("in_stsb"), path.name.partition(".")[0]
        sets[name] = [header, *rows]
        sets[f"{name}.apart"] = [header, *(row for row in rows if row.split("\t")[where] == "-")]
    for name, lines in sets.items():
        write_atomic(folder / f"{name}.tsv", "\n".join(lines) + "\n")


def run(objective: str, seed: int, corpus: Path, sts_dir: Path, work: Path) -> dict[str, Any]:
    """One seed of one objective, trained and scored."""
    name = f"{objective.replace(' --', '-').replace(' ', '-')}-{seed}"
    chosen, *more = objective.split()
    # Texts in the first run, encoded rows of the same texts afterwards.
    banked = ("--bank", str(bank(corpus, work))) if chosen == "hsimcse" else ()
    files = ("--corpus", str(corpus), "--sts-dir", str(sts_dir), "--output-dir", str(work / name))
    options = ("--objective", chosen, "--seed", str(seed), *files, *TRAIN.split(), *more)
    trained = fastcse(work / f"train-{name}.json", "train", *options, uncompared=banked)
    scored = fastcse(work / f"scores-{name}.json", "eval", str(work / name), "--sts-dir", str(work / "sets"))
    sets = {file["name"].removesuffix(".tsv"): file for file in scored["files"]}
    dev, test = sets.pop("stsb.dev"), sets.pop("stsb.test")
    return {
        "objective": objective,
        "seed": seed,
        **{key: trained[key] for key in ("backend", "seconds", "best_step", "dev_before")},
        "dev_curve": trained["dev"],
        "dev": dev["spearman"],
        "test": test["spearman"],
        "alignment": test["alignment"],
        "uniformity": test["uniformity"],
        "more": {name: file["spearman"] for name, file in sets.items()},
        "stats": trained.get("stats", {}),
        "cpu": environment("cpu")["cpu"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.sts", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--sts-dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--objectives", nargs="*", default=OBJECTIVES)
    parser.add_argument("--more", type=Path, nargs="*", default=[])
    a = parser.parse_args()
    make_sets(a.sts_dir, a.more, a.work / "sets")
    # Runs of other objectives stay in the file: quality, unlike time, does not depend on the machine.
    earlier = json.loads(RESULT.read_text("utf-8"))["runs"] if RESULT.exists() else []
    made = {(objective, seed) for objective in a.objectives for seed in a.seeds}
    runs = [one for one in earlier if (one["objective"], one["seed"]) not in made]
    runs += [run(objective, seed, a.corpus, a.sts_dir, a.work) for seed in a.seeds for objective in a.objectives]
    command = f"fastcse train --corpus wiki500k.part00.txt.gz {TRAIN}"
    report = {"what": WHAT, "command": command, "machine": environment("cpu"), "runs": runs}
    write_atomic(RESULT, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
