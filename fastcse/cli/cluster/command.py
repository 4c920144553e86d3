"""`fastcse cluster`, on the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..console import Json, one_sentence_errors, real_option, show, whole_option

OUT = {"rich_help_panel": "Where to", "metavar": "FILE.npy"}


@one_sentence_errors
def cluster(
    vectors: Annotated[str, typer.Argument(metavar="VECTORS.npy", help="(N, D) floats, one row a point. They stay on "
                                           "the disk.", show_default=False)],
    clusters: Annotated[int, whole_option("K, at most the number of points.", show_default=False)],
    metric: Annotated[str, typer.Option(metavar="euclidean|cosine", help="How far a point is from a centroid.")]
    = "euclidean",
    init: Annotated[str, typer.Option(metavar="k-means++|random", help="Where to begin.")] = "k-means++",
    max_iter: Annotated[int, whole_option("Iterations at most.")] = 300,
    tol: Annotated[float, real_option("Stop when the centroids' summed squared move is at most this share of the "
                                      "columns' mean variance; 0: when no label changes.")] = 1e-4,
    seed: Annotated[int, whole_option("Of --init; the same seed gives the same bits.")] = 0,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="triton, cpp, reference or faiss; by default the "
                                                "fastest that runs.")] = None,
    output_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Write labels.npy and centroids.npy here.",
                                                   rich_help_panel="Where to")] = None,
    labels: Annotated[str | None, typer.Option(help="(N,) int64, the cluster of each point.", **OUT)] = None,
    centroids: Annotated[str | None, typer.Option(help="(K, D) float32.", **OUT)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace labels and centroids that exist.",
                                            rich_help_panel="Where to")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Cluster the rows of an .npy file by k-means over all of them, also of a file larger than memory."""
    from .job import ClusterOptions, run_cluster

    report = run_cluster(
        ClusterOptions(
            vectors, clusters, metric, init, max_iter, tol, seed, backend, output_dir, labels, centroids, overwrite
        )
    )
    show(report, as_json, _facts(report))


def _facts(report: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    sizes = report["sizes"]
    table.add_row("points", f"{report['points']:,} of width {report['width']:,}, {report['dtype']}")
    table.add_row("clusters", f"{report['clusters']:,}")
    table.add_row("metric", report["metric"])
    table.add_row("iterations", f"{report['iterations']:,}")
    table.add_row("inertia", f"{report['inertia']:.6g}")
    table.add_row("sizes", f"smallest {sizes['smallest']:,}, median {sizes['median']:,g}, largest "
                           f"{sizes['largest']:,}, {sizes['empty']:,} empty")  # fmt: skip
    table.add_row("time", f"{report['seconds']:.1f} s")
    table.add_row("backend", report["backend"])
    written = [report[name] for name in ("labels", "centroids") if report[name] is not None]
    table.add_row("written", escape(", ".join(written)))
    return table
