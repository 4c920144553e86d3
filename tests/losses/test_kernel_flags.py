"""The sweep kernels of Triton by their flags: calls in which every pair of flags occurs, in both forms and every type.

The engine above them is the same code on every backend; cpp and reference cover its combinations.
"""

from itertools import combinations

import pytest
import torch
from launches import covering, pairs, recorded
from oracle import Case, Extra, make_rows
from yardstick import assert_rule

BOTH = (False, True)
FLAGS = ("STORE", "WEIGHTED", "F_SUM", "IDS", "LEAVE_OWN_OUT", "OWN_WEIGHT", "STATS", "BOTH", "GATED")
CALLS = {
    "loss": ["infonce", "focal", "angular"],
    "symmetric": [False, True],
    "block": ["none", "plain", "own weight"],
    "ids": [False, True],
    "stats": [False, True],
    "reduction": ["mean", "none"],
    "temperature": [0.05, 0.005],
    "mode": ["gradients", "learned", "value"],
}
# What no launch is: by-products of stored gradients where none are stored; an own weight in the block that holds the
# positives, the only one with a column direction; statistics beside weighted gradients, and by-products behind a gate.
NEVER = [
    {"STORE": False, "WEIGHTED": True}, {"STORE": False, "F_SUM": True}, {"LEAVE_OWN_OUT": True, "OWN_WEIGHT": True},
    {"BOTH": True, "LEAVE_OWN_OUT": False}, {"BOTH": True, "OWN_WEIGHT": True},
    {"STATS": True, "WEIGHTED": True}, {"STATS": True, "F_SUM": True},
    {"GATED": True, "WEIGHTED": True}, {"GATED": True, "STATS": True},
    {"GATED": True, "BOTH": True},
]  # fmt: skip
N, M = 34, 37  # two tiles each way in the interpreter


def case_of(picked, dtype, d):
    anchor, candidate, positive = make_rows("clustered", N, M, d, dtype, seed=1)
    block = torch.randn(N, d, generator=torch.Generator().manual_seed(2)).to(dtype)
    ids = torch.arange(M) % 11 if picked["ids"] else None
    extras = (
        ()
        if picked["block"] == "none"
        else (
            Extra(block, own_log_weight=0.7 * (picked["block"] == "own weight"), id=None if ids is None else ids[:N]),
        )
    )
    kind = {"infonce": {}, "focal": {"focal": True}, "angular": {"angular": True}}[picked["loss"]]
    return Case(
        anchor, candidate, positive, extras, temperature=picked["temperature"], symmetric=picked["symmetric"],
        anchor_id=None if ids is None else ids[:N], candidate_id=ids, **kind,
    )  # fmt: skip


@pytest.mark.interpreted
@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize(
    ("dtype", "d"),
    [
        (torch.float32, 24),
        (torch.float32, 23),
        (torch.float16, 24),
        (torch.bfloat16, 23),
        pytest.param(torch.float16, 23, marks=pytest.mark.whole),
        pytest.param(torch.bfloat16, 24, marks=pytest.mark.whole),
    ],
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_every_pair_of_flags_is_right(run, backend, device, dtype, d):
    flags = set()
    for picked in covering(CALLS):
        case, mean = case_of(picked, dtype, d), picked["reduction"] == "mean"
        upstream = None if mean else torch.linspace(-1, 2, N)
        grad, learn = picked["mode"] != "value", picked["mode"] == "learned"
        with recorded() as seen:
            got = run(
                case, reduction=picked["reduction"], upstream=upstream, learn=learn, grad=grad,
                return_stats=picked["stats"],
            )  # fmt: skip
        if grad:
            if dtype != torch.float32:  # in half precision the yardstick's own gradient may overflow
                got.dtemperature = None
            assert_rule(case, got, upstream, picked["reduction"])
        flags |= {
            pair for name, options in seen if "STORE" in options for pair in pairs({k: options[k] for k in FLAGS})
        }
        if device.type == "cpu":  # a GPU chooses the form by its architecture too
            form = "persistent_sweep_kernel" if d == 24 else "sweep_kernel"
            assert {name for name, options in seen if "STORE" in options} == {form}
    every = {next(iter(pairs({a: x, b: y}))) for a, b in combinations(FLAGS, 2) for x in BOTH for y in BOTH}
    assert every - flags == {next(iter(pairs(never))) for never in NEVER}
