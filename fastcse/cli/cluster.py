"""`fastcse cluster`: k-means of the rows of an .npy file, into an .npy file of labels and one of centroids."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from ..clustering.kmeans import INITS, KMeans
from ..errors import InputError
from ..files import write_atomic
from ..ops.dispatch import check_backend, last_backend
from ..ops.kmeans_steps import METRICS
from ..options import build, check, option
from .console import Json, facts_table, show
from .options import command

SUFFIX = ".npy"
FLOATS = ("float16", "float32", "float64")
OUT = {"panel": "Where to", "metavar": "FILE.npy"}


@dataclass(frozen=True)
class ClusterOptions:
    """The options of a run; their meanings are those of `KMeans`.

    Raises:
        InputError: an option outside its range, named with its value.
    """

    vectors: str = option(
        help="(N, D) floats, one row a point. They stay on the disk.", argument=True, metavar="VECTORS.npy"
    )
    clusters: int = option(help="K, at most the number of points.", least=1)
    metric: str = option("euclidean", "How far a point is from a centroid.", choices=METRICS)
    init: str = option("k-means++", "Where to begin.", choices=INITS)
    max_iter: int = option(300, "Iterations at most.", least=1)
    tol: float = option(
        1e-4,
        "Stop when the centroids' summed squared move is at most this share of the columns' mean variance; 0: when no "
        "label changes.",
        least=0,
    )
    seed: int = option(0, "Of --init; the same seed gives the same bits.", least=0)
    backend: str | None = option(
        None, "triton, cpp, reference or faiss.", metavar="NAME", shown="the fastest that runs"
    )
    output_dir: str | None = option(None, "Write labels.npy and centroids.npy here.", metavar="DIR", panel="Where to")
    labels: str | None = option(None, "(N,) int64, the cluster of each point.", **OUT)
    centroids: str | None = option(None, "(K, D) float32.", **OUT)
    overwrite: bool = option(False, "Replace labels and centroids that exist.", panel="Where to")

    def __post_init__(self):
        check(self)
        if self.backend != "faiss":
            check_backend(self.backend)

    def files(self) -> dict[str, Path]:
        """What is written, by name, and where.

        Raises:
            InputError: neither a folder nor files, or both; an unknown ending; a file that would be lost.
        """
        named = {name: Path(file) for name in ("labels", "centroids") if (file := getattr(self, name)) is not None}
        if (self.output_dir is None) == (not named):
            got = "both" if named else "neither"
            raise InputError(f"expected --output-dir, or --labels and --centroids or one of them, got {got}")
        if self.output_dir is not None:
            named = {name: Path(self.output_dir, name + SUFFIX) for name in ("labels", "centroids")}
        for name, path in named.items():
            if path.suffix != SUFFIX:
                raise InputError(f"--{name} {str(path)!r} has an unknown ending: expected {SUFFIX}")
            if path.is_dir():
                raise InputError(f"--{name} {str(path)!r} is a folder: expected a file")
            if path.resolve() == Path(self.vectors).resolve():
                raise InputError(f"{name} would be written to {str(path)!r}, the file of VECTORS: it would be lost")
            if path.exists() and not self.overwrite:
                raise InputError(f"--{name} {str(path)!r} exists: add --overwrite to replace it")
        if len({path.resolve() for path in named.values()}) < len(named):
            raise InputError(f"--labels and --centroids are both {str(named['labels'])!r}: expected two files")
        return named


@command(ClusterOptions)
def cluster(given: dict[str, Any], as_json: Json = False) -> None:
    """Cluster the rows of an .npy file by k-means over all of them, also of a file larger than memory."""
    report = run_cluster(build(ClusterOptions, given))
    show(report, as_json, _facts(report))


def run_cluster(options: ClusterOptions) -> dict[str, Any]:
    """Cluster, write the files, and return the report, which is what `--json` prints.

    Raises:
        InputError: the file is not what it should be, it has fewer points than clusters, a point is not finite, or a
            result cannot be written.
    """
    files = options.files()
    points = open_vectors(options.vectors)
    if options.clusters > len(points):
        raise InputError(f"--clusters is {options.clusters}: VECTORS {options.vectors!r} has {len(points)} points")
    make_folders(files)
    chosen = {name: getattr(options, name) for name in ("metric", "init", "max_iter", "tol", "seed", "backend")}
    kmeans = KMeans(options.clusters, progress=True, **chosen)
    start = time.perf_counter()
    try:
        kmeans.fit(points)
    except ValueError as error:
        raise InputError(f"VECTORS {options.vectors!r}: {error}") from error
    seconds = time.perf_counter() - start
    centroids = kmeans.cluster_centers_.float().numpy()
    write_arrays(files, {"labels": kmeans.labels_.numpy(), "centroids": centroids})
    return {
        "vectors": options.vectors,
        "points": points.shape[0],
        "width": points.shape[1],
        "dtype": str(points.dtype),
        **{name: getattr(options, name) for name in ("clusters", "metric", "init", "seed")},
        "iterations": kmeans.n_iter_,
        "inertia": kmeans.inertia_,
        "sizes": _sizes(kmeans.labels_, options.clusters),
        "seconds": round(seconds, 2),
        "backend": "faiss" if options.backend == "faiss" else last_backend(),
        **{name: str(files[name]) if name in files else None for name in ("labels", "centroids")},
    }


def open_vectors(path: str) -> np.memmap:
    """The (N, D) rows of an .npy file, as a memory map.

    Raises:
        InputError: no such file, not an .npy file, or not a matrix of floats.
    """
    if Path(path).is_dir():
        raise InputError(f"VECTORS {path!r} is a folder: expected an .npy file")
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"VECTORS {path!r} does not exist: expected an .npy file") from None
    except OSError as error:
        raise InputError(f"VECTORS {path!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"VECTORS {path!r} is not an .npy file of numbers: {error}") from None
    if not isinstance(rows, np.ndarray):
        rows.close()
        raise InputError(f"VECTORS {path!r} is an archive (.npz): expected an .npy file")
    if rows.dtype.name not in FLOATS:
        raise InputError(f"VECTORS {path!r} holds {rows.dtype}: expected {', '.join(FLOATS)}")
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"VECTORS {path!r} has shape {rows.shape}: expected (N, D), one row a point")
    return rows


def make_folders(files: Mapping[str, Path]) -> None:
    """Make the folders of what will be written: minutes of work must not end at one that is not there."""
    for folder in {path.parent for path in files.values()}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the output folder {str(folder)!r} cannot be made: {error.strerror}") from None
        if not os.access(folder, os.W_OK):
            raise InputError(f"the output folder {str(folder)!r} cannot be written to")


def write_arrays(files: Mapping[str, Path], arrays: Mapping[str, np.ndarray]) -> None:
    """Each array to its file. All are on the disk before the first is renamed.

    Raises:
        InputError: the disk is full, or refuses.
    """
    (name, path), *others = files.items()

    def fill(file):
        np.save(file, arrays[name], allow_pickle=False)
        file.flush()
        if others:
            write_arrays(dict(others), arrays)

    try:
        write_atomic(path, fill)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from None


def _sizes(labels: torch.Tensor, clusters: int) -> dict[str, int | float]:
    sizes = torch.bincount(labels, minlength=clusters)
    median, empty = float(sizes.double().quantile(0.5)), int((sizes == 0).sum())
    return {"smallest": int(sizes.min()), "median": median, "largest": int(sizes.max()), "empty": empty}


def _facts(report: dict[str, Any]) -> Table:
    sizes = report["sizes"]
    written = [report[name] for name in ("labels", "centroids") if report[name] is not None]
    return facts_table(
        {
            "points": f"{report['points']:,} of width {report['width']:,}, {report['dtype']}",
            "clusters": f"{report['clusters']:,}",
            "metric": report["metric"],
            "iterations": f"{report['iterations']:,}",
            "inertia": f"{report['inertia']:.6g}",
            "sizes": f"smallest {sizes['smallest']:,}, median {sizes['median']:,g}, largest {sizes['largest']:,}, "
            f"{sizes['empty']:,} empty",
            "time": f"{report['seconds']:.1f} s",
            "backend": report["backend"],
            "written": ", ".join(written),
        }
    )
