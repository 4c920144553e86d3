"""FAISS's k-means, by name: all points, from given centroids."""

from __future__ import annotations

import torch
from torch import Tensor

from ..retrieval.faiss_index import import_faiss


def fit_faiss(points: Tensor, start: Tensor, metric: str, iterations: int) -> Tensor:
    """(K, D) centroids after `iterations` from `start`.

    Raises:
        ModuleNotFoundError: faiss is not installed; the message has the command that does.
    """
    faiss = import_faiss("k-means")
    k, d = start.shape
    rows = points.detach().cpu().float()
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows, dim=1)
    kmeans = faiss.Kmeans(
        d, k, niter=iterations, spherical=metric == "cosine", min_points_per_centroid=1,
        max_points_per_centroid=rows.shape[0],
    )  # fmt: skip
    kmeans.train(rows.contiguous().numpy(), init_centroids=start.cpu().float().contiguous().numpy())
    return torch.from_numpy(kmeans.centroids).reshape(k, d).to(start)
