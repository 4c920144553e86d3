"""The arithmetic of a training step. N anchors, M candidates and D over W processes; n = N / W and m = M / W are local.

    encoder    4 forward passes of every text: GradCache's one without and one with a graph, and a backward pass, which
               costs two. 3 where the local batch is one mini-batch
    loss       6 n M D in one sweep, 8 in two passes, 12 in both directions over several processes; the gradient weight
               of a pair through memory 3 times, candidates and their float32 gradient twice a chunk of anchors
    gathered   every process holds all M candidates and their float32 gradient: M D (bytes + 4)
    chunked    candidates pass through the processes in a ring, twice, and their gradients with the second pass
    messages   on a ring every link carries (W - 1) / W of what is gathered, scattered, or twice that of what is reduced
    search     2 queries rows D / W, as k-means with its centroids

Time is the larger of arithmetic and memory traffic in each stage, and stages do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..errors import OptionError
from ..options import check, option
from ..training.objectives import OBJECTIVES, Objective
from ..training.options import MOST_CLUSTERS
from .hardware import BYTES, ENCODERS, GPUS, HALVES, HOST_LINK, OPTIMIZER_TRAFFIC, Encoder, Hardware

# fastcse/kernels/workspace.py and fastcse/native/sweep.py; a test holds them together.
TILE_ROWS, TILE_WIDTH, LARGEST_TILE, WAVES = 128, 256, 256, 3
LEAST_CPU_ROWS, MOST_CPU_ROWS, CPU_WORKSPACE = 128, 1024, 32 << 20
ONE_SWEEP, TWO_PASSES = 6, 8  # operations for each pair and feature
CHUNK_BYTES = 1 << 30  # of candidates in a ring, or of a corpus that is read from the host's memory
GRADIENT = 4  # bytes: gradients of embeddings are float32
ID_BYTES = 8  # of a row of the corpus
READS_OF_WEIGHTS = 3  # a pair's gradient weight is written once and read twice
SEARCH_ALL = "search with every row"
ALWAYS, IN_LOSS, IN_ENCODER = "always", "loss", "encoder"
SYMMETRIC = "symmetric"  # InfoNCE in both directions
MACHINES, MODEL, CORPUS = ({"panel": name} for name in ("Machines", "Model and loss", "Corpus"))


@dataclass(frozen=True)
class Run:
    """A training run, one process a GPU. `dim`, if None, becomes the encoder's.

    Raises:
        OptionError: an option out of its range, named with the value that came.

    Example:
        >>> run = Run(batch=4096, gpus=16, dim=768, negatives=1)
        >>> run.local, run.own, run.candidates, run.hosts
        (256, 512, 8192, 2)
    """

    batch: int = option(help="Anchors of a step over all GPUs: 4M is 4194304.", least=2)
    gpus: int = option(1, "How many; one process each.", least=1, **MACHINES)
    gpu: str = option("h100", "Which kind.", choices=tuple(GPUS), **MACHINES)
    gpus_per_host: int = option(8, "Of one machine.", least=1, **MACHINES)
    network: float = option(50.0, "GB/s in and out of a machine.", above=0, **MACHINES)
    memory: float | None = option(None, "GB of one, if not as in the table.", above=0, **MACHINES)
    tflops: float | None = option(None, "Attained by products, if not as in the table.", above=0, **MACHINES)
    dim: int | None = option(None, "Of an embedding.", least=1, shown="the model's", **MODEL)
    model: str | None = option(None, "Encoder.", choices=tuple(ENCODERS), shown="the one of --dim", **MODEL)
    parameters: int | None = option(None, "Of another encoder, as wide as --dim.", least=1, **MODEL)
    mini_batch: int = option(1024, "Texts that a GPU encodes at once (GradCache).", least=1, **MODEL)
    max_length: int = option(32, "Tokens of a text.", least=1, **MODEL)
    objective: str = option("infonce", "The loss.", choices=(*OBJECTIVES, SYMMETRIC), **MODEL)
    negatives: int = option(0, "Hard negatives of each anchor.", least=0, **MODEL)
    dtype: str = option("bf16", "Of embeddings and products.", choices=tuple(BYTES), **MODEL)
    chunked: bool = option(False, "Candidates pass in chunks from GPU to GPU; else every GPU gathers all.", **MODEL)
    workspace: float | None = option(None, "GB, at most, of the loss.", above=0, shown="the backend's", **MODEL)
    steps: int | None = option(None, "Of the training.", least=1, **MODEL)
    epochs: float | None = option(None, "The same, in passes over --corpus.", above=0, **MODEL)
    corpus: int | None = option(None, "Rows of a corpus index, to mine and to cluster.", least=1, **CORPUS)
    bank: str = option("gpu", "Where it is: spread over the GPUs, or a memory map.", choices=("gpu", "host"), **CORPUS)
    bank_dtype: str = option("fp16", "Of its rows.", choices=("fp16", "bf16", "fp32"), **CORPUS)
    clusters: int | None = option(None, "K of k-means over it.", least=1, **CORPUS)

    def __post_init__(self):
        check(self)
        for wrong, *sentence in self._contradictions():
            if wrong:
                raise OptionError(*sentence)
        if self.dim is None:
            object.__setattr__(self, "dim", self.encoder.hidden)

    def _contradictions(self) -> Iterator[tuple]:
        """What options together forbid: whether it is so, and the parts of an OptionError."""
        sized, batch, epochs = self.parameters is not None, f" {self.batch}", f"{self.epochs or 0:g}"
        both = ("parameters", f" {self.parameters} are both given: expected one of them")
        yield sized and self.model is not None, "model", f" {self.model} and ", *both
        yield sized and self.dim is None, "dim", " is missing: ", "parameters", f" {self.parameters} needs it"
        near = max(1, round(self.batch / self.gpus)) * self.gpus
        yield self.batch % self.gpus, "batch", f"{batch} is not divisible by ", "gpus", f" {self.gpus}: {near} is"
        both = ("epochs", f" {epochs} are both given: expected one of them")
        yield self.steps is not None and self.epochs is not None, "steps", f" {self.steps} and ", *both
        alone, rows = self.corpus is None, f" {self.corpus}"
        uncounted = f" is {epochs}, and there is nothing to count them by: "
        yield alone and self.epochs is not None, "epochs", uncounted, "corpus", " is missing"
        nothing = f" is {self.clusters}, and there is nothing to cluster without "
        yield alone and self.clusters is not None and not self.needs.clusters, "clusters", nothing, "corpus"
        every = f" {self.objective} searches a corpus in every step: "
        yield alone and self.needs.bank, "objective", every, "corpus", " is missing"
        small = f"{batch}: expected at least as much"
        yield not alone and self.corpus < self.batch, "corpus", f"{rows} is smaller than ", "batch", small
        many = not alone and self.clusters is not None and self.clusters > self.corpus
        yield many, "clusters", f" {self.clusters} is larger than ", "corpus", f"{rows}: expected at most that"

    @property
    def hardware(self) -> Hardware:
        """The table's row, with what the caller knows better."""
        own = {} if self.memory is None else {"memory": 1e9 * self.memory}
        if self.tflops is not None:
            own |= dict.fromkeys(("half", "tf32", "single"), 1e12 * self.tflops)
        return replace(GPUS[self.gpu], **own)

    @property
    def encoder(self) -> Encoder:
        """The one that is named, or what one expects behind embeddings of this width; bert-base where none has it."""
        if self.parameters is not None:
            return Encoder.of(self.parameters, self.dim)
        return ENCODERS[self.model or {384: "minilm", 1024: "bert-large"}.get(self.dim, "bert-base")]

    @property
    def needs(self) -> Objective:
        """What the objective needs beside anchors and candidates."""
        return OBJECTIVES["infonce" if self.objective == SYMMETRIC else self.objective]

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
        return self.batch * (1 + self.negatives) + ((self.clusters or MOST_CLUSTERS) if self.needs.clusters else 0)

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
    def ring(self) -> bool:
        """Whether candidates pass from GPU to GPU in chunks: one GPU has them all."""
        return self.chunked and self.gpus > 1

    @property
    def returned(self) -> int:
        """Rows of all GPUs whose gradients are reduced to where they were encoded."""
        return self.batch * (1 + self.negatives + (self.objective == SYMMETRIC and not self.ring))

    @property
    def gathered(self) -> int:
        """Rows that one GPU gets from all; a hinge or earlier layers need everybody's anchors too."""
        return self.returned + self.batch * ((self.needs.bank or self.needs.layers) and not self.ring)

    @property
    def sweep(self) -> int:
        """Operations for each pair and feature. A ring takes two passes; over several GPUs the two directions of a
        gathered batch are two losses (fastcse/distributed/losses.py). An adversarial positive takes two products; SSCL
        sweeps once over the candidates, and once over them and two earlier layers of both views."""
        if self.objective == SYMMETRIC:
            return TWO_PASSES if self.gpus == 1 or self.ring else 2 * ONE_SWEEP
        one = 6 * ONE_SWEEP if self.needs.layers else ONE_SWEEP + 4 * self.needs.bank
        return one + (TWO_PASSES - ONE_SWEEP) * self.ring

    @property
    def chunk(self) -> int:
        """Candidates of a chunk of the ring: those of one GPU, or as many as a chunk may hold."""
        return min(self.own, max(1, CHUNK_BYTES // (self.dim * self.item)))

    @property
    def half(self) -> bool:
        """Whether embeddings and activations have 16 bits."""
        return self.dtype in HALVES

    @property
    def item(self) -> int:
        """Bytes of a component of an embedding."""
        return BYTES[self.dtype]

    @property
    def row_of_corpus(self) -> int:
        """Bytes."""
        return self.dim * BYTES[self.bank_dtype]

    @property
    def hosts(self) -> int:
        """Machines."""
        return -(-self.gpus // self.gpus_per_host)

    @property
    def total_steps(self) -> int | None:
        """Steps of the training; an epoch is as many batches as the corpus has."""
        return self.steps if self.epochs is None else max(1, round(self.epochs * self.corpus / self.batch))


@dataclass(frozen=True)
class Held:
    """Bytes on one GPU, and when: all the time, in the loss, or in the encoder's passes."""

    name: str
    bytes: float
    when: str


@dataclass(frozen=True)
class Stage:
    """Seconds of one GPU: of arithmetic, of memory traffic, and of messages, whichever is largest."""

    name: str
    compute: float = 0.0
    memory: float = 0.0
    messages: float = 0.0
    seconds: float = field(init=False)
    bound: str = field(init=False)

    def __post_init__(self):
        times = {"arithmetic": self.compute, "memory": self.memory, "messages": self.messages}
        bound = max(times, key=times.get)
        object.__setattr__(self, "seconds", times[bound])
        object.__setattr__(self, "bound", bound)


@dataclass(frozen=True)
class Message:
    """Bytes that every link of the ring carries in a step; seconds on the links inside a host and between hosts."""

    name: str
    bytes: float
    inside: float
    between: float

    @property
    def seconds(self) -> float:
        """A ring is as fast as its slowest link."""
        return max(self.inside, self.between)


def workspace(run: Run) -> tuple[int, int]:
    """Rows of a chunk of anchors, and bytes of its gradient weights, as the backends choose them.

    Example:
        >>> workspace(Run(batch=65536, dim=768))        # three output tiles for each of 132 multiprocessors
        (16896, 2214592512)
    """
    columns = run.chunk if run.ring else run.candidates
    limit = None if run.workspace is None else round(1e9 * run.workspace)
    if not run.hardware.processors:
        fitting = (limit or CPU_WORKSPACE) // (4 * columns)
        rows = min(run.local, max(LEAST_CPU_ROWS, min(MOST_CPU_ROWS, fitting)))
        return rows, rows * columns * 4
    wave = filling_rows(run)
    fitting = (limit or 4 << 30) // (columns * run.item) // TILE_ROWS * TILE_ROWS
    rows = min(run.local, max(TILE_ROWS, min(max(1, min(WAVES, fitting // wave)) * wave, fitting)))
    return rows, _whole_tiles(rows) * _whole_tiles(columns) * run.item


def filling_rows(run: Run) -> int:
    """Rows of a chunk that give every multiprocessor one output tile of the gradient's product."""
    return max(1, run.hardware.processors // -(-run.dim // TILE_WIDTH)) * TILE_ROWS


def _whole_tiles(size: int) -> int:
    return -(-size // LARGEST_TILE) * LARGEST_TILE


def memory(run: Run) -> list[Held]:
    """What one GPU holds. The copy of a gradient in 16 bits takes the place that the workspace has left; the anchors'
    gradient is in 16 bits from the start, unless candidates are in a ring."""
    row, gradient = run.dim * run.item, run.dim * GRADIENT
    centroids = run.candidates - run.batch * (1 + run.negatives)
    columns = centroids + (run.own if run.ring else run.returned if run.gpus > 1 else run.own)
    anchors = run.local * (row if run.half and not run.ring else gradient)
    copies = (columns + (run.local if run.ring else 0)) * row if run.half else 0.0
    rows, weights = workspace(run)
    scratch = rows * gradient if run.half and not run.ring else 0.0
    activations = run.encoded_at_once * run.encoder.activation_bytes(run.max_length, run.half)
    held = [
        Held("weights, gradients, AdamW", run.encoder.state_bytes(run.half), ALWAYS),
        Held("embeddings of the local batch", run.local * run.texts * row, ALWAYS),
        Held("activations of a mini-batch", activations, IN_ENCODER),
        Held("embedding gradients kept for it", run.local * run.texts * row, IN_ENCODER),
        Held("gradients of the loss", anchors + columns * gradient, IN_LOSS),
        Held("loss workspace", max(weights + scratch, copies), IN_LOSS),
    ]
    if run.ring:
        held.append(Held("two chunks of the ring, and their gradients", 2 * run.chunk * (row + gradient), IN_LOSS))
    elif run.gpus > 1:
        held.append(Held("candidates of all GPUs", run.gathered * row, IN_LOSS))
        held.append(Held("gradients scattered back", run.returned // run.gpus * gradient, IN_LOSS))
    if run.corpus and run.bank == "gpu":
        held.append(Held("shard of the corpus", index_bytes(run) / run.gpus, ALWAYS))
    elif run.corpus:
        held.append(Held("block of the corpus", min(CHUNK_BYTES, index_bytes(run) / run.gpus), ALWAYS))
    return held


def peak(run: Run) -> float:
    """The most bytes that a GPU holds at once: what is always there, and the larger of loss and encoder."""
    total = {ALWAYS: 0.0, IN_LOSS: 0.0, IN_ENCODER: 0.0}
    for held in memory(run):
        total[held.when] += held.bytes
    return total[ALWAYS] + max(total[IN_LOSS], total[IN_ENCODER])


def fits(run: Run) -> bool:
    """Whether the peak leaves the GPU its reserve."""
    return peak(run) <= run.hardware.usable


def encode(run: Run, texts: float, passes: int) -> Stage:
    """Forward passes over texts of the longest length, spread over all GPUs."""
    flops = passes * texts * run.encoder.flops(run.max_length) / run.gpus
    return Stage("encoder", flops / (run.hardware.encoder_share * run.hardware.rate(run.dtype)))


def loss(run: Run) -> Stage:
    """The sweep over n x M pairs: its products, and weights, candidates and their gradient through memory."""
    pairs = float(run.local) * run.candidates
    chunks = -(-run.local // workspace(run)[0])
    traffic = READS_OF_WEIGHTS * run.item * pairs
    traffic += chunks * run.candidates * run.dim * (2 * run.item + 2 * GRADIENT)
    rate = run.hardware.loss_share * run.hardware.rate(run.dtype)
    return Stage("loss", run.sweep * pairs * run.dim / rate, traffic / run.hardware.bandwidth)


def pairwise(run: Run, name: str, others: float, kept: bool) -> Stage:
    """Products of the corpus with other rows, spread over all GPUs. A search writes the scores and reads few of them
    again. K-means writes none, and reads the corpus once more for the sums."""
    kind = "tf32" if (run.bank_dtype, run.dtype) == ("fp32", "tf32") else run.bank_dtype
    pairs, rate = float(run.corpus) * others / run.gpus, run.hardware.search_share * run.hardware.rate(kind)
    shard = float(run.corpus) * run.row_of_corpus / run.gpus
    reads = 1 if kept else 2
    from_host = reads * shard / HOST_LINK if run.bank == "host" else 0.0
    traffic = reads * shard + BYTES[run.bank_dtype] * pairs * kept
    return Stage(name, 2 * pairs * run.dim / rate, traffic / run.hardware.bandwidth, from_host)


def messages(run: Run) -> list[Message]:
    """What the processes send one another in a step."""
    if run.gpus == 1:
        return []
    row, gradient = run.dim * run.item, run.dim * GRADIENT
    sent = {
        f"candidates{', both passes' if run.ring else ', all-gather'}": run.gathered * row * (1 + run.ring),
        f"their gradients{'' if run.ring else ', reduce-scatter'}": run.returned * gradient,
        "the model's gradients, all-reduce": 2 * run.encoder.parameters * GRADIENT,
    }
    if run.needs.bank:
        sent["queries of the corpus, all-gather"] = run.batch * run.row_of_corpus
    carried = {name: amount * (run.gpus - 1) / run.gpus for name, amount in sent.items()}
    between = 1 / (1e9 * run.network) if run.hosts > 1 else 0.0
    return [Message(name, size, size / run.hardware.link, size * between) for name, size in carried.items()]


def step(run: Run) -> list[Stage]:
    """The stages of one training step."""
    stages = [encode(run, run.batch * run.texts, run.passes), loss(run)]
    if run.needs.bank:
        stages.append(pairwise(run, "search of the corpus", run.batch, True))
    stages += [Stage(m.name, messages=m.seconds) for m in messages(run)]
    moved = run.encoder.parameters * OPTIMIZER_TRAFFIC
    return [*stages, Stage("optimizer", memory=moved / run.hardware.bandwidth)]


def index_bytes(run: Run) -> float:
    """Bytes of `CorpusIndex` in memory and on the disk: rows and ids. Texts come on top."""
    return run.corpus * (run.row_of_corpus + ID_BYTES)


def corpus(run: Run) -> list[Stage]:
    """What is done with the whole corpus, apart from steps: encoding, searches, an iteration of k-means."""
    done = [
        Stage("encode the corpus once", encode(run, run.corpus, 1).compute),
        pairwise(run, "search with the anchors of a batch", run.batch, True),
        pairwise(run, SEARCH_ALL, run.corpus, True),
    ]
    if run.clusters:
        done.append(pairwise(run, "one iteration of k-means", run.clusters, False))
    return done
