"""A corpus that is kept: searched, written through, encoded anew, saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encoding import check_texts, encode_texts
from ..files import read_lines, refuse_tables
from ..ops.topk_search import TopK
from ..reference import unit_rows
from . import storage
from .arguments import check_settings, make_search
from .arrays import RowIds, as_rows, check_finite
from .exact import BLOCK_BYTES, search_blocks
from .faiss_index import FaissIndex


class CorpusIndex:
    r"""A corpus of embeddings for nearest-row search: exact by default, through FAISS on request.

    Args:
        rows:    (M, D) float16 | bfloat16 | float32 | float64 tensor, array or `np.memmap`. Held, not copied: `update`
                 writes into it, and a memory map larger than memory is read a block at a time.
        ids:     (M,) unique whole numbers from 0, by which rows are named; None: 0..M-1.
        metric:  "cosine" | "ip" | "l2", as in `topk`.
        kind:    "exact": `topk`, on any device. "flat": FAISS, exact in float32. "ivf", "hnsw": FAISS, approximate.
                 Those of FAISS hold a float32 copy in memory; "flat" and "ivf" use a GPU where faiss sees one.
        dtype:   convert the rows to this type, which copies them; None keeps theirs.
        backend: of "exact" only: "triton" | "cpp" | "reference"; None chooses by device and dtype.
        texts:   M strings, what `refresh` encodes.
        check:   look for NaN and infinity, in one pass over the rows. FAISS has no rule for them: its kinds always do.
        options: "exact": block_bytes (1 GiB), rows looked at in one go. "ivf": nlist (4 sqrt(M)), nprobe (nlist / 16,
                 at least 8). "hnsw": M (32), efConstruction (200), efSearch (64). "flat" and "ivf": gpu (True, False,
                 or None: if there is one).

    Raises:
        ValueError: rows are empty or not finite, ids of the wrong length or twice, an unknown metric, kind or option.
        ModuleNotFoundError: a kind of FAISS without faiss, with the command that installs it.

    Example:
        >>> index = CorpusIndex(torch.eye(3), ids=[10, 20, 30])
        >>> index
        CorpusIndex(3 x 3, float32, metric='cosine', kind='exact', device='cpu')
        >>> index.search(torch.tensor([[2.0, 1.0, 0.0]]), 2, exclude_id=torch.tensor([10])).indices
        tensor([[20, 30]])
    """

    def __init__(
        self,
        rows: Tensor | np.ndarray,
        *,
        ids: Tensor | np.ndarray | Sequence[int] | None = None,
        metric: str = "cosine",
        kind: str = "exact",
        dtype: torch.dtype | None = None,
        backend: str | None = None,
        texts: Sequence[str] | None = None,
        check: bool = True,
        _stored: tuple[Path | None, bool, dict] | None = None,
        **options: Any,
    ):
        check_settings(metric, kind, dtype, backend, options)
        self._rows, self._writable = as_rows("rows", rows, dtype)
        self._ids = RowIds(ids, len(self), self.device)
        self._check = check or kind != "exact"
        if self._check and _stored is None:
            check_finite("rows", self._rows, self.ids)
        self.metric, self.kind, self.backend = metric, kind, backend
        self.texts = None if texts is None else check_texts("texts", texts, len(self))
        # Of a saved index: where FAISS's is, whether the rows may be written to, how texts were encoded.
        path, self._writable, self._encoding = _stored or (None, self._writable, {})
        self._given = options
        self._faiss = None if kind == "exact" else FaissIndex(kind, metric, self._rows, options, path)

    @classmethod
    def from_texts(
        cls,
        model: Any,
        texts_or_path: str | Path | Sequence[str],
        *,
        batch_size: int = 64,
        prompt_name: str | None = None,
        prompt: str | None = None,
        progress: bool = True,
        **options: Any,
    ) -> CorpusIndex:
        """An index of texts, which it keeps for `refresh`.

        Args:
            model:         a SentenceTransformer, or anything with `encode(texts)`.
            texts_or_path: a list of texts, or a text file (`.gz` too) with one a line. Then the id of a text is the
                           number of its line from 0, and blank lines are passed over.
            prompt_name, prompt: as in sentence-transformers; kept for `refresh`.
            options:       of `CorpusIndex`; `dtype` is the type that rows are kept in.
        """
        usual = {"ids": None, "check": True, "dtype": None, "metric": "cosine", "kind": "exact", "backend": None}
        ids, check, dtype, metric, kind, backend = (options.pop(name, default) for name, default in usual.items())
        # Encoding may last hours: the other arguments are checked before.
        check_settings(metric, kind, dtype, backend, options)
        texts, numbers = _read_texts(texts_or_path)
        ids = RowIds(numbers if ids is None else ids, len(texts), torch.device("cpu")).values
        encoding = {"batch_size": batch_size, "prompt_name": prompt_name, "prompt": prompt}
        rows = encode_texts(model, texts, **encoding, dtype=dtype, check=check, progress=progress)
        index = cls(rows, ids=ids, metric=metric, kind=kind, backend=backend, texts=texts, check=check, **options)
        index._encoding = encoding
        return index

    def refresh(self, model: Any, *, progress: bool = True) -> None:
        """Encode all texts anew, as `from_texts` did; the rows are exchanged when all are there.

        Raises:
            ValueError: the index has no texts, or the model gives rows of another length or that are not finite.
        """
        if self.texts is None:
            raise ValueError("refresh needs the texts, and this index has none: build it by from_texts or with texts=")
        options = {"dtype": self.dtype, "device": self.device, "check": self._check, "progress": progress}
        rows = encode_texts(model, self.texts, **self._encoding, **options)
        if rows.shape[1] != self.dim:
            raise ValueError(f"refresh needs a model with rows of length {self.dim}, got {rows.shape[1]}")
        if self._faiss is not None:
            self._faiss = FaissIndex(self.kind, self.metric, rows, self._given)
        self._rows, self._writable = rows, True

    @torch.no_grad()
    def search(
        self,
        query: Tensor | np.ndarray,
        k: int,
        *,
        exclude_id: Tensor | None = None,
        max_score: float | Tensor | None = None,
        min_score: float | Tensor | None = None,
    ) -> TopK:
        """The k best rows for each query, named by id.

        Args:
            query:      (N, D) in any of the types, on any device; blocks of rows on the CPU are moved to it.
            k:          1 <= k <= M; kinds of FAISS take more and fill up.
            exclude_id: (N,) int64, an id to leave out for each query, or (N, E), several, padded by -1; one that is not
                        in the index leaves nothing out.
            max_score, min_score: a number, or (N,) one for each query, as in `topk`.

        Returns:
            TopK(values, indices), (N, k) each, on the device of the query: values float32 (float64 if query and rows
            are and the kind is "exact"), best first; equal values by ascending id. Where fewer take part, the rest is
            id -1 with the worst value.

        Numerics:
            "exact" as `topk`. FAISS compares float32 products: at the last place it chooses among equals as it likes.
        """
        most = len(self) if self.kind == "exact" else None
        settings = self.metric, self.backend
        search = make_search(query, k, exclude_id, min_score, max_score, self.dim, most, settings)
        home = search.query.device
        if self._faiss is not None:
            found = self._faiss.search(search, self._ids)
        else:
            where = home if self.device.type == "cpu" else self.device
            found = search_blocks(self._rows, self._ids, search.to(where), self.options["block_bytes"])
        return TopK(found.values.to(home), found.indices.to(home))

    def unit_sums(self, ids: Tensor) -> Tensor:
        """(N, D) sums of the rows of these ids (N, k), each to length 1, in float32 at least; -1 adds nothing."""
        ids = ids.to(self.device)
        there = ids >= 0
        # An absent one is looked up as any row and weighs nothing.
        known = torch.where(there, ids, self.ids[0])
        near = self.rows(known.flatten()).to(torch.promote_types(self.dtype, torch.float32))
        return (unit_rows(near).reshape(*ids.shape, -1) * there[:, :, None]).sum(1)

    def rows(self, ids: Tensor | np.ndarray | Sequence[int]) -> Tensor:
        """(n, D) copies of the rows with these ids (n,), in the order of the ids."""
        return self._rows[self._ids.rows(ids)]

    @torch.inference_mode()  # a model's rows are often inference tensors, which cannot be written elsewhere
    def update(self, ids: Tensor | np.ndarray | Sequence[int], rows: Tensor | np.ndarray) -> None:
        """Write new rows (n, D) in the place of those with these ids (n,), in the type of the index.

        Of a repeated id the last row counts. Kind "hnsw" cannot: its graph is built from the rows.

        Raises:
            ValueError: an id is not in the index, shapes disagree, a row is not finite, the rows are read only.
        """
        if not self._writable:
            raise ValueError(
                "update needs rows that can be written to, got a read-only array: open the map with mode 'r+', or load "
                "the index with mmap=False"
            )
        if self._faiss is not None:
            self._faiss.check_replaceable()
        place = self._ids.rows(ids)
        if place.numel() == 0:
            return
        new, _ = as_rows("rows", rows)
        if new.shape != (place.shape[0], self.dim):
            raise ValueError(f"rows must have shape {(place.shape[0], self.dim)} for these ids, got {tuple(new.shape)}")
        new = new.to(self._rows)
        if self._check:
            check_finite("rows", new, self.ids[place])
        order = place.argsort(stable=True)
        last = torch.ones_like(place, dtype=torch.bool)
        last[:-1] = place[order][1:] != place[order][:-1]
        place, new = place[order[last]], new[order[last]]
        self._rows.index_copy_(0, place, new)
        if self._faiss is not None:
            self._faiss.replace(place, new)

    def to(self, device: torch.device | str) -> CorpusIndex:
        """Move rows to a device, for which a memory map is read whole, and return the index; FAISS keeps its own."""
        moved = self._rows.to(device)
        if moved.device != self.device:
            self._rows, self._writable, self._ids = moved, True, self._ids.to(moved.device)
        return self

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder: rows, ids, texts, FAISS's index, and a manifest with a checksum for each.

        It is written beside the folder (`.NAME.saving-...`, which a killed process leaves there) and then put in its
        place, so that an earlier index is whole until the new one is.
        """
        options = {name: value for name, value in self.options.items() if name != "gpu"}  # of this machine
        about = {"metric": self.metric, "kind": self.kind, "options": options}
        about |= {"check": self._check, "encoding": self._encoding}
        storage.save(folder, self._rows, self.ids, self.texts, self._faiss, about)

    @classmethod
    def load(
        cls, folder: str | Path, *, mmap: bool = True, verify: bool = True, backend: str | None = None
    ) -> CorpusIndex:
        """The index that `save` wrote.

        Args:
            mmap:    leave the rows on the disk, read only; False reads them into memory, where `update` can write.
            verify:  compare checksums, which reads every file once; sizes are always compared.

        Raises:
            ValueError: nothing was saved there, by another version, or a file is missing, cut short or damaged.
        """
        rows, ids, texts, path, about = storage.load(folder, mmap=mmap, verify=verify)
        chosen = {name: about[name] for name in ("metric", "kind", "check")} | about["options"]
        stored = path, not mmap, about["encoding"]
        return cls(rows, ids=ids, texts=texts, backend=backend, _stored=stored, **chosen)

    @property
    def options(self) -> dict:
        """The options of the kind, with what was left out filled in."""
        return dict(self._faiss.options) if self._faiss is not None else {"block_bytes": BLOCK_BYTES} | self._given

    @property
    def ids(self) -> Tensor:
        """(M,) int64, the id of each row."""
        return self._ids.values

    @property
    def dim(self) -> int:
        """D, the length of a row."""
        return self._rows.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the rows."""
        return self._rows.dtype

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._rows.device

    def __len__(self) -> int:
        return self._rows.shape[0]

    def __repr__(self) -> str:
        kind = f"{str(self.dtype).removeprefix('torch.')}, metric={self.metric!r}, kind={self.kind!r}"
        return f"CorpusIndex({len(self)} x {self.dim}, {kind}, device={str(self.device)!r})"


def _read_texts(source: str | Path | Sequence[str]) -> tuple[list[str], Tensor | None]:
    """Texts and their ids: of a list, with None, or the lines of a text file that are not blank, with their numbers."""
    if not isinstance(source, str | Path):
        return check_texts("texts_or_path", source), None
    refuse_tables(source, "texts_or_path")
    lines = [line.strip() for line in read_lines(source, "texts_or_path")]
    numbers = [number for number, line in enumerate(lines) if line]
    return [lines[number] for number in numbers], torch.tensor(numbers, device="cpu")
