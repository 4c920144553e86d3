"""Searches of other packages on the CPU: FAISS, and sentence-transformers on either device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peers.peer import need
from .own import ties_of_products
from .problem import TopkProblem
from .searcher import Answer, Search, Searcher

FAISS_CPU = "pip install faiss-cpu"


def _faiss(problem: TopkProblem, query: Tensor, corpus: Tensor) -> Search:
    need(not problem.device.startswith("cuda"), "runs on the CPU only")
    need(problem.dtype == "float32", f"computes float32 only, not {problem.dtype}")
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    unit = problem.metric == "cosine"
    index = faiss.IndexFlatL2(problem.d) if problem.metric == "l2" else faiss.IndexFlatIP(problem.d)
    index.add((F.normalize(corpus, dim=-1) if unit else corpus).contiguous().numpy())

    def run() -> Answer:
        q = F.normalize(query, dim=-1) if unit else query
        values, indices = index.search(q.contiguous().numpy(), problem.k)
        return torch.from_numpy(values), torch.from_numpy(indices)

    return run


class Listed(list):
    """The lists of sentence-transformers; turned into tensors where an answer is judged, not where it is timed."""

    def __iter__(self):
        values = torch.tensor([[hit["score"] for hit in hits] for hits in self[:]])
        indices = torch.tensor([[hit["corpus_id"] for hit in hits] for hits in self[:]])
        return iter((values, indices))


def _semantic_search(problem: TopkProblem, query: Tensor, corpus: Tensor, rows: int) -> Search:
    from sentence_transformers.util import cos_sim, dot_score, semantic_search

    score = cos_sim if problem.metric == "cosine" else dot_score
    return lambda: Listed(semantic_search(query, corpus, top_k=problem.k, score_function=score, query_chunk_size=rows))


SEARCHERS = (
    Searcher("FAISS flat", _faiss, modules=("faiss",), install=FAISS_CPU,
             note="index filled before: neither its copy of the corpus nor the time of it is counted"),
    Searcher(
        "sentence-transformers",
        _semantic_search,
        ("cosine", "ip"),
        ("sentence_transformers",),
        "pip install sentence-transformers",
        "semantic_search: mm, torch.topk, and a Python list of hits",
        choices=(100, 1000),
        ties=ties_of_products,
    ),
)  # fmt: skip
