"""What the machines can do: one table, with where each number is from.

"performance.md" is the project's collection of published numbers, "design.md" its plan. Peaks are the makers' data
sheets, dense, for the SXM modules. What is attained of them was published for the H100 only; the same share is assumed
for the others, and nothing here was measured by fastcse.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of the data sheet's 989 TFLOP/s, large bfloat16 products attain 800; of 3.35 TB/s, kernels attain 3.0 (performance.md
# 7, and 1.7 for the nominal peak).
MATMUL_SHARE = 800 / 989
BANDWIDTH_SHARE = 3.0 / 3.35
# Of the rate of bare products: the sweep of a loss (630 of 800, performance.md 6.7 "expected"), searches and k-means
# (600 of 800, performance.md 4.1 and design.md 9), and the encoder's passes, which is an assumption: short sentences in
# layers a few hundred wide, where normalisation, attention and launches cost as much as products.
LOSS_SHARE = 630 / 800
SEARCH_SHARE = 600 / 800
ENCODER_SHARE = 0.4
# Of a GPU's memory: the rest is the CUDA context's, NCCL's buffers and gaps between blocks. An assumption.
USABLE_SHARE = 0.9
NETWORK = 50e9  # bytes a second in and out of a host: one port of 400 Gbit/s (design.md 9)
HOST_LINK = 55e9  # bytes a second from the host's memory to a GPU: PCIe 5 x16, of 64 nominal. An assumption.

HALVES = ("bf16", "fp16")
BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}


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


def _by_data_sheet(
    name: str, *, memory: float, half: float, tf32: float, single: float, bandwidth: float, link: float, sms: int
) -> Hardware:
    """Gigabytes, TFLOP/s, TB/s and GB/s of the data sheet. Links move their nominal bytes (design.md 9)."""
    rates = (MATMUL_SHARE * 1e12 * peak for peak in (half, tf32, single))
    bytes_a_second = BANDWIDTH_SHARE * 1e12 * bandwidth
    source = f"data sheet: {half:g} TFLOP/s in 16 bits, {bandwidth:g} TB/s"
    return Hardware(name, memory * 1e9, *rates, bytes_a_second, link * 1e9, sms, source)


GPUS = {
    "h100": _by_data_sheet(
        "h100", memory=80, half=989, tf32=494, single=67, bandwidth=3.35, link=450, sms=132
    ),
    "h200": _by_data_sheet(
        "h200", memory=141, half=989, tf32=494, single=67, bandwidth=4.8, link=450, sms=132
    ),
    "a100": _by_data_sheet(
        "a100", memory=80, half=312, tf32=156, single=19.5, bandwidth=2.04, link=300, sms=108
    ),
    "b200": _by_data_sheet(
        "b200", memory=180, half=2250, tf32=1100, single=80, bandwidth=8.0, link=900, sms=148
    ),
    # Two threads: bare float32 products and a copy of 65536 x 768, as benchmarks/RESULTS.md has them. There the sweep
    # takes 1.02 to 1.05 times the products. Halves are raised to float32. The memory is a guess.
    "cpu": Hardware(
        "cpu", memory=64e9, half=150e9, tf32=150e9, single=150e9, bandwidth=15e9, link=15e9, processors=0,
        source="two threads of an AMD EPYC, benchmarks/RESULTS.md", loss_share=0.95,
    ),
}  # fmt: skip
