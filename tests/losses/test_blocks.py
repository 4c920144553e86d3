"""Extra blocks, log-weights, id masks, positives at any column, learnable temperature: against the oracle and torch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import Case, Extra, oracle, to64
from yardstick import assert_rule

import fastcse

every_loss = pytest.mark.parametrize("loss", ["infonce", "focal"])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "none"])
every_direction = pytest.mark.parametrize("symmetric", [False, True], ids=["one_way", "symmetric"])

FOCAL = {"infonce": {}, "focal": {"focal": True}}
N, M, D = 12, 17, 7


def rows(count, seed):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def integers(count, high, seed):
    return torch.randint(0, high, (count,), generator=torch.Generator().manual_seed(seed))


# Neighbouring ids past 2^53 are one and the same in float64.
ANCHOR_ID = torch.tensor([5, -1, 5, 2**60, 2**60 + 1, 3, 0, 0, 8, 9, -(2**62), 4])
CANDIDATE_ID = torch.cat([ANCHOR_ID.flip(0), torch.tensor([5, 5, 2**60 + 1, 77, 0])])  # holds duplicates
POSITIVES = {
    "in order": None,
    "reversed": torch.arange(M - 1, M - 1 - N, -1),
    "anywhere": torch.tensor([3, 16, 0, 7, 7, 12, 1, 16, 5, 2, 9, 4]),  # two columns are the positive of two anchors
    "all the same": torch.full((N,), 6),
}
BLOCKS = {
    "none": (),
    "one": (Extra(rows(5, 1)),),
    "own weight": (Extra(rows(N, 2), own_log_weight=math.log(3)),),
    "column weights": (Extra(rows(9, 3), log_weight=torch.linspace(-3, 2, 9)),),
    "no gradient": (Extra(rows(20, 4), grad=False),),
    "ids": (Extra(rows(6, 5), id=torch.tensor([5, 2**60, 5, 0, 1, -(2**62)])),),
    "many": (
        Extra(rows(1, 6)),
        Extra(rows(30, 7), torch.linspace(1, -1, 30), 0.7, integers(30, 6, 0)),
        Extra(rows(N, 8), own_log_weight=-1.5, grad=False),
        Extra(rows(13, 9), torch.zeros(13), grad=False),
    ),
}


def case_of(loss, positive="in order", blocks="none", ids=False, **options):
    extras = BLOCKS[blocks]
    if not ids:
        extras = tuple(replace(e, id=None) for e in extras)
    ids = dict(anchor_id=ANCHOR_ID, candidate_id=CANDIDATE_ID) if ids else {}
    options = {"temperature": 0.2} | options
    return Case(rows(N, 10), rows(M, 11), POSITIVES[positive], extras, **ids, **options, **FOCAL[loss])


def upstream_of(reduction):
    return {"mean": None, "none": torch.linspace(-1, 2, N)}[reduction]


@every_loss
@every_reduction
@pytest.mark.parametrize("ids", [False, True], ids=["unmasked", "ids"])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_blocks(run, loss, blocks, ids, reduction):
    case, upstream = case_of(loss, "anywhere", blocks, ids), upstream_of(reduction)
    assert_rule(case, run(case, reduction=reduction, upstream=upstream), upstream, reduction)


@every_loss
@every_reduction
@pytest.mark.parametrize("ids", [False, True], ids=["unmasked", "ids"])
@pytest.mark.parametrize("positive", POSITIVES)
def test_symmetric_with_blocks_and_positives(run, loss, positive, ids, reduction):
    case, upstream = case_of(loss, positive, "many", ids, symmetric=True), upstream_of(reduction)
    assert_rule(case, run(case, reduction=reduction, upstream=upstream), upstream, reduction)


@every_loss
@pytest.mark.parametrize("m", [1, 2, 5])
@every_direction
def test_fewer_candidates_than_anchors(run, loss, m, symmetric):
    case = replace(case_of(loss), candidate=rows(m, 12), positive=torch.arange(N) % m, symmetric=symmetric)
    assert_rule(case, run(case, reduction="mean"), reduction="mean")


@every_loss
@every_reduction
@every_direction
@pytest.mark.parametrize("normalize", [True, False])
def test_learnable_temperature(run, loss, reduction, symmetric, normalize):
    case = case_of(loss, "anywhere", "many", ids=True, symmetric=symmetric, normalize=normalize, temperature=0.4)
    upstream = upstream_of(reduction)
    got = run(case, reduction=reduction, upstream=upstream, learn=True)
    assert got.dtemperature.shape == ()
    assert_rule(case, got, upstream, reduction)
    exact = float(oracle(case, upstream).dtemperature)
    assert abs(float(got.dtemperature) - exact) <= 1e-4 * abs(exact)


@every_direction
@every_reduction
def test_temperature_learns_alone(forced, device, symmetric, reduction):
    # No row wants a gradient, the temperature does.
    case = case_of("focal", symmetric=symmetric)
    temperature = torch.tensor(0.2, device=device, requires_grad=True)
    loss = forced(
        fastcse.focal_infonce_loss,
        case.anchor.to(device),
        case.candidate.to(device),
        temperature=temperature,
        symmetric=symmetric,
        reduction=reduction,
    )
    loss.sum().backward()
    upstream = None if reduction == "mean" else torch.ones(N)
    np.testing.assert_allclose(float(temperature.grad), float(oracle(case, upstream).dtemperature), rtol=1e-4)


def test_temperature_of_one_element_and_of_another_dtype(forced, device):
    anchor, candidate = rows(4, 1).to(device), rows(4, 2).to(device)
    expected = forced(fastcse.infonce_loss, anchor, candidate, temperature=0.25)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        temperature = torch.tensor(0.25, dtype=dtype, device=device)
        got = forced(fastcse.infonce_loss, anchor, candidate, temperature=temperature)
        torch.testing.assert_close(got, expected)
        assert got.dtype == torch.float32


# ---------------------------------------------------------------- what the arguments mean


def test_a_tensor_a_block_and_a_list_say_the_same(forced, device):
    anchor, candidate, hard = (rows(5, k).to(device) for k in (1, 2, 3))
    forms = [hard, [hard], (hard,), fastcse.CandidateBlock(hard), [fastcse.CandidateBlock(hard[:2]), hard[2:]]]
    losses = [forced(fastcse.infonce_loss, anchor, candidate, negatives=form, reduction="none") for form in forms]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-6, atol=1e-6)
    empty = forced(fastcse.infonce_loss, anchor, candidate, negatives=[], reduction="none")
    torch.testing.assert_close(empty, forced(fastcse.infonce_loss, anchor, candidate, reduction="none"))


@every_direction
def test_candidates_past_the_positives_are_negatives_like_a_block(run, symmetric):
    long = case_of("focal")
    short = replace(long, candidate=long.candidate[:N], extras=(Extra(long.candidate[N:]),), symmetric=symmetric)
    one, two = run(replace(long, symmetric=symmetric)), run(short)
    torch.testing.assert_close(one.loss, two.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.danchor, two.danchor, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.dcandidate, torch.cat([two.dcandidate, two.dextras[0]]), rtol=1e-5, atol=1e-6)


def test_own_log_weight_is_a_multiplicity(run):
    case = case_of("infonce")
    hard = rows(N, 13)
    twice = run(replace(case, extras=(Extra(hard, own_log_weight=math.log(2)),))).loss
    exact = []
    for i in range(N):
        doubled = replace(case, extras=(Extra(torch.cat([hard, hard[i : i + 1]])),))
        exact.append(oracle(doubled).loss[i])
    np.testing.assert_allclose(to64(twice), exact, rtol=1e-5, atol=1e-6)


def test_a_log_weight_of_minus_infinity_leaves_the_column_out(run):
    case = case_of("focal")
    hard, weight = rows(6, 14), torch.tensor([0.0, -torch.inf, 0, 0, -torch.inf, 0])
    masked = run(replace(case, extras=(Extra(hard, weight),)))
    left = run(replace(case, extras=(Extra(hard[weight == 0]),)))
    torch.testing.assert_close(masked.loss, left.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(masked.danchor, left.danchor, rtol=1e-5, atol=1e-6)
    assert (masked.dextras[0].cpu()[weight != 0] == 0).all()


@pytest.mark.parametrize("weight", [60.0, -60.0])
def test_large_log_weights_neither_overflow_nor_vanish(run, weight):
    case = replace(case_of("infonce"), extras=(Extra(rows(4, 15), torch.full((4,), weight)),))
    for reduction in ("mean", "none"):
        assert_rule(case, run(case, reduction=reduction), reduction=reduction)


@pytest.mark.interpreted
@every_direction
def test_equal_ids_are_left_out_unless_they_are_the_positive(run, symmetric):
    # Candidate 1 repeats anchor 0's text; anchor 0's own positive carries the same id and stays.
    anchor, candidate = rows(3, 16), rows(3, 17)
    ids = torch.tensor([4, 4, 9])
    case = Case(anchor, candidate, anchor_id=ids, candidate_id=ids, temperature=0.5, symmetric=symmetric)
    got = run(case)
    unit = [torch.nn.functional.normalize(z.double(), dim=1) for z in (anchor, candidate)]
    s = unit[0] @ unit[1].T / 0.5

    def row(table, i, seen):
        return math.log(sum(math.exp(table[i, j]) for j in seen)) - float(table[i, i])

    seen = [[0, 2], [1, 2], [0, 1, 2]]
    expected = [row(s, i, seen[i]) for i in range(3)]
    if symmetric:
        expected = [(e + row(s.T, i, seen[i])) / 2 for i, e in enumerate(expected)]
    np.testing.assert_allclose(to64(got.loss), expected, rtol=1e-6, atol=1e-6)
    assert_rule(case, got)


def test_ids_may_live_in_the_block_alone(run):
    # Candidates without ids are never masked, whatever the anchors' ids are.
    case = replace(case_of("focal", "anywhere", "ids", ids=True), candidate_id=None)
    assert_rule(case, run(case, reduction="mean"), reduction="mean")
    unmasked = run(case_of("focal", "anywhere", "ids"), reduction="mean")
    assert abs(float(run(case, reduction="mean").loss) - float(unmasked.loss)) > 1e-3
