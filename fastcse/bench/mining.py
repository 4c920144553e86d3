"""The miner beside sentence-transformers' own, on rows that a table gives, so that nothing but mining is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from .data import make_rows
from .nearest.problem import TopkProblem
from .nearest.subject import bare_product
from .peers.peer import absent
from .subject import Entry, Metric, Result, Subject, WrongAnswer

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

# Scores that differ by float32's rounding only may change places: a few of a hundred thousand triplets.
LEAST_SAME = 0.999
INSTALL = "pip install sentence-transformers"


@dataclass(frozen=True)
class MiningProblem:
    """N distinct queries with a positive each, which are also the corpus.

    `range_max` None is the window that sentence-transformers makes by itself, given to both as a number: without one
    fastcse widens its window where the filters leave too few, and finds negatives that the other does not look for.
    """

    n: int
    d: int = 384
    negatives: int = 3
    range_min: int = 0
    range_max: int | None = None
    relative_margin: float | None = 0.05
    device: str = "cpu"
    data: str = "clustered"
    seed: int = 0

    operation = "mining"
    counted = "pairs"
    mode = "forward"
    dtype = "float32"

    @property
    def m(self) -> int:
        """Rows of the corpus."""
        return self.n

    @property
    def flops(self) -> float:
        """Of the one product of all queries with the corpus."""
        return 2.0 * self.n * self.m * self.d

    @property
    def size(self) -> str:
        """Pairs and width."""
        return f"N = {self.n}, D = {self.d}"

    @property
    def window(self) -> int:
        """The rank to stop before: 10 candidates for each negative, and one for the positive."""
        return self.range_min + 10 * self.negatives + 1 if self.range_max is None else self.range_max

    @property
    def filters(self) -> str:
        """What is asked of a negative."""
        asked = {"range_min": self.range_min or None, "range_max": self.window, "margin": self.relative_margin}
        return ", ".join([f"top {self.negatives}", *(f"{k} {v:g}" for k, v in asked.items() if v is not None)])

    @property
    def setting(self) -> str:
        """All but the sizes."""
        return f"{self.filters}, {self.device}, {self.data} rows"

    @property
    def title(self) -> str:
        """One line that says what is measured."""
        return f"mining, {self.size}, {self.setting}"

    @property
    def search(self) -> TopkProblem:
        """The search that is a part of it."""
        return TopkProblem(self.n, self.m, self.d, 1, "cosine", device=self.device, data=self.data, seed=self.seed)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of either miner."""
        return dict(num_negatives=self.negatives, range_min=self.range_min, range_max=self.window,
                    relative_margin=self.relative_margin, sampling_strategy="top", output_format="triplet",
                    verbose=False)  # fmt: skip

    def labels(self) -> dict[str, Any]:
        """Everything about it, for files."""
        return {"operation": self.operation, "m": self.m, "filters": self.filters, **asdict(self)}


@dataclass
class MiningRow(Entry):
    """A provider of the miner."""

    same: float | None = None


class WrongTriplets(WrongAnswer):
    """fastcse's triplets are not sentence-transformers'."""


class Miner(NamedTuple):
    """A miner: `mine(dataset, model, **options)` gives a dataset of triplets."""

    name: str
    load: Callable[[], Callable[..., Dataset]]
    modules: tuple[str, ...] = ("sentence_transformers",)
    install: str = INSTALL
    note: str = ""
    choices: tuple[int, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot run here at all, or None."""
        return absent(self.modules, self.install)


def _fastcse() -> Callable[..., Dataset]:
    import fastcse

    return fastcse.mine_hard_negatives


def _sentence_transformers() -> Callable[..., Dataset]:
    from sentence_transformers.util import mine_hard_negatives

    return mine_hard_negatives


def _with_faiss() -> Callable[..., Dataset]:
    mine = _sentence_transformers()
    return lambda dataset, model, **options: mine(dataset, model, use_faiss=True, **options)


MINERS = {
    miner.name: miner
    for miner in (
        Miner("fastcse", _fastcse),
        Miner("sentence-transformers", _sentence_transformers, note="its search in torch"),
        Miner("sentence-transformers FAISS", _with_faiss, ("sentence_transformers", "faiss"),
              f"{INSTALL} faiss-cpu", "its search in FAISS"),
    )
}  # fmt: skip


def table_model(texts: list[str], rows: torch.Tensor) -> SentenceTransformer:
    """A model whose embedding of a text is looked up: row i belongs to text i."""
    from sentence_transformers import SentenceTransformer

    place = {text: i for i, text in enumerate(texts)}

    class Table(SentenceTransformer):
        """Gives the rows it was made with."""

        def encode(self, inputs, *, convert_to_numpy=True, convert_to_tensor=False, normalize_embeddings=False,
                   **options):  # fmt: skip
            found = rows[torch.tensor([place[text] for text in inputs])]
            found = F.normalize(found, dim=-1) if normalize_embeddings else found
            return found if convert_to_tensor or not convert_to_numpy else found.numpy()

        def get_embedding_dimension(self):
            return rows.shape[1]

    return Table(modules=[torch.nn.Identity()], device="cpu")


def _inputs(problem: MiningProblem) -> tuple[Dataset, SentenceTransformer, torch.Tensor, torch.Tensor]:
    """Texts, a model that knows them, and the rows for the limit."""
    from datasets import Dataset

    query, corpus = make_rows(problem.search)
    columns = {"anchor": [f"query {i}" for i in range(problem.n)], "positive": [f"text {i}" for i in range(problem.m)]}
    model = table_model([*columns["anchor"], *columns["positive"]], torch.cat([query, corpus]))
    return Dataset.from_dict(columns), model, query, corpus


def _triplets(mined: Dataset) -> set[tuple[str, ...]]:
    return set(zip(*(mined[name][:] for name in ("anchor", "positive", "negative"))))


def _exact(problem: MiningProblem, dataset: Dataset, model: Any, *rows: torch.Tensor) -> set[tuple[str, ...]]:
    return _triplets(_sentence_transformers()(dataset, model, **problem.options))


def _prepare(miner: Miner, problem: MiningProblem, choice: None, inputs: tuple) -> Callable[[], Dataset]:
    mine, (dataset, model, *_) = miner.load(), inputs
    return lambda: mine(dataset, model, **problem.options)


def _judge(row: MiningRow, miner: Miner, mined: Dataset, truth: set[tuple[str, ...]]) -> None:
    found = _triplets(mined)
    row.same = len(found & truth) / max(1, len(found | truth)) if found or truth else 1.0


def _check(result: Result) -> None:
    ours = next((row for row in result.rows if row.provider == "fastcse"), None)
    if ours is not None and ours.same is not None and not ours.same >= LEAST_SAME:
        raise WrongTriplets(f"only {ours.same:.5f} of fastcse's and sentence-transformers' triplets are the same at "
                            f"{result.problem.title}: nothing is reported; run the tests")  # fmt: skip


def _limit(problem: MiningProblem) -> Callable[..., None]:
    product = bare_product(problem.search)
    return lambda dataset, model, query, corpus: product(query, corpus)


MINING = Subject(
    row=MiningRow, peers=MINERS, inputs=_inputs, exact=_exact, prepare=_prepare, judge=_judge, check=_check,
    wrong=WrongTriplets, limit=_limit, limit_note=lambda problem: "one product in panels, nothing mined",
    output_bytes=lambda problem, inputs: 0,
    metrics=(Metric("same", "same", "same triplets", "share", ".5f"),),
    legend="MiB: beyond texts and rows; same: triplets in common with sentence-transformers', of all of both.",
    axes=("n", "d", "filters"),
)  # fmt: skip
