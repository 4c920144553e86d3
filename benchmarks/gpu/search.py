"""Searches the sweep's configurations on this device and writes the winners, by type, width and kind.

    python -m benchmarks.gpu.search --output FILE [--dry] [--seconds 130]

A configuration that does not compile, does not fit, or whose gradients differ from the default's cannot win.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
import torch.multiprocessing as multiprocessing

from fastcse.bench.timing import clock
from fastcse.files import write_json
from fastcse.kernels.configs import INTERPRETED, KINDS, TileConfig, default_config, pinned

from .workload import call, parser, rows_of

N, COMPILERS, ROUNDS = 16384, 8, 9
# Most wanted first: the time that is left decides how many are searched.
WANTED = ("gradients", "sums", "busy")
JOBS = (("bfloat16", 768), ("bfloat16", 1024), ("bfloat16", 384), ("float16", 768), ("float32", 768))


def candidates(dtype: str, dry: bool) -> list[TileConfig]:
    """First round: tiles, warps, stages and forms."""
    if dry:
        return [INTERPRETED, INTERPRETED._replace(programs=1), INTERPRETED._replace(block_m=16, parts=1)]
    d = 32 if dtype == "float32" else 64
    # Rows and columns of a tile, group, warps, stages, parts; programs on a multiprocessor, where it is persistent.
    plain = [(128, 128, 8, 8, 3, 8), (128, 128, 8, 8, 4, 8), (128, 128, 8, 4, 3, 8), (128, 256, 8, 8, 3, 8),
             (256, 128, 8, 8, 3, 8), (128, 64, 8, 4, 4, 4), (128, 64, 8, 8, 3, 4)]  # fmt: skip
    described = [(128, 128, 8, 4, 3, 8, 2), (128, 128, 8, 4, 3, 4, 2), (128, 128, 8, 8, 3, 8, 1),
                 (128, 128, 8, 8, 4, 8, 1), (128, 256, 8, 8, 3, 8, 1), (128, 256, 8, 8, 4, 8, 1),
                 (256, 128, 8, 8, 3, 8, 1), (128, 64, 8, 4, 4, 4, 2)]  # fmt: skip
    found = plain + (described if torch.cuda.get_device_capability() >= (9, 0) else [])
    return [TileConfig(rows, columns, d, *rest) for rows, columns, *rest in found]


def variations(best: TileConfig) -> list[TileConfig]:
    """Second round, around the winner: raster order, and the flattened loop."""
    found = [best._replace(group=group) for group in (4, 16, 32)]
    return found + ([best._replace(flatten=not best.flatten)] if best.programs else [])


def compile_some(work: list[tuple[str, str, TileConfig]], device: str) -> None:
    """Compiles into the cache on disk, which the timing process then finds; failures are found again there."""
    for kind, dtype, config in work:
        try:
            with pinned(config):
                call(kind, *rows_of(512, 768, dtype, device))()
        except Exception as error:  # any failure of a compiler is one configuration's
            print(f"{kind} {dtype} {tuple(config)}: {_one_line(error)}", flush=True)


def time_config(kind: str, rows: tuple, config: TileConfig, want: list[torch.Tensor], device: str) -> float:
    """Median milliseconds; raises what the configuration raises, and ValueError where its gradients are wrong."""
    run, time_one = call(kind, *rows), clock(device)
    with pinned(config):
        start = time.perf_counter()
        loss = run()
        first = time.perf_counter() - start
        got = [loss, *(x.grad for x in rows if x.grad is not None)]
        for g, w in zip(got, want):
            if not (g.float() - w.float()).norm() <= 1e-2 * w.float().norm():
                raise ValueError("its result differs from the default's")
        return 1e3 * (statistics.median(time_one(run) for _ in range(ROUNDS)) if device == "cuda" else first)


def search(dtype: str, d: int, kind: str, device: str, dry: bool) -> dict:
    """All that was tried for one entry of the table, fastest first."""
    rows = rows_of(16 if dry else N, 8 if dry else d, dtype, device)
    capability = (9, 0) if dry else torch.cuda.get_device_capability()
    default = INTERPRETED if dry else default_config(capability, getattr(torch, dtype), kind)
    with pinned(default):
        loss = call(kind, *rows)()
        want = [loss, *(x.grad.clone() for x in rows if x.grad is not None)]
    tried, failed = {}, {}

    def attempt(configs: list[TileConfig]) -> None:
        for config in configs:
            if config in tried or config in failed:
                continue
            try:
                tried[config] = time_config(kind, rows, config, want, device)
            except Exception as error:  # any failure of a compiler is one configuration's
                failed[config] = _one_line(error)

    attempt([default, *candidates(dtype, dry)])
    attempt([] if dry else variations(min(tried, key=tried.get)))
    best = min(tried, key=tried.get)
    print(f"{dtype} D = {d} {kind}: {tried[best]:.3f} ms, default {tried[default]:.3f} ms, {tuple(best)}", flush=True)
    return {
        "dtype": dtype, "d": d, "kind": kind, "best": best._asdict(), "best_ms": tried[best],
        "default_ms": tried[default],
        "tried": [{**c._asdict(), "ms": ms} for c, ms in sorted(tried.items(), key=lambda x: x[1])],
        "failed": [{**c._asdict(), "why": why} for c, why in failed.items()],
    }  # fmt: skip


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def compile_all(dtypes: list[str], device: str) -> None:
    """Fills the compiler's cache by several processes: compiling takes longer than timing."""
    work = [(kind, dtype, c) for dtype in dtypes for kind in KINDS for c in candidates(dtype, False)]
    # Not a pool: a compiler that crashes ends its own share only.
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=compile_some, args=(work[i::COMPILERS], device)) for i in range(COMPILERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def main(argv: Sequence[str] | None = None) -> int:
    options = parser("search", __doc__)
    options.add_argument("--seconds", type=float, default=130)
    arguments = options.parse_args(argv)
    device, start = "cpu" if arguments.dry else "cuda", time.monotonic()
    if not arguments.dry:
        compile_all(["bfloat16"], device)
    arch = "dry" if arguments.dry else "sm_{}{}".format(*torch.cuda.get_device_capability())
    found, winners = [], {}
    for dtype, d, kind in [(*job, kind) for job in (JOBS[:1] if arguments.dry else JOBS) for kind in WANTED]:
        if time.monotonic() - start > arguments.seconds:
            print(f"time is over before {dtype} D = {d} {kind}: not searched", flush=True)
            break
        found.append(search(dtype, d, kind, device, arguments.dry))
        winners.setdefault(arch, {}).setdefault(dtype, {}).setdefault(str(d), {})[kind] = found[-1]["best"]
        # After each entry: a search that is cut off keeps what it found.
        write_json(arguments.output, {"winners": winners, "searches": found})
    print(f"{len(found)} entries in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
