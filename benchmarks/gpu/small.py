"""Every kernel once, small, in each form: for compute-sanitizer, and to see at once what does not run.

python -m benchmarks.gpu.small --output FILE [--dry]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import fastcse
from fastcse.files import write_json
from fastcse.kernels.configs import HALF, HALF_DESCRIBED, INTERPRETED, TileConfig, pinned

from .workload import parser

LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def calls(backend: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Name -> a scalar that reaches another kernel, or another form of one."""
    f, plain, quadruplet, topk = fastcse.focal_infonce_loss, fastcse.infonce_loss, fastcse.quadruplet_loss, fastcse.topk
    b = {"backend": backend}

    def own(x: Tensor) -> Tensor:
        return torch.arange(len(x), device=x.device)

    def adversarial(a: Tensor, c: Tensor) -> Tensor:
        moved = [fastcse.adversarial_positive(a, c, step=0.1, mode=mode, noise=0.0, **b) for mode in ("l2", "sign")]
        return torch.stack(moved).float().square().mean()

    def clusters(a: Tensor, c: Tensor) -> Tensor:
        found = fastcse.assign(a.detach(), c.detach()[:9], second=True, metric="euclidean", **b)
        sums = fastcse.cluster_sums(a.detach(), found.index[:, 0], 9, normalize=True, **b).sums
        return sums.square().mean() + found.value.square().mean()

    def clusterns(a: Tensor, c: Tensor) -> Tensor:
        centroids = c.detach()[:9]
        return fastcse.clusterns_loss(a, c, own(a) % 9, centroids, own(centroids), alpha=0.1, margin_weight=1.0, **b)

    def learned(a: Tensor, c: Tensor) -> Tensor:
        return f(a, c, temperature=torch.tensor(0.07, device=a.device, requires_grad=True), **b)

    def block(a: Tensor, c: Tensor) -> Tensor:
        return f(a, c, negatives=fastcse.CandidateBlock(c.detach().flip(0), own_log_weight=1.0), **b)

    def by_index(a: Tensor, c: Tensor) -> Tensor:
        options = {"candidate": c, "margin": 2.0, "reduction": "none"}
        return quadruplet(a, c, own(a) // 3 - 1, a, **options, **b).square().sum()

    def by_distance(a: Tensor, c: Tensor) -> Tensor:
        ids = {"query_id": own(a), "corpus_id": own(a)}
        return topk(a.detach(), c.detach(), 7, metric="l2", **ids, **b).values.square().mean()

    return {
        "clusters": clusters,
        "ClusterNS": clusterns,
        "quadruplet": lambda a, c: 3 * quadruplet(a, c, a.flip(0), c.flip(0), margin=(2.0, 1.0), form="classic", **b),
        "quadruplet by index": by_index,
        "adversarial positive": adversarial,
        "gradients": lambda a, c: f(a, c, **b),
        "sums": lambda a, c: f(a.detach(), c.detach(), **b),
        "both directions": lambda a, c: f(a, c, symmetric=True, **b),
        "rows": lambda a, c: f(a, c, reduction="none", **b).square().sum(),
        "statistics": lambda a, c: f(a, c, return_stats=True, **b)[0],
        "ids": lambda a, c: plain(a, c, anchor_id=own(a) // 2, candidate_id=own(c) // 2, **b),
        "learned temperature": learned,
        "block with own weight": block,
        "out of range": lambda a, c: plain(a, c, temperature=0.005, **b),
        "not unit rows": lambda a, c: plain(a, c, normalize=False, temperature=5.0, **b),
        "nearest": lambda a, c: topk(a.detach(), c.detach(), 7, **b).values.square().mean(),
        "nearest by distance, ids": by_distance,
        "similarity": lambda a, c: fastcse.similarity(a, c, **b).square().mean(),
    }


def forms(dry: bool) -> dict[str, TileConfig]:
    """The plain and the persistent form."""
    if dry:
        return {"plain": INTERPRETED, "persistent": INTERPRETED._replace(programs=1)}
    return {"plain": HALF._replace(block_d=32), "persistent": HALF_DESCRIBED._replace(block_d=32)}


def errors(device: str, dry: bool) -> Iterator[tuple[str, float, bool]]:
    """(what, relative error against the reference, whether it is small enough)."""
    sizes = ((40, 24),) if dry else ((300, 72), (257, 33))
    for form, config in forms(dry).items():
        for dtype, allowed in LARGEST_ERROR.items():
            for n, d in sizes:
                rows = [torch.randn(n, d, device=device, dtype=dtype) for _ in range(2)]
                exact = calls("reference")
                for name, fn in calls("triton").items():
                    with pinned(config):
                        got = _gradients(fn, rows)
                    want = _gradients(exact[name], [x.float() for x in rows])
                    error = max(((g.float() - w).norm() / w.norm()).item() for g, w in zip(got, want))
                    what = f"{name}, {form}, {str(dtype).removeprefix('torch.')}, N = {n}, D = {d}"
                    yield what, error, error <= allowed


def _gradients(fn: Callable, rows: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in rows]
    value = fn(*leaves)
    if value.requires_grad:
        value.backward()
    return [value.detach(), *(x.grad for x in leaves if x.grad is not None)]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser("small", __doc__).parse_args(argv)
    torch.manual_seed(0)
    found = []
    for what, error, fine in errors("cpu" if arguments.dry else "cuda", arguments.dry):
        found.append({"what": what, "error": error, "fine": fine})
        print(f"{'fine ' if fine else 'WRONG'} {error:.1e} {what}", flush=True)
    write_json(arguments.output, found)
    wrong = sum(not one["fine"] for one in found)
    print(f"{len(found)} calls, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
