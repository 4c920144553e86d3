"""K-means: what is wanted of it, and tables from documents of `fastcse bench kmeans`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .files import rows_of, table, where
from .gpu import DTYPE, NOT_MEASURED, Target, ours, times_ours, worst_of
from .loss import left_out

# Of fewer points and centroids, what is done once per call counts.
LARGE, CLUSTERS = 100_000, 1024
TIMES_SCIKIT_LEARN, MOST_MIB, TFLOPS = 3, 64, 500
GPU_PEERS = ("flash-kmeans", "FlashLib", "torch chunked")


def _at(what: str, *widths: int) -> Callable[[dict], bool]:
    """Large problems of a part of k-means, of these widths or of all."""

    def pick(result: dict) -> bool:
        large = result["n"] >= LARGE and result["m"] >= CLUSTERS and result["metric"] == "euclidean"
        return result["what"] == what and large and (not widths or result["d"] in widths)

    return pick


def _cpu_targets() -> Iterator[Target]:
    iteration = _at("iteration")
    yield Target("iteration: time of FAISS / fastcse", ">=", 1, "x", iteration, times_ours("FAISS"))
    yield Target("iteration: time of scikit-learn / fastcse", ">=", TIMES_SCIKIT_LEARN, "x", iteration,
                 times_ours("scikit-learn"))  # fmt: skip
    yield Target("iteration: MiB beyond points, labels and centroids", "<=", MOST_MIB, "MiB", iteration,
                 ours("extra_mib"))  # fmt: skip


def _gpu_targets() -> Iterator[Target]:
    yield Target("assignment, D = 768: TFLOP/s", ">=", TFLOPS, "", _at("assignment", 768), ours("tflops"))
    for peer in GPU_PEERS:
        for what in ("assignment", "iteration"):
            yield Target(f"{what}: time of {peer} / fastcse", ">=", 1, "x", _at(what), times_ours(peer))


CPU_TARGETS, GPU_TARGETS = tuple(_cpu_targets()), tuple(_gpu_targets())


def kmeans_target_table(cpu: dict[str, Any] | None, gpu: dict[str, dict]) -> str:
    """Every target with what was reached: float32 on the CPU, bfloat16 on each GPU."""
    rows = [[f"CPU, float32, {target.what}", target.text, _on(cpu, "cpu", "float32", target)]
            for target in CPU_TARGETS]  # fmt: skip
    for target in GPU_TARGETS:
        found = [f"{_on(document, 'cuda', DTYPE, target)}, {document['machine'].get('gpu', path)}"
                 for path, document in gpu.items()]  # fmt: skip
        rows.append([f"GPU, {DTYPE}, {target.what}", target.text, "; ".join(found) or NOT_MEASURED])
    return table([f"target, euclidean, N >= {LARGE}, K >= {CLUSTERS}", "wanted", "measured"], rows)


def _on(document: dict[str, Any] | None, device: str, dtype: str, target: Target) -> str:
    """What the target says of a file's results on one kind of device."""
    results = [] if document is None else document["results"]
    return worst_of(target, [r for r in results if r["device"].startswith(device) and r["dtype"] == dtype])


def kmeans_table(document: dict[str, Any] | None, what: str, command: str) -> str:
    """Every provider of one file, a table for what shares all but its sizes; and who was left out and why."""
    if document is None:
        return f"{what}: not measured (`{command}`)."
    groups: dict[str, list[dict]] = {}
    for result in document["results"]:
        groups.setdefault(_setting(result), []).append(result)
    parts = [part for setting, results in groups.items() for part in (setting, _table(results))]
    return "\n\n".join([where(document), *parts, *left_out(document)])


def _setting(result: dict[str, Any]) -> str:
    times = f", {result['iterations']} iterations and the labels after them" if result["what"] == "iteration" else ""
    kept = ", ".join(result[key] for key in ("metric", "dtype", "device"))
    return f"{result['what']}{times}, {kept}, {result['data']} rows:"


def _table(results: list[dict]) -> str:
    head = ["provider", "N", "K", "D", "ms", "20% - 80%", "/ bare products", "TFLOP/s",
            "MiB beyond in- and outputs", "inertia error", "same labels"]  # fmt: skip
    rows = []
    for result in results:
        for name, row in rows_of(result).items():
            memory = "-" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"
            inertia = "" if row["inertia_error"] is None else f"{row['inertia_error']:+.1e}"
            same = "" if row["same_labels"] is None else f"{row['same_labels']:.5f}"
            rows.append([name if row["choice"] is None else f"{name} ({row['choice']})",
                         *(str(result[key]) for key in ("n", "m", "d")), f"{row['ms']:.4g}",
                         f"{row['ms_20']:.4g} - {row['ms_80']:.4g}", f"{row['to_products']:.2f}",
                         f"{row['tflops']:.3g}", memory, inertia, same])  # fmt: skip
    return table(head, rows)
