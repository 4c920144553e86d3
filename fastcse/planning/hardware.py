"""What machines can do and what encoders cost: two tables, with where the numbers are from.

Peaks are the makers' data sheets, dense, for the SXM modules. What is attained of them was published for the H100 only:
of 989 TFLOP/s large bfloat16 products attain 800, of 3.35 TB/s kernels attain 3.0. The same shares are assumed for the
others; nothing here was measured by fastcse.

An encoder like BERT has `layers` layers, `hidden` wide, with a feed-forward part of four times the width:

    weights of a layer      12 hidden^2                      attention 4, feed-forward 8
    forward of one token    24 layers hidden^2 + 4 layers hidden length
    activations of a token  34 layers hidden bytes in 16 bits, twice that in 32

The last is Korthikanti et al., arXiv:2205.05198, equation 2, without the attention matrix, which fused attention does
not keep; autograd keeps 1.09 times that of BERT in float32, as a test measures.
"""

from __future__ import annotations

from dataclasses import dataclass

MATMUL_SHARE, BANDWIDTH_SHARE = 800 / 989, 3.0 / 3.35
# Of the rate of bare products: the sweep of a loss, searches and k-means, and the encoder's passes. The last is an
# assumption: short sentences in layers a few hundred wide, where normalisation, attention and launches cost as much.
LOSS_SHARE, SEARCH_SHARE, ENCODER_SHARE = 630 / 800, 600 / 800, 0.4
# Of a GPU's memory: the rest is the CUDA context's, NCCL's buffers and gaps between blocks. An assumption.
USABLE_SHARE = 0.9
HOST_LINK = 55e9  # bytes a second from the host's memory to a GPU: PCIe 5 x16, of 64 nominal. An assumption.

HALVES = ("bf16", "fp16")
BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}

ACTIVATION_BYTES = 34  # for each token, layer and unit of width, in 16 bits
# Bytes for each parameter: float32 weight, gradient, and AdamW's two moments; mixed precision keeps a 16-bit copy.
TRAINED_BYTES, COPY_BYTES = 4 + 4 + 8, 2
# Bytes that AdamW moves for each parameter: weight and moments read and written, gradient read.
OPTIMIZER_TRAFFIC = 8 + 16 + 4


@dataclass(frozen=True)
class Hardware:
    """One processor of a run. Rates are what is attained, not what the data sheet promises.

    Args:
        name:       as on the command line.
        memory:     bytes.
        half, tf32, single: floating-point operations a second in products of 16-bit, TF32 and float32 operands.
        bandwidth:  bytes a second, read or written.
        link:       bytes a second into one GPU from the others of its host.
        processors: multiprocessors of a GPU, which the loss' workspace depends on; 0 for a CPU.
        source:     where the numbers are from.
        loss_share, search_share, encoder_share: of the rate of bare products.

    Example:
        >>> f"{GPUS['h100'].rate('bf16'):.3g}, {GPUS['h100'].rate('fp32'):.3g}"
        '8e+14, 5.42e+13'
    """

    name: str
    memory: float
    half: float
    tf32: float
    single: float
    bandwidth: float
    link: float
    processors: int
    source: str
    loss_share: float = LOSS_SHARE
    search_share: float = SEARCH_SHARE
    encoder_share: float = ENCODER_SHARE
    usable_share: float = USABLE_SHARE

    def rate(self, dtype: str) -> float:
        """Floating-point operations a second in bare products of `dtype`: "bf16" | "fp16" | "tf32" | "fp32"."""
        return self.half if dtype in HALVES else self.tf32 if dtype == "tf32" else self.single

    @property
    def usable(self) -> float:
        """Bytes that a run may fill."""
        return self.usable_share * self.memory


# Of two threads of a CPU: bare float32 products, and a copy of 65536 x 768. There the sweep takes 1.02 to 1.05 times
# the products. Halves are raised to float32. The memory is a guess.
CPU = Hardware(
    "cpu", 64e9, *[150e9] * 3, 15e9, 15e9, 0, "two threads of an AMD EPYC, benchmarks/RESULTS.md", loss_share=0.95
)
# name, GB, TFLOP/s in 16 bits, TF32 and float32, TB/s, GB/s of NVLink (its nominal bytes), multiprocessors
DATA_SHEETS = [
    ("h100", 80, 989, 494, 67, 3.35, 450, 132),
    ("h200", 141, 989, 494, 67, 4.8, 450, 132),
    ("a100", 80, 312, 156, 19.5, 2.04, 300, 108),
    ("b200", 180, 2250, 1100, 80, 8.0, 900, 148),
]
GPUS = {
    name: Hardware(
        name, memory * 1e9, *(MATMUL_SHARE * 1e12 * peak for peak in (half, tf32, single)),
        BANDWIDTH_SHARE * 1e12 * bandwidth, link * 1e9, processors,
        f"data sheet: {half:g} TFLOP/s in 16 bits, {bandwidth:g} TB/s",
    )
    for name, memory, half, tf32, single, bandwidth, link, processors in DATA_SHEETS
} | {"cpu": CPU}  # fmt: skip


@dataclass(frozen=True)
class Encoder:
    """A model by its sizes; `parameters` counts all of them, embeddings too.

    Example:
        >>> f"{ENCODERS['bert-base'].parameters:,}"
        '109,482,240'
        >>> f"{ENCODERS['bert-base'].flops(tokens=32):.2e}"
        '5.47e+09'
        >>> Encoder.of(7_000_000_000, 4096).layers
        35
    """

    name: str
    layers: int
    hidden: int
    parameters: int

    @classmethod
    def of(cls, parameters: int, dim: int) -> Encoder:
        """The encoder of that many parameters that is as wide as its embeddings, all of them in layers."""
        return cls(f"{parameters:,} parameters", max(1, round(parameters / (12 * dim**2))), dim, parameters)

    @classmethod
    def bert(cls, name: str, layers: int, hidden: int) -> Encoder:
        """BERT's count: 30,522 words, 512 positions and 2 segments, then layers with biases and norms, and the
        pooler."""
        embeddings = (30_522 + 512 + 2 + 2) * hidden  # the last 2: the norm's scale and offset
        layer = 12 * hidden**2 + 13 * hidden
        return cls(name, layers, hidden, embeddings + layers * layer + hidden**2 + hidden)

    def flops(self, tokens: int) -> float:
        """Operations of a forward pass over one text."""
        return tokens * self.layers * self.hidden * (24.0 * self.hidden + 4.0 * tokens)

    def activation_bytes(self, tokens: int, half: bool) -> float:
        """Bytes that the backward pass of one text needs."""
        return tokens * self.layers * self.hidden * ACTIVATION_BYTES * (1 if half else 2)

    def state_bytes(self, half: bool) -> float:
        """Bytes of weights, gradients and optimizer on every GPU."""
        return self.parameters * (TRAINED_BYTES + (COPY_BYTES if half else 0))


SIZES = {"minilm": (6, 384), "minilm-l12": (12, 384), "bert-base": (12, 768), "bert-large": (24, 1024)}
ENCODERS = {name: Encoder.bert(name, *size) for name, size in SIZES.items()}
