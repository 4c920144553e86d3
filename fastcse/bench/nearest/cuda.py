"""Searches that run on CUDA only: FAISS's knn_gpu, FlashLib, cuVS."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peers.limits import need_cuda
from ..peers.linear import unit
from ..peers.peer import need
from .own import ties_of_products
from .problem import TopkProblem
from .searcher import Answer, Search, Searcher

FAISS_GPU = "pip install faiss-gpu-cuvs"


def _without_gpu() -> str | None:
    import faiss

    if hasattr(faiss, "StandardGpuResources"):
        return None
    return f"the installed faiss has no GPU part: {FAISS_GPU}"


def _knn_gpu(problem: TopkProblem, query: Tensor, corpus: Tensor) -> Search:
    need_cuda(problem)
    need(problem.dtype != "float16", "its float16 products are not its fast path: float32 or bfloat16")
    import faiss
    import faiss.contrib.torch_utils

    resources = faiss.StandardGpuResources()
    metric = faiss.METRIC_L2 if problem.metric == "l2" else faiss.METRIC_INNER_PRODUCT

    def run() -> Answer:
        q, c = (unit(x) for x in (query, corpus)) if problem.metric == "cosine" else (query, corpus)
        return faiss.knn_gpu(resources, q, c, problem.k, metric=metric)

    return run


def _flashlib(problem: TopkProblem, query: Tensor, corpus: Tensor) -> Search:
    need_cuda(problem)
    from flashlib import flash_knn

    def run() -> Answer:
        if problem.metric == "l2":
            return flash_knn(query, corpus, problem.k)
        distance, index = flash_knn(unit(query), unit(corpus), problem.k)
        return 1 - distance / 2, index  # of unit rows

    return run


def _cuvs(problem: TopkProblem, query: Tensor, corpus: Tensor) -> Search:
    need_cuda(problem)
    need(problem.dtype != "bfloat16", "computes float32 and float16 only, not bfloat16")
    from cuvs.neighbors import brute_force

    metric = {"cosine": "inner_product", "ip": "inner_product", "l2": "sqeuclidean"}[problem.metric]
    is_unit = problem.metric == "cosine"
    index = brute_force.build(F.normalize(corpus, dim=-1) if is_unit else corpus, metric=metric)

    def run() -> Answer:
        q = F.normalize(query, dim=-1) if is_unit else query
        values, indices = brute_force.search(index, q, problem.k)
        return torch.as_tensor(values, device=query.device), torch.as_tensor(indices, device=query.device)

    return run


SEARCHERS = (
    Searcher("FAISS knn_gpu", _knn_gpu, modules=("faiss",), install=FAISS_GPU, note="products in float32, 512 queries "
             "at a time; bfloat16 rows stay so", ties=ties_of_products, missing_part=_without_gpu),
    Searcher("FlashLib", _flashlib, ("cosine", "l2"), ("flashlib",), "pip install flashlib",
             "squared distances; of unit rows for the cosine", ties=ties_of_products),
    Searcher("cuVS", _cuvs, modules=("cuvs",), install="pip install cuvs-cu12 --extra-index-url https://pypi.nvidia.com",
             note="index built before", ties=ties_of_products),
)  # fmt: skip
