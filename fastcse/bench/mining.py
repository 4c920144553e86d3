"""The miner beside sentence-transformers' own, on the rows of a table, so that nothing but mining is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ..errors import OptionError
from ..options import option
from .case import Case, Measurement, Metric, Result, make_rows
from .provider import Provider, named
from .topk_search import TopkCase, bare_product

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

# Scores that differ by float32's rounding only may change places: a few of a hundred thousand triplets.
LEAST_SAME = 0.999
INSTALL = "pip install sentence-transformers"
Mine = Callable[[], "Dataset"]
Triplets = set[tuple[str, ...]]


@dataclass
class MiningMeasurement(Measurement):
    """A provider of the miner. `same`: the share of triplets that are sentence-transformers'."""

    same: float | None = None


@dataclass(frozen=True)
class MiningCase(Case):
    """N distinct queries with a positive each, which are also the corpus.

    `range_max` None is the window that sentence-transformers makes by itself, given to both as a number: without one
    fastcse widens its window where the filters leave too few, and finds negatives that the other does not look for.
    """

    n: int = option(20_000, "Pairs of a query and its positive.", least=1, several=True)
    d: int = option(384, "Width of a row.", least=1, several=True)
    negatives: int = option(3, "Negatives for each pair.", least=1)
    range_min: int = option(0, "Ranks that are passed over.", least=0)
    range_max: int | None = option(None, "Rank to stop before.", shown="10 a negative, and 1")
    relative_margin: float | None = option(0.05, "Least distance from the positive's score, as a share of it.")
    device: str = "cpu"
    data: str = "clustered"
    seed: int = option(0, "Seed of the rows.")

    row = MiningMeasurement
    metrics = (Metric("same", "same", ".5f"),)
    legend = "MiB: beyond texts and rows; same: triplets in common with sentence-transformers', of all of both."
    axes = ("n", "d", "filters")
    operations = ("mining",)
    operation = "mining"
    labelled = ("operation", "m", "filters")
    lower_bound_note = "one product in panels, nothing mined"

    def __post_init__(self):
        super().__post_init__()
        least = self.range_min + self.negatives
        both = ("range_min", f" {self.range_min} + ", "negatives", f" {self.negatives}")
        if self.range_max is not None and self.range_max < least:
            raise OptionError("range_max", f" is {self.range_max}: expected at least ", *both)
        if self.n <= least:
            raise OptionError("n", f" is {self.n}: expected more than ", *both)

    @property
    def search(self) -> TopkCase:
        """The search that is a part of it."""
        return TopkCase(self.n, self.m, self.d, 1, "cosine", device=self.device, data=self.data, seed=self.seed)

    @property
    def flops(self) -> float:
        """Of the one product of all queries with the corpus."""
        return self.search.flops

    @property
    def window(self) -> int:
        """The rank to stop before: 10 candidates for each negative, and one for the positive."""
        return self.range_min + 10 * self.negatives + 1 if self.range_max is None else self.range_max

    @property
    def filters(self) -> str:
        """What a negative must be."""
        asked = {"range_min": self.range_min or None, "range_max": self.window, "margin": self.relative_margin}
        return ", ".join([f"top {self.negatives}", *(f"{k} {v:g}" for k, v in asked.items() if v is not None)])

    @property
    def setting(self) -> str:
        return f"{self.filters}, {self.device}, {self.data} rows"

    def inputs(self) -> tuple[Dataset, SentenceTransformer, torch.Tensor, torch.Tensor]:
        """Texts, a model that knows them, and the rows for the lower bound."""
        from datasets import Dataset

        query, corpus = make_rows(self.search)
        columns = {"anchor": [f"query {i}" for i in range(self.n)], "positive": [f"text {i}" for i in range(self.m)]}
        model = table_model([*columns["anchor"], *columns["positive"]], torch.cat([query, corpus]))
        return Dataset.from_dict(columns), model, query, corpus

    def exact(self, *inputs) -> Triplets:
        return _triplets(_sentence_transformers(self, *inputs)())

    def score(self, row: MiningMeasurement, provider: Provider, outcome: Dataset, exact: Triplets) -> None:
        found = _triplets(outcome)
        row.same = len(found & exact) / max(1, len(found | exact)) if found or exact else 1.0

    def fault(self, ours: MiningMeasurement, result: Result) -> str | None:
        if ours.same >= LEAST_SAME:
            return None
        return f"only {ours.same:.5f} of fastcse's and sentence-transformers' triplets are the same"

    def lower_bound(self) -> Callable[..., None]:
        product = bare_product(self.search)
        return lambda dataset, model, query, corpus: product(query, corpus)

    def mine(self, miner: Callable[..., Dataset], dataset: Dataset, model: SentenceTransformer, **more) -> Mine:
        """A call of either package's miner."""
        options = {
            "num_negatives": self.negatives,
            "range_min": self.range_min,
            "range_max": self.window,
            "relative_margin": self.relative_margin,
            "sampling_strategy": "top",
            "output_format": "triplet",
            "verbose": False,
        }
        return lambda: miner(dataset, model, **options, **more)


def _triplets(mined: Dataset) -> Triplets:
    return set(zip(*(mined[name][:] for name in ("anchor", "positive", "negative"))))


def _fastcse(case: MiningCase, dataset: Dataset, model: Any, *rows) -> Mine:
    import fastcse

    return case.mine(fastcse.mine_hard_negatives, dataset, model)


def _sentence_transformers(case: MiningCase, dataset: Dataset, model: Any, *rows, **more) -> Mine:
    from sentence_transformers.util import mine_hard_negatives

    return case.mine(mine_hard_negatives, dataset, model, **more)


def _with_faiss(case: MiningCase, *inputs) -> Mine:
    return _sentence_transformers(case, *inputs, use_faiss=True)


THEIRS = ("sentence_transformers",)
PROVIDERS = named(
    Provider("fastcse", _fastcse, (), THEIRS, INSTALL),
    Provider("sentence-transformers", _sentence_transformers, (), THEIRS, INSTALL, "its search in torch"),
    Provider("sentence-transformers FAISS", _with_faiss, (), (*THEIRS, "faiss"), f"{INSTALL} faiss-cpu",
             "its search in FAISS"),
)  # fmt: skip


def table_model(texts: list[str], rows: torch.Tensor) -> SentenceTransformer:
    """A model whose embedding of a text is looked up: row i belongs to text i."""
    from sentence_transformers import SentenceTransformer

    place = {text: i for i, text in enumerate(texts)}

    class Table(SentenceTransformer):
        """Gives the rows it was made with."""

        def encode(self, inputs, *, convert_to_numpy=True, convert_to_tensor=False, normalize_embeddings=False, **more):
            found = rows[torch.tensor([place[text] for text in inputs])]
            found = F.normalize(found, dim=-1) if normalize_embeddings else found
            return found if convert_to_tensor or not convert_to_numpy else found.numpy()

        def get_embedding_dimension(self):
            return rows.shape[1]

    return Table(modules=[torch.nn.Identity()], device="cpu")
