"""The kinds of index that FAISS searches: flat (exact), inverted lists, and a graph."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ..ops.topk_search import TopK
from ..reference import unit_rows
from .arrays import PIECE_BYTES, RowIds, pieces
from .exact import Search, is_excluded, merge_best

INSTALL = "pip install 'fastcse[mining]' (with a GPU: 'fastcse[mining-gpu]')"
# FAISS trains centroids on at most 256 rows each and warns below 39.
MOST_PER_LIST, LEAST_PER_LIST = 256, 39
# FAISS on a GPU returns no more than this many rows for a query; what needs more is searched on the CPU.
GPU_MOST = 2048


def import_faiss(kind: str) -> ModuleType:
    """The faiss module, or a ModuleNotFoundError with the command that installs it."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"kind {kind!r} needs faiss, which is not installed: {INSTALL}", name="faiss"
        ) from None
    return faiss


def has_gpu(faiss: ModuleType) -> bool:
    """Whether this faiss can use a GPU here."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _prepared(rows: Tensor, metric: str) -> np.ndarray:
    """(M, D) float32 on the CPU as FAISS is given them: unit rows for the cosine."""
    if metric == "cosine":
        rows = unit_rows(rows.double())  # squares of float32 overflow and vanish
    return np.ascontiguousarray(rows.to("cpu", torch.float32).numpy())


class FaissIndex:
    """An index of FAISS over M rows, which it holds as float32 beside those of the caller.

    `options` are those of the kind, with what was left out filled in: `nlist` (four times the root of M, with 39 rows
    each), `nprobe` (a sixteenth of the lists, at least 8); `M` (32), `efConstruction` (200), `efSearch` (64).
    Rows of lists that are not probed, and rows that a graph does not reach, are never found, whatever k is.
    """

    def __init__(self, kind: str, metric: str, rows: Tensor, options: dict, path: Path | None = None):
        self.kind, self.metric = kind, metric
        self._faiss = import_faiss(kind)
        self._use_gpu = self._choose_gpu(options.get("gpu"))
        self.options = self._filled(dict(options), rows.shape[0])
        if path is None:
            self._index = self._new(rows.shape[1])
            self._add(rows)
        else:
            self._index = self._read(path, rows)
        self._on_gpu = None
        if kind == "ivf":
            self._index.nprobe = self.options["nprobe"]
        elif kind == "hnsw":
            self._index.hnsw.efSearch = self.options["efSearch"]

    def _choose_gpu(self, wanted: bool | None) -> bool:
        found = has_gpu(self._faiss)
        if wanted and not found:
            raise RuntimeError(
                f"gpu=True needs a GPU and a faiss built for it, and this faiss {self._faiss.__version__} sees none: "
                "pip install 'fastcse[mining-gpu]', or leave gpu out"
            )
        return found if wanted is None else wanted

    def _filled(self, options: dict, count: int) -> dict:
        if self.kind == "ivf":
            usual = max(1, min(int(4 * count**0.5), count // LEAST_PER_LIST))
            nlist = options.setdefault("nlist", usual)
            if nlist > count:
                raise ValueError(f"nlist must be at most the {count} rows, got {nlist}")
            if options.setdefault("nprobe", min(nlist, max(8, nlist // 16))) > nlist:
                raise ValueError(f"nprobe must be at most nlist, {nlist}, got {options['nprobe']}")
        elif self.kind == "hnsw":
            for name, value in {"M": 32, "efConstruction": 200, "efSearch": 64}.items():
                options.setdefault(name, value)
        return options

    def _new(self, d: int):
        faiss, options = self._faiss, self.options
        measure = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        if self.kind == "flat":
            return faiss.IndexFlat(d, measure)
        if self.kind == "ivf":
            index = faiss.IndexIVFFlat(faiss.IndexFlat(d, measure), d, options["nlist"], measure)
            index.cp.min_points_per_centroid = 1  # how few are too few is for the caller, not for a line on stderr
            index.cp.spherical = self.metric != "l2"
            return index
        index = faiss.IndexHNSWFlat(d, options["M"], measure)
        index.hnsw.efConstruction = options["efConstruction"]
        return index

    def _add(self, rows: Tensor) -> None:
        if not self._index.is_trained:
            # Rows at even distances, so that no more of a memory map than these is read.
            some = min(rows.shape[0], MOST_PER_LIST * self.options["nlist"])
            chosen = torch.arange(some, device=rows.device) * rows.shape[0] // some
            self._index.train(_prepared(rows[chosen], self.metric))
        for _, piece in pieces(rows, PIECE_BYTES):
            self._index.add(_prepared(piece, self.metric))

    def _read(self, path: Path, rows: Tensor):
        try:
            index = self._faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is not an index that faiss {self._faiss.__version__} reads: {error}") from None
        if (index.ntotal, index.d) != tuple(rows.shape):
            raise ValueError(f"{path} holds {index.ntotal} x {index.d} rows, but rows.npy {tuple(rows.shape)}")
        return index

    def write(self, path: Path) -> None:
        """Write FAISS's index to a file."""
        self._faiss.write_index(self._index, str(path))

    def check_replaceable(self) -> None:
        """A ValueError if rows of this kind cannot be replaced."""
        if self.kind == "hnsw":
            raise ValueError(
                "update cannot replace rows of kind 'hnsw', whose graph is built from them: use kind 'flat' or 'ivf', "
                "or refresh(model)"
            )

    def replace(self, place: Tensor, rows: Tensor) -> None:
        """Put rows in the place of those with these numbers. An inverted list keeps its centroid."""
        new, place = _prepared(rows, self.metric), place.cpu().numpy()
        if self.kind == "flat":
            held = self._faiss.rev_swig_ptr(self._index.get_xb(), self._index.ntotal * self._index.d)
            held.reshape(self._index.ntotal, self._index.d)[place] = new
        else:
            if self._index.direct_map.type != self._faiss.DirectMap.Array:
                self._index.set_direct_map_type(self._faiss.DirectMap.Array)
            self._index.update_vectors(place, new)
        self._on_gpu = None

    def search(self, search: Search, ids: RowIds) -> TopK:
        """The k best rows by id; k grows until enough pass the bounds and exclusions, or all were fetched."""
        n, count = search.query.shape[0], self._index.ntotal
        query, numbers = _prepared(search.query, self.metric), ids.values.cpu()
        search = search.to(torch.device("cpu"))
        worst = torch.inf if self.metric == "l2" else -torch.inf
        values = torch.full((n, search.k), worst, dtype=torch.float32, device="cpu")
        found = torch.full((n, search.k), -1, device="cpu")
        # FAISS has no rule for a query that is not finite; it finds nothing.
        pending = torch.isfinite(search.query).all(1).nonzero()[:, 0]
        excluded = 0 if search.exclude is None or n == 0 else int((search.exclude >= 0).sum(1).max())
        fetch = min(search.k + min(excluded, search.k), count)
        while pending.numel():
            part = search.part(pending)
            value, place = self._nearest(query[pending.numpy()], fetch)
            left = self._allowed(torch.where(place < 0, -1, numbers[place]), value, part)
            values[pending], found[pending] = merge_best(value, left, search.k, self.metric)
            # There can be more only where FAISS filled k and the last is not past the far bound.
            more = ((left >= 0).sum(1) < search.k) & (place[:, -1] >= 0) & ~_past(value[:, -1], part, self.metric)
            pending = pending[more] if fetch < count else pending[:0]
            fetch = min(4 * fetch, count)
        return TopK(values, found)

    def _nearest(self, query: np.ndarray, fetch: int) -> tuple[Tensor, Tensor]:
        gpu = self._use_gpu and self.kind != "hnsw" and fetch <= GPU_MOST
        value, place = (self._gpu_index() if gpu else self._index).search(query, fetch)
        return torch.from_numpy(value), torch.from_numpy(place)

    def _gpu_index(self):
        if self._on_gpu is None:
            if self.kind == "ivf":  # the map from a row to its list serves replacing, on the CPU only
                self._index.set_direct_map_type(self._faiss.DirectMap.NoMap)
            self._resources = self._faiss.StandardGpuResources()
            self._on_gpu = self._faiss.index_cpu_to_gpu(self._resources, 0, self._index)
        return self._on_gpu

    @staticmethod
    def _allowed(ids: Tensor, value: Tensor, search: Search) -> Tensor:
        """The ids, -1 where one is excluded or out of bounds."""
        if search.exclude is not None and search.exclude.shape[1]:
            ids = ids.masked_fill(is_excluded(ids, search.exclude), -1)
        if search.min_score is not None:
            ids = ids.masked_fill(value < _column(search.min_score), -1)
        if search.max_score is not None:
            ids = ids.masked_fill(value > _column(search.max_score), -1)
        return ids


def _column(bound: float | Tensor) -> float | Tensor:
    return bound[:, None] if isinstance(bound, Tensor) else bound


def _past(last: Tensor, search: Search, metric: str) -> Tensor:
    """(N,) whether all values after the last are out of bounds."""
    bound = search.max_score if metric == "l2" else search.min_score
    if bound is None:
        return torch.zeros_like(last, dtype=torch.bool)
    return last > bound if metric == "l2" else last < bound
