"""SimCSE training on real sentences, several seeds: STS-B dev chooses the checkpoint, STS-B test is scored once.

    python -m benchmarks.sts --corpus wiki.txt.gz --sts-dir STS --work DIR [--seeds 1 2 3] [--objectives infonce ...]
                             [--more sts15.tsv.gz sts16.tsv.gz]

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

from fastcse.bench.machine import machine
from fastcse.files import read_lines

# The setting of the SimCSE papers, shortened: 100 steps of 64 sentences.
TRAIN = (
    "--model minilm --pooling cls --batch-size 64 --max-steps 100 --lr 3e-5 --max-length 32 --temperature 0.05 "
    "--eval-steps 25"
)
OBJECTIVES = ["infonce", "focal", "hsimcse", "clusterns"]
BANK_TEXTS = 50_000
SETS = "sets"


def _json_of(target: Path, *arguments: str) -> dict:
    """What a command of `fastcse` prints with --json, kept in `target`."""
    if not target.exists() or not target.read_text().strip():
        command = [sys.executable, "-m", "fastcse.cli", *arguments, "--json"]
        target.write_text(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return json.loads(target.read_text())


def bank(corpus: Path, work: Path) -> Path:
    """What `--bank` reads: the bank that an earlier run encoded, else the texts of it."""
    made = sorted(work.glob("hsimcse*/bank-0"))
    if made:
        return made[0]
    texts = work / "bank.txt"
    if not texts.exists():
        texts.write_text("\n".join(read_lines(corpus, "--corpus")[:BANK_TEXTS]) + "\n", encoding="utf-8")
    return texts


def make_sets(sts_dir: Path, more: list[Path], work: Path) -> None:
    """The files that are scored, in one folder: STS-B dev and test, and each further set, whole and without the pairs
    that are in STS-B."""
    folder = work / SETS
    folder.mkdir(exist_ok=True)
    for name in ("stsb.dev", "stsb.test"):
        (folder / f"{name}.tsv").write_text("\n".join(read_lines(sts_dir / f"{name}.tsv.gz", "--sts-dir")) + "\n")
    for path in more:
        header, *rows = read_lines(path, "--more")
        where, name = header.split("\t").index("in_stsb"), path.name.partition(".")[0]
        apart = [row for row in rows if row.split("\t")[where] == "-"]
        for target, kept in ((name, rows), (f"{name}.apart", apart)):
            (folder / f"{target}.tsv").write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")


def run(objective: str, seed: int, corpus: Path, sts_dir: Path, work: Path) -> dict:
    """Trains and scores one seed of one objective."""
    name = f"{objective.replace(' --', '-').replace(' ', '-')}-{seed}"
    chosen, *more = objective.split()
    if chosen == "hsimcse":
        more += ["--bank", str(bank(corpus, work))]
    trained = _json_of(
        work / f"train-{name}.json", "train", "--objective", chosen, "--seed", str(seed), "--corpus", str(corpus),
        "--sts-dir", str(sts_dir), "--output-dir", str(work / name), *TRAIN.split(), *more,
    )  # fmt: skip
    scored = _json_of(work / f"scores-{name}.json", "eval", str(work / name), "--sts-dir", str(work / SETS))
    files = {file["name"].removesuffix(".tsv"): file for file in scored["files"]}
    dev, test = files.pop("stsb.dev"), files.pop("stsb.test")
    return {
        "objective": objective, "seed": seed, "backend": trained["backend"], "seconds": trained["seconds"],
        "best_step": trained["best_step"], "dev_before": trained["dev_before"], "dev_curve": trained["dev"],
        "dev": dev["spearman"], "test": test["spearman"], "alignment": test["alignment"],
        "uniformity": test["uniformity"], "more": {name: file["spearman"] for name, file in files.items()},
        "stats": trained.get("stats", {}), "cpu": machine("cpu")["cpu"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--sts-dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--objectives", nargs="*", default=OBJECTIVES)
    parser.add_argument("--more", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    make_sets(arguments.sts_dir, arguments.more, arguments.work)
    target = Path(__file__).parent / "results" / "sts.json"
    # Runs of other objectives stay in the file: quality, unlike time, is no matter of the machine.
    earlier = json.loads(target.read_text())["runs"] if target.exists() else []
    made = {(objective, seed) for objective in arguments.objectives for seed in arguments.seeds}
    runs = [one for one in earlier if (one["objective"], one["seed"]) not in made]
    for seed in arguments.seeds:
        for objective in arguments.objectives:
            runs.append(run(objective, seed, arguments.corpus, arguments.sts_dir, arguments.work))
    report = {
        "what": "STS-B Spearman x 100 after 100 steps of 64 Wikipedia sentences, MiniLM with CLS pooling; checkpoint "
        "chosen on dev; alignment and uniformity on test; mean ± standard deviation over seeds. The bank of hsimcse: "
        f"the first {BANK_TEXTS:,} sentences, never refreshed.",
        "command": f"fastcse train --corpus wiki500k.part00.txt.gz {TRAIN}",
        "machine": machine("cpu"),
        "runs": runs,
    }
    target.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
