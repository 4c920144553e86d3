"""What mined hard negatives are worth: SciFact after training with and without them, and Vaswani as a mining stress.

    python -m benchmarks.retrieval --data FOLDER [--part scifact] [--seeds 1 2 3] [--methods mined] [--threads 2]

FOLDER holds `scifact` and `vaswani`. Whatever lies in --work with the same settings is not made again, so that an
interrupted study continues, and two processes may share the folder. Writes benchmarks/results/retrieval.json after each
run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from fastcse.bench.machine import machine
from fastcse.bench.output import write_json
from fastcse.evaluation.encoding import encode_distinct
from fastcse.training.encoders import load_encoder

from . import scifact, vaswani
from .collection import read_scifact, read_vaswani
from .kept import kept_json, kept_rows, read_kept

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "retrieval.json"
COMMAND = "python -m benchmarks.retrieval --data FOLDER"


def run_scifact(data: Path, work: Path, result: Path, methods: list[str], seeds: list[int]) -> None:
    """The untrained model, then every method with every seed."""
    train, test = (read_scifact(data / "scifact", split) for split in ("train", "test"))
    settings, model_settings = scifact.SETTINGS, {name: scifact.SETTINGS[name] for name in ("model", "score_tokens")}
    kept_json(work / "scifact-before.json", model_settings,
              lambda: scifact.before(load_encoder(settings["model"]), test))  # fmt: skip
    rows = kept_rows(work / "scifact-rows.pt", scifact.MINING_ROWS,
                     lambda: scifact.mining_rows(load_encoder(scifact.MINING_ROWS["model"]), train))  # fmt: skip
    gather(work, result)
    for seed in seeds:
        for method in methods:
            kept_json(
                work / f"scifact-{method}-{seed}.json", settings,
                lambda: scifact.run(load_encoder(settings["model"]), method, seed, train, test, rows),  # noqa: B023
            )  # fmt: skip
            gather(work, result)


def run_vaswani(data: Path, work: Path, result: Path) -> None:
    """Encode once, mine with every filter."""
    found, settings = read_vaswani(data / "vaswani"), vaswani.SETTINGS

    def encoded() -> dict[str, torch.Tensor]:
        model = load_encoder(settings["model"])
        model.max_seq_length = settings["tokens"]
        texts = {"query": list(found.queries.values()), "corpus": list(found.corpus.values())}
        with tqdm(total=sum(len(set(x)) for x in texts.values()), desc="vaswani", dynamic_ncols=True) as progress:
            return {name: encode_distinct(model, x, progress=progress) for name, x in texts.items()}

    rows = kept_rows(work / "vaswani-rows.pt", {name: settings[name] for name in ("model", "tokens")}, encoded)

    def stress() -> dict[str, Any]:
        start = time.perf_counter()
        table = vaswani.stress(found, rows)
        return {"rows": table, "seconds": round(time.perf_counter() - start, 1)}

    kept_json(work / "vaswani.json", {**settings, "filters": [f.text for f in vaswani.FILTERS]}, stress)
    gather(work, result)


def gather(work: Path, result: Path) -> None:
    """All that lies in the folder, as one document."""
    report: dict[str, Any] = {"command": COMMAND, "machine": machine("cpu")}
    before = read_kept(work / "scifact-before.json")
    runs = [found for path in sorted(work.glob("scifact-*-*.json"))
            if (found := read_kept(path))["settings"] == json.loads(json.dumps(scifact.SETTINGS))]  # fmt: skip
    if before is not None:
        report["scifact"] = {
            "what": "SciFact, 300 test claims: nDCG@10 and recall@100 of all-MiniLM-L6-v2 before and after one epoch "
            "of InfoNCE on the 919 pairs of the training claims",
            "settings": {**scifact.SETTINGS, "mining_rows": scifact.MINING_ROWS},
            "before": {k: v for k, v in before.items() if k != "settings"},
            "runs": [{k: v for k, v in run.items() if k != "settings"} for run in runs],
        }  # fmt: skip
    if (stress := read_kept(work / "vaswani.json")) is not None:
        report["vaswani"] = {
            "what": "Vaswani, 93 queries with 22 relevant documents each, of which the miner knows one: how many mined "
            "negatives are relevant by the judgements",
            **stress,
        }  # fmt: skip
    write_json(result, report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of scifact and vaswani")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "retrieval", help="what was done already")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--part", nargs="+", choices=("scifact", "vaswani"), default=["scifact", "vaswani"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=scifact.METHODS, default=list(scifact.METHODS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if "vaswani" in a.part:
        run_vaswani(a.data, a.work, a.output)
    if "scifact" in a.part:
        run_scifact(a.data, a.work, a.output, a.methods, a.seeds)


if __name__ == "__main__":
    main()
