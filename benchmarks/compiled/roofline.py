"""What a compiled sweep can reach on paper, for each target: so that a design is judged before it runs.

A model, not a measurement: peak rates from the makers' data sheets, and how much of a rate a good product reaches. A
configuration that misses a target here cannot reach it; one that meets it may still miss it on a device.
"""

from __future__ import annotations

from typing import NamedTuple

from .cubin import Compiled

# Dense bfloat16 TFLOP/s, TB/s, multiprocessors (data sheets of A100 SXM, H100 SXM, B200).
PEAK = {80: (312, 2.0, 108), 90: (989, 3.35, 132), 100: (2250, 8.0, 148)}
# Of the peak that large products of the vendor's library reach; 800 of 989 TFLOP/s is published for 8192^3 on an H100.
PRODUCT_SHARE, BANDWIDTH_SHARE = 0.81, 0.9
# Exponentials a multiprocessor takes in a cycle, and plain operations (128 lanes); an epilogue has about 10 of them an
# element: two scales, the transform, its derivative, shift, bias, mask, weight, rounding, sum.
EXP_RATE, LANES, PLAIN_OPS = 16, 128, 10
# Flops of a multiprocessor in a cycle at peak.
FLOPS = {80: 2048, 90: 4096, 100: 8192}
# N, D, and the largest ratio to three bare products that is wanted.
TARGETS = ((16384, 384, 1.35), (16384, 768, 1.2), (16384, 1024, 1.2), (65536, 384, 1.35), (65536, 768, 1.2),
           (65536, 1024, 1.2), (131072, 768, 1.2), (1048576, 768, 1.2))  # fmt: skip


class Prediction(NamedTuple):
    """One target for one compiled sweep. Milliseconds; ratio to three bare products; TFLOP/s counted at 6 N^2 D."""

    form: str
    arch: int
    tile: str
    programs_per_sm: int
    n: int
    d: int
    sweep_ms: float
    total_ms: float
    ratio: float
    tflops: float
    wanted: float
    reachable: bool


def predict(line: Compiled, n: int, d: int, wanted: float) -> Prediction:
    """Forward and backward of one direction in bfloat16: the sweep, then two products."""
    peak, bandwidth, _ = PEAK[line.arch]
    product = 2 * n * n * d / (peak * 1e12 * PRODUCT_SHARE)
    # The weights are written once and read by each product; both are counted at the bandwidth's expense.
    panel = 2 * n * n / (bandwidth * 1e12 * BANDWIDTH_SHARE)
    bare = 3 * max(product, panel)
    gemm_cycles = 2 * d / (FLOPS[line.arch] * PRODUCT_SHARE)  # an element of the tile
    epilogue_cycles = 1 / EXP_RATE + PLAIN_OPS / LANES
    # Two programs hide one's epilogue under the other's product; one program does one after the other.
    hidden = line.programs_per_sm >= 2
    cycles = max(gemm_cycles, epilogue_cycles) if hidden else gemm_cycles + epilogue_cycles
    sweep = max(product * cycles / gemm_cycles, panel)
    total = sweep + 2 * max(product, panel)
    return Prediction(
        f"{line.kernel}: {line.form}", line.arch, line.tile, line.programs_per_sm, n, d, 1e3 * sweep, 1e3 * total,
        total / bare, 6 * n * n * d / total / 1e12, wanted, total / bare <= wanted,
    )  # fmt: skip


def predictions(lines: list[Compiled]) -> list[Prediction]:
    """Every target for the sweeps that store gradient weights of bfloat16 rows."""
    sweeps = [x for x in lines if x.form in ("gradients", "scaled") and x.dtype == "bf16"]
    return [predict(line, *target) for line in sweeps for target in TARGETS]
