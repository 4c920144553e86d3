"""What was measured: the files of benchmarks/results."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

LOSSES = ("infonce", "focal", "symmetric")
OBJECTIVES = ("hsimcse", "clusterns")


class Unreadable(Exception):
    """A result file that is not one; the text is one sentence."""


class Files(NamedTuple):
    """Everything found; None or empty where nobody measured it."""

    cpu: dict[str, dict]  # loss -> document of `fastcse bench loss`
    accuracy: dict | None
    sts: dict | None
    gpu: dict[str, dict]  # gpu/sm_90/loss -> document of `fastcse bench loss`
    roofline: list[dict[str, str]]
    topk: dict | None  # document of `fastcse bench topk`
    mining: dict | None  # document of `fastcse bench mining`
    retrieval: dict | None
    gpu_topk: dict[str, dict]  # gpu/sm_90/topk -> document of `fastcse bench topk`
    rows: dict | None  # document of `fastcse bench rows`
    gpu_rows: dict[str, dict]  # gpu/sm_90/rows -> document of `fastcse bench rows`
    kmeans: dict | None  # document of `fastcse bench kmeans`
    gpu_kmeans: dict[str, dict]  # gpu/sm_90/kmeans -> document of `fastcse bench kmeans`
    training: dict | None  # document of `fastcse bench train`
    loss_stage: dict | None  # document of `fastcse bench train --stage loss`
    gpu_training: dict[str, dict]  # gpu/sm_90/train -> both of these
    objectives: dict[str, dict]  # objective -> document of `python -m benchmarks.studies.objectives`


def read_files(folder: Path) -> Files:
    """All of benchmarks/results."""
    cpu = {loss: found for loss in LOSSES if (found := _bench(folder / f"loss_{loss}_cpu.json"))}
    gpu, gpu_topk, gpu_rows, gpu_kmeans, gpu_training = (
        {path.relative_to(folder).with_suffix("").as_posix(): _bench(path)
         for path in sorted(folder.glob(f"gpu/*/{stage}.json"))}
        for stage in ("loss", "topk", "rows", "kmeans", "train")
    )  # fmt: skip
    objectives = {name: found for name in OBJECTIVES if (found := _bench(folder / f"{name}_cpu.json"))}
    roofline = folder / "compiled_roofline.csv"
    lines = list(csv.DictReader(roofline.open(encoding="utf-8"))) if roofline.exists() else []
    return Files(
        cpu, _bench(folder / "accuracy_cpu.json"), _json(folder / "sts.json", ("runs",)), gpu, lines,
        _bench(folder / "topk_cpu.json"), _bench(folder / "mining_cpu.json"),
        _json(folder / "retrieval.json", ("command", "machine")), gpu_topk,
        _bench(folder / "rows_cpu.json"), gpu_rows, _bench(folder / "kmeans_cpu.json"), gpu_kmeans,
        _bench(folder / "train_cpu.json"), _bench(folder / "train_loss_cpu.json"), gpu_training, objectives,
    )  # fmt: skip


def _bench(path: Path) -> dict | None:
    return _json(path, ("command", "machine", "results"))


def _json(path: Path, keys: tuple[str, ...]) -> dict | None:
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Unreadable(f"{path} is not JSON ({error}): measure it again") from None
    if not isinstance(document, dict) or not set(keys) <= set(document):
        raise Unreadable(f"{path} is not a result file, it lacks {' or '.join(keys)}: measure it again")
    return document


def rows_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Provider -> row, of those that were measured, with numbers that were written as text (NaN) as numbers."""
    return {row["provider"]: {key: _number(key, value) for key, value in row.items()}
            for row in result["rows"] if row["status"] == "measured"}  # fmt: skip


def _number(key: str, value: Any) -> Any:
    return float(value) if isinstance(value, str) and key.endswith(("error", "ms", "mib", "products")) else value


def where(document: dict[str, Any]) -> str:
    """One sentence: machine, versions, commit, day and command."""
    facts = document["machine"]
    place = facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads, {facts['cpp']}"
    torch = facts["versions"]["torch"]
    return f"{place}; torch {torch}, commit {facts['commit']}, {facts['time'][:10]}; `{document['command']}`."


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Markdown; the first `left` columns are text."""
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))
