"""What whole objectives cost beside InfoNCE, from what `python -m benchmarks.studies.objectives` wrote."""

from __future__ import annotations

from typing import Any

from .files import table, where
from .gpu import NOT_MEASURED, Target, worst_of

LARGE = 4096


def _times(part: str) -> Any:
    def read(result: dict) -> float | str:
        return next((row["to_infonce"] for row in result["rows"] if row["part"] == part), NOT_MEASURED)

    return read


def _large(result: dict) -> bool:
    return result["n"] >= LARGE


# Objective -> what is wanted of it.
TARGETS = {
    "hsimcse": Target("hsimcse, its positive given", "<=", 1.15, "x", _large, _times("hinge alone")),
    "clusterns": Target("clusterns, whole", "<=", 1.25, "x", _large, _times("whole")),
}


def objective_target_table(found: dict[str, dict]) -> str:
    """Time over that of InfoNCE, of each objective."""
    rows = [[target.what, target.text, worst_of(target, found.get(name, {}).get("results", []))]
            for name, target in TARGETS.items()]  # fmt: skip
    return table([f"target, CPU, N >= {LARGE}: time / infonce", "wanted", "measured"], rows)


def objective_table(document: dict[str, Any] | None, name: str) -> str:
    """Every part of one objective at every size."""
    if document is None:
        return f"{name}: not measured (`make objectives`)."
    rows = []
    for result in document["results"]:
        for row in result["rows"]:
            error = row.get("gradient_error")
            rows.append([row["part"], *(str(result[key]) for key in ("n", "d")), _third(result), f"{row['ms']:.4g}",
                         f"{row['ms_20']:.4g} - {row['ms_80']:.4g}", f"{row['to_infonce']:.2f}",
                         "" if error is None else f"{error:.1e}"])  # fmt: skip
    head = [f"{name}, part", "N", "D", "of", "ms", "20% - 80%", "/ infonce", "gradient error"]
    return f"{where(document)}\n\n{table(head, rows)}"


def _third(result: dict[str, Any]) -> str:
    return f"{result['bank']} texts" if "bank" in result else f"{result['clusters']} clusters"
