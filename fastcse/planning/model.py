"""The arithmetic of a training step. N anchors, M candidates and D over W processes; n = N / W and m = M / W are local.

    encoder    4 forward passes of every text: GradCache's one without and one with a graph, and a backward pass, which
               costs two. 3 where the local batch is one mini-batch
    loss       6 n M D in one sweep, 8 in two passes, 12 in both directions over several processes; memory traffic as
               performance.md 7 counts it
    gathered   every process holds all M candidates and their float32 gradient: M D (bytes + 4)
    chunked    the candidates go round in chunks, in two passes, and their gradients return with the second
    messages   on a ring every link carries (W - 1) / W of what is gathered, scattered, or twice that of what is reduced
    search     2 queries rows D / W, as k-means with its centroids

Time is the larger of arithmetic and memory traffic in each stage, and stages do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .encoder import OPTIMIZER_TRAFFIC
from .hardware import HOST_LINK
from .request import Run

# fastcse/kernels/workspace.py and fastcse/native/chunk.py; a test holds them together.
TILE_ROWS, TILE_WIDTH, LARGEST_TILE, WAVES = 128, 256, 256, 3
LEAST_CPU_ROWS, MOST_CPU_ROWS, CPU_WORKSPACE = 128, 1024, 32 << 20
GRADIENT = 4  # bytes: gradients of embeddings are float32
ID_BYTES = 8  # of a row of the corpus
READS_OF_WEIGHTS = 3  # a pair's gradient weight is written once and read twice
SEARCH_ALL = "search with every row"
ALWAYS, IN_LOSS, IN_ENCODER = "always", "loss", "encoder"


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
    columns = run.chunk if run.travels else run.candidates
    sms, limit = run.hardware.processors, run.workspace
    if not sms:
        fitting = int(limit or CPU_WORKSPACE) // (4 * columns)
        rows = min(run.local, max(LEAST_CPU_ROWS, min(MOST_CPU_ROWS, fitting)))
        return rows, rows * columns * 4
    wave = filling_rows(run)
    fitting = int(limit or 4 << 30) // (columns * run.item) // TILE_ROWS * TILE_ROWS
    rows = min(run.local, max(TILE_ROWS, min(max(1, min(WAVES, fitting // wave)) * wave, fitting)))
    return rows, _whole_tiles(rows) * _whole_tiles(columns) * run.item


def filling_rows(run: Run) -> int:
    """Rows of a chunk that give every multiprocessor one output tile of the gradient's product."""
    return max(1, run.hardware.processors // -(-run.dim // TILE_WIDTH)) * TILE_ROWS


def _whole_tiles(size: int) -> int:
    return -(-size // LARGEST_TILE) * LARGEST_TILE


def memory(run: Run) -> list[Held]:
    """What one GPU holds. The copy of a gradient in 16 bits takes the place that the workspace has left; the anchors'
    gradient is in 16 bits from the start, unless candidates travel."""
    row, gradient = run.dim * run.item, run.dim * GRADIENT
    centroids = run.candidates - run.batch * (1 + run.negatives)
    columns = centroids + (run.own if run.travels else run.returned if run.gpus > 1 else run.own)
    anchors = run.local * (row if run.half and not run.travels else gradient)
    copies = (columns + (run.local if run.travels else 0)) * row if run.half else 0.0
    rows, weights = workspace(run)
    scratch = rows * gradient if run.half and not run.travels else 0.0
    activations = run.encoded_at_once * run.encoder.activation_bytes(run.max_length, run.half)
    held = [
        Held("weights, gradients, AdamW", run.encoder.state_bytes(run.half), ALWAYS),
        Held("embeddings of the local batch", run.local * run.texts * row, ALWAYS),
        Held("activations of a mini-batch", activations, IN_ENCODER),
        Held("embedding gradients kept for it", run.local * run.texts * row, IN_ENCODER),
        Held("gradients of the loss", anchors + columns * gradient, IN_LOSS),
        Held("loss workspace", max(weights + scratch, copies), IN_LOSS),
    ]
    if run.travels:
        held.append(Held("two chunks on the way, and their gradients", 2 * run.chunk * (row + gradient), IN_LOSS))
    elif run.gpus > 1:
        held.append(Held("candidates of all GPUs", run.gathered * row, IN_LOSS))
        held.append(Held("gradients scattered back", run.returned // run.gpus * gradient, IN_LOSS))
    if run.corpus and run.bank == "gpu":
        held.append(Held("shard of the corpus", index_bytes(run) / run.gpus, ALWAYS))
    elif run.corpus:
        held.append(Held("block of the corpus", min(run.chunk_bytes, index_bytes(run) / run.gpus), ALWAYS))
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
    traffic += chunks * run.candidates * run.dim * (2 * run.item + 2 * GRADIENT)  # performance.md 6.6 and 7
    rate = run.hardware.loss_share * run.hardware.rate(run.dtype)
    return Stage("loss", run.sweep * pairs * run.dim / rate, traffic / run.hardware.bandwidth)


def pairwise(run: Run, name: str, others: float, kept: bool) -> Stage:
    """Products of the corpus with other rows, spread over all GPUs. A search writes the scores and reads few of them
    again (fastcse/kernels/nearest.py). K-means writes none, and reads the corpus once more for the sums."""
    pairs, rate = float(run.corpus) * others / run.gpus, run.hardware.search_share * run.hardware.rate(run.bank_rate)
    shard = float(run.corpus) * run.dim * run.bank_item / run.gpus
    reads = 1 if kept else 2
    from_host = reads * shard / HOST_LINK if run.bank == "host" else 0.0
    traffic = reads * shard + run.bank_item * pairs * kept
    return Stage(name, 2 * pairs * run.dim / rate, traffic / run.hardware.bandwidth, from_host)


def messages(run: Run) -> list[Message]:
    """What the processes send one another in a step."""
    if run.gpus == 1:
        return []
    row, gradient = run.dim * run.item, run.dim * GRADIENT
    sent = {
        f"candidates{', both passes' if run.travels else ', all-gather'}": run.gathered * row * (1 + run.travels),
        f"their gradients{'' if run.travels else ', reduce-scatter'}": run.returned * gradient,
        "the model's gradients, all-reduce": 2 * run.encoder.parameters * GRADIENT,
    }
    if run.searches:
        sent["queries of the corpus, all-gather"] = run.batch * run.dim * run.bank_item
    return [_on_ring(run, name, amount) for name, amount in sent.items()]


def _on_ring(run: Run, name: str, amount: float) -> Message:
    carried = amount * (run.gpus - 1) / run.gpus
    return Message(name, carried, carried / run.hardware.link, carried / run.network if run.hosts > 1 else 0.0)


def step(run: Run) -> list[Stage]:
    """The stages of one training step."""
    stages = [encode(run, run.batch * run.texts, run.passes), loss(run)]
    if run.searches:
        stages.append(pairwise(run, "search of the corpus", run.batch, True))
    stages += [Stage(m.name, messages=m.seconds) for m in messages(run)]
    moved = run.encoder.parameters * OPTIMIZER_TRAFFIC
    return [*stages, Stage("optimizer", memory=moved / run.hardware.bandwidth)]


def index_bytes(run: Run) -> float:
    """Bytes of `CorpusIndex` in memory and on the disk: rows and ids. Texts come on top."""
    return run.corpus * (run.dim * run.bank_item + ID_BYTES)


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
