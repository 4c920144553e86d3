"""Who finds nearest rows: fastcse, torch by hand, FAISS, sentence-transformers; on CUDA FlashLib and cuVS too."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.topk_search import topk
from .provider import Provider, named, need, need_cuda, need_numpy, unit
from .topk_search import Answer, TopkCase

Search = Callable[[], Answer]
FAISS_GPU = "pip install faiss-gpu-cuvs"


def _fastcse(case: TopkCase, query: Tensor, corpus: Tensor) -> Search:
    return lambda: topk(query, corpus, case.k, metric=case.metric, backend=case.backend)


def _by_hand(case: TopkCase, query: Tensor, corpus: Tensor, rows: int) -> Search:
    """Some queries at a time against the whole corpus."""

    def run() -> Answer:
        q, c = _unit(case, query, corpus)
        lengths = c.float().square().sum(-1) if case.metric == "l2" else None
        parts = [_piece(piece, c, lengths, case.k) for piece in q.split(rows)]
        return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])

    return run


def _unit(case: TopkCase, *rows: Tensor) -> tuple[Tensor, ...]:
    """Rows whose products are the scores."""
    return tuple(map(unit, rows)) if case.metric == "cosine" else rows


def _piece(query: Tensor, corpus: Tensor, lengths: Tensor | None, k: int) -> Answer:
    s = query @ corpus.T
    if lengths is None:
        return s.topk(k, 1)
    distance = (s.float().mul_(-2).add_(lengths)).add_(query.float().square().sum(-1)[:, None])
    return distance.topk(k, 1, largest=False)


def _faiss(case: TopkCase, query: Tensor, corpus: Tensor) -> Search:
    need_numpy(case)
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(case.d) if case.metric == "l2" else faiss.IndexFlatIP(case.d)
    index.add(_unit(case, corpus)[0].contiguous().numpy())

    def run() -> Answer:
        values, indices = index.search(_unit(case, query)[0].contiguous().numpy(), case.k)
        return torch.from_numpy(values), torch.from_numpy(indices)

    return run


class Listed(list):
    """The lists of sentence-transformers; turned into tensors where an answer is scored, not where it is timed."""

    def __iter__(self):
        values = torch.tensor([[hit["score"] for hit in hits] for hits in self[:]])
        indices = torch.tensor([[hit["corpus_id"] for hit in hits] for hits in self[:]])
        return iter((values, indices))


def _semantic_search(case: TopkCase, query: Tensor, corpus: Tensor, rows: int) -> Search:
    from sentence_transformers.util import cos_sim, dot_score, semantic_search

    score = cos_sim if case.metric == "cosine" else dot_score
    return lambda: Listed(semantic_search(query, corpus, top_k=case.k, score_function=score, query_chunk_size=rows))


def _faiss_without_gpu() -> str | None:
    import faiss

    has_gpu = hasattr(faiss, "StandardGpuResources")
    return None if has_gpu else f"the installed faiss has no GPU part: {FAISS_GPU}"


def _knn_gpu(case: TopkCase, query: Tensor, corpus: Tensor) -> Search:
    need_cuda(case)
    need(case.dtype != "float16", "its float16 products are not its fast path: float32 or bfloat16")
    import faiss
    import faiss.contrib.torch_utils

    resources = faiss.StandardGpuResources()
    metric = faiss.METRIC_L2 if case.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    return lambda: faiss.knn_gpu(resources, *_unit(case, query, corpus), case.k, metric=metric)


def _flashlib(case: TopkCase, query: Tensor, corpus: Tensor) -> Search:
    need_cuda(case)
    from flashlib import flash_knn

    def run() -> Answer:
        if case.metric == "l2":
            return flash_knn(query, corpus, case.k)
        distance, index = flash_knn(unit(query), unit(corpus), case.k)
        return 1 - distance / 2, index  # of unit rows

    return run


def _cuvs(case: TopkCase, query: Tensor, corpus: Tensor) -> Search:
    need_cuda(case)
    need(case.dtype != "bfloat16", "computes float32 and float16 only, not bfloat16")
    from cuvs.neighbors import brute_force

    metric = "sqeuclidean" if case.metric == "l2" else "inner_product"
    is_unit = case.metric == "cosine"
    index = brute_force.build(F.normalize(corpus, dim=-1) if is_unit else corpus, metric=metric)

    def run() -> Answer:
        q = F.normalize(query, dim=-1) if is_unit else query
        values, indices = brute_force.search(index, q, case.k)
        return torch.as_tensor(values, device=query.device), torch.as_tensor(indices, device=query.device)

    return run


PROVIDERS = named(
    Provider("fastcse", _fastcse),
    Provider("torch chunked", _by_hand, configs=(256, 1024, 4096), rounded=True,
             note="mm, then torch.topk, some queries at a time; products in the rows' own type"),
    Provider("FAISS flat", _faiss, modules=("faiss",), install="pip install faiss-cpu",
             note="index filled before: neither its copy of the corpus nor the time of it is counted"),
    Provider("sentence-transformers", _semantic_search, ("cosine", "ip"), ("sentence_transformers",),
             "pip install sentence-transformers", "semantic_search: mm, torch.topk, and a Python list of hits",
             configs=(100, 1000), rounded=True),
    Provider("FAISS knn_gpu", _knn_gpu, modules=("faiss",), install=FAISS_GPU, lacks=_faiss_without_gpu, rounded=True,
             note="products in float32, 512 queries at a time; bfloat16 rows stay so"),
    Provider("FlashLib", _flashlib, ("cosine", "l2"), ("flashlib",), "pip install flashlib",
             "squared distances; of unit rows for the cosine", rounded=True),
    Provider("cuVS", _cuvs, modules=("cuvs",), note="index built before", rounded=True,
             install="pip install cuvs-cu12 --extra-index-url https://pypi.nvidia.com"),
)  # fmt: skip
