"""What is planned: one run, its options checked, and the sizes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..errors import InputError
from .encoder import ENCODERS, Encoder
from .hardware import BYTES, GPUS, HALVES, NETWORK, Hardware

CHUNK_BYTES = 1 << 30  # of candidates that travel, or of a corpus that is read from the host's memory
ONE_SWEEP, TWO_PASSES = 6, 8
BANKS = ("gpu", "host")


class Objective(NamedTuple):
    """Operations for each pair of anchor and candidate, in D; whether every step searches the corpus; whether centroids
    are candidates too; and whether anchors are gathered as well, to be compared with or only to be looked at."""

    sweep: int
    searches: bool = False
    centroids: bool = False
    both_ways: bool = False
    sees_anchors: bool = False


OBJECTIVES = {
    "infonce": Objective(ONE_SWEEP),
    "focal": Objective(ONE_SWEEP),
    "symmetric": Objective(TWO_PASSES, both_ways=True),
    # Its adversarial positive takes two products more.
    "hsimcse": Objective(ONE_SWEEP + 4, searches=True, sees_anchors=True),
    "clusterns": Objective(ONE_SWEEP, centroids=True),
    "angular": Objective(ONE_SWEEP),
    "soft-negative": Objective(ONE_SWEEP),
    # A sweep over the candidates, and one over them and two earlier layers of both views.
    "sscl": Objective(6 * ONE_SWEEP, sees_anchors=True),
}
USUAL_CLUSTERS = 128  # of `fastcse train --objective clusterns`


@dataclass(frozen=True)
class Run:
    """A training run. `batch` counts the anchors of a step over all processes, one process a GPU.

    Args:
        mini_batch: texts that one GPU encodes at once; capped at the local batch, and then nothing is encoded twice.
        max_length: tokens of a text; every text is taken to have as many.
        negatives:  hard negatives of each anchor, encoded and compared with all anchors.
        network:    bytes a second in and out of a host.
        chunked:    candidates travel in chunks, instead of being gathered.
        corpus:     rows of the corpus index; None: there is none.
        bank:       "gpu": the index is spread over the GPUs. "host": it is a memory map, read a block at a time.
        workspace:  bytes of the loss' gradient weights; None: the backend's own.

    Raises:
        InputError: an option out of its range, named with the value that came.

    Example:
        >>> run = Run(batch=4096, gpus=16, dim=768, negatives=1)
        >>> run.local, run.own, run.candidates, run.hosts
        (256, 512, 8192, 2)
    """

    batch: int
    dim: int
    gpus: int = 1
    hardware: Hardware = GPUS["h100"]
    encoder: Encoder = ENCODERS["bert-base"]
    mini_batch: int = 1024
    max_length: int = 32
    negatives: int = 0
    objective: str = "infonce"
    dtype: str = "bf16"
    gpus_per_host: int = 8
    network: float = NETWORK
    chunked: bool = False
    corpus: int | None = None
    bank: str = "gpu"
    bank_dtype: str = "fp16"
    clusters: int | None = None
    workspace: float | None = None

    def __post_init__(self):
        lowest = {"batch": 2, "dim": 1, "gpus": 1, "mini_batch": 1, "max_length": 1, "gpus_per_host": 1, "corpus": 1,
                  "clusters": 1, "negatives": 0}  # fmt: skip
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{_flag(name)} is {value}: expected at least {least}")
        known = {"objective": OBJECTIVES, "dtype": BYTES, "bank_dtype": ("fp16", "bf16", "fp32"), "bank": BANKS}
        for name, names in known.items():
            check_known(_flag(name), getattr(self, name), names)
        for name in ("network", "workspace"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{_flag(name)} is {value / 1e9:g} GB: expected a finite number above 0")
        self._check_together()

    def _check_together(self) -> None:
        if self.batch % self.gpus:
            near = max(1, round(self.batch / self.gpus)) * self.gpus
            raise InputError(f"--batch {self.batch} is not divisible by --gpus {self.gpus}: {near} is")
        if self.corpus is None:
            if self.clusters is not None and not OBJECTIVES[self.objective].centroids:
                raise InputError(f"--clusters is {self.clusters}, and there is nothing to cluster without --corpus")
            if OBJECTIVES[self.objective].searches:
                raise InputError(f"--objective {self.objective} searches a corpus in every step: --corpus is missing")
            return
        if self.corpus < self.batch:
            raise InputError(f"--corpus {self.corpus} is smaller than --batch {self.batch}: expected at least as much")
        if self.clusters is not None and self.clusters > self.corpus:
            raise InputError(f"--clusters {self.clusters} is larger than --corpus {self.corpus}: expected at most that")

    @property
    def local(self) -> int:
        """n: anchors of one GPU."""
        return self.batch // self.gpus

    @property
    def own(self) -> int:
        """m: candidates that one GPU encodes, the positives and the hard negatives of its anchors."""
        return self.local * (1 + self.negatives)

    @property
    def candidates(self) -> int:
        """M: what every anchor is compared with."""
        centroids = (self.clusters or USUAL_CLUSTERS) if OBJECTIVES[self.objective].centroids else 0
        return self.batch * (1 + self.negatives) + centroids

    @property
    def texts(self) -> int:
        """Texts of an anchor: itself, its positive, its hard negatives."""
        return 2 + self.negatives

    @property
    def cached(self) -> bool:
        """Whether GradCache encodes the local batch in several mini-batches, and so everything twice."""
        return self.mini_batch < self.local

    @property
    def encoded_at_once(self) -> int:
        """Texts whose activations are held: a mini-batch of one column, or the whole local batch."""
        return self.mini_batch if self.cached else self.local * self.texts

    @property
    def passes(self) -> int:
        """Forward passes that a step costs; a backward pass counts two."""
        return 4 if self.cached else 3

    @property
    def travels(self) -> bool:
        """Whether candidates travel in chunks: one GPU has them all."""
        return self.chunked and self.gpus > 1

    @property
    def returned(self) -> int:
        """Rows of all GPUs whose gradients go back to where they were encoded."""
        both = OBJECTIVES[self.objective].both_ways and not self.travels
        return self.batch * (1 + self.negatives + both)

    @property
    def gathered(self) -> int:
        """Rows that one GPU gets from all."""
        return self.returned + self.batch * (OBJECTIVES[self.objective].sees_anchors and not self.travels)

    @property
    def sweep(self) -> int:
        """Operations for each pair and feature. Chunks that travel are seen twice; over several GPUs the two directions
        of a gathered batch are two losses (fastcse/distributed/losses.py)."""
        one, both_ways = OBJECTIVES[self.objective].sweep, OBJECTIVES[self.objective].both_ways
        if both_ways:
            return one if self.gpus == 1 or self.travels else 2 * ONE_SWEEP
        return one + (TWO_PASSES - ONE_SWEEP) * self.travels

    @property
    def searches(self) -> bool:
        """Whether every step searches the corpus."""
        return OBJECTIVES[self.objective].searches

    @property
    def chunk(self) -> int:
        """Candidates of a chunk on its way: those of one GPU, or as many as a chunk may hold."""
        return min(self.own, max(1, CHUNK_BYTES // (self.dim * self.item)))

    @property
    def chunk_bytes(self) -> float:
        """The most that is read at once of a corpus in the host's memory."""
        return float(CHUNK_BYTES)

    @property
    def half(self) -> bool:
        """Whether embeddings and activations have 16 bits."""
        return self.dtype in HALVES

    @property
    def item(self) -> int:
        """Bytes of a component of an embedding."""
        return BYTES[self.dtype]

    @property
    def bank_item(self) -> int:
        """Bytes of a component of a row of the corpus."""
        return BYTES[self.bank_dtype]

    @property
    def bank_rate(self) -> str:
        """The kind of products that scores of the corpus are."""
        return "tf32" if (self.bank_dtype, self.dtype) == ("fp32", "tf32") else self.bank_dtype

    @property
    def hosts(self) -> int:
        """Machines."""
        return -(-self.gpus // self.gpus_per_host)


def check_known(flag: str, name: str, known) -> None:
    """An InputError unless `name` is one of those."""
    if name not in known:
        raise InputError(f"{flag} {name!r} is unknown: expected {', '.join(sorted(known))}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
