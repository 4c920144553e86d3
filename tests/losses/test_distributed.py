"""The contract of several processes: the mean over ranks is what one process has of the whole batch, value and
gradient, for every loss. Real processes over gloo, in float64 unless a test says otherwise."""

import functools
import re

import pytest
import torch
import torch.distributed as dist
from ranks import together

import fastcse
from fastcse import CandidateBlock
from fastcse.distributed import RaggedGather, average_gradient, gather_rows, gathered_loss

D, H = 5, 4
EVEN, UNEVEN = (3, 3), (4, 1, 3)


def batch(counts, dtype=torch.float64):
    """Inputs of an encoder, ids, clusters of the whole batch, and a cut of them by rank."""
    g = torch.Generator().manual_seed(7)
    n = sum(counts)
    names = ("anchor", "candidate", "negative", "corpus")
    # Drawn in float32, so that both types hold the same numbers.
    whole = {name: torch.randn(n, H, generator=g).to(dtype) for name in names}
    whole["weight"] = torch.randn(n, generator=g).to(dtype)
    whole["anchor_id"] = torch.arange(n) % max(n - 1, 1)
    whole["candidate_id"] = torch.arange(n) % max(n - 2, 1)
    whole["index"] = torch.randint(-1, 2, (n,), generator=g)
    whole["index"][:2] = 1
    return whole


def own(whole, counts, rank):
    first = sum(counts[:rank])
    return {name: x[first : first + counts[rank]] for name, x in whole.items()}


def parameters(dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    encoder = torch.randn(H, D, generator=g).to(dtype).requires_grad_()
    log_temperature = torch.tensor(-0.5, dtype=dtype, requires_grad=True)
    return encoder, log_temperature


def centroids(dtype=torch.float64):
    g = torch.Generator().manual_seed(11)
    return torch.randn(3, D, generator=g).to(dtype), torch.tensor([2, 0, 3])


def plain(loss, anchor, candidate, *more, replicated=None, negatives=None, **options):
    """What one process does with the arguments of `gathered_loss`."""
    blocks = [*(negatives or []), *(replicated or [])]
    return loss(anchor, candidate, *more, negatives=blocks or None, **options)


def value(call, x, encoder, log_temperature, backend=None):
    """The loss of a case: `call` is `gathered_loss` or `plain`, x the rows of a rank or of the batch."""
    a, c = x["anchor"] @ encoder, x["candidate"] @ encoder

    def make(loss, *more, **options):
        return call(loss, a, c, *more, backend=backend, **options)

    make.of = functools.partial(call, backend=backend)  # for rows of another kind
    return make


def infonce(make, x, encoder, log_temperature):
    return make(fastcse.infonce_loss, temperature=0.3)


def infonce_learned(make, x, encoder, log_temperature):
    return make(fastcse.infonce_loss, temperature=log_temperature.exp(), symmetric=True)


def infonce_negatives(make, x, encoder, log_temperature):
    blocks = [CandidateBlock(x["negative"] @ encoder, own_log_weight=0.7), CandidateBlock(x["corpus"] @ encoder)]
    return make(fastcse.infonce_loss, temperature=0.3, negatives=blocks)


def infonce_heavy(make, x, encoder, log_temperature):
    """A weight of one's own far beyond what a float32's exponential holds."""
    blocks = [CandidateBlock(x["negative"] @ encoder, own_log_weight=150.0)]
    return make(fastcse.infonce_loss, temperature=0.3, negatives=blocks)


def wrapped(make, x, encoder, log_temperature):
    loss = functools.partial(fastcse.hsimcse_loss, noise=0.0, margin=0.5, temperature=0.3, quadruplet_weight=0.7)
    return make(loss, x["corpus"] @ encoder.detach(), symmetric=True)


def sscl(make, x, encoder, log_temperature):
    def wide(rows):
        return torch.cat([rows @ encoder, rows.flip(1) @ encoder], 1)

    return make.of(fastcse.sscl_loss, wide(x["anchor"]), wide(x["candidate"]), parts=2, temperature=0.3)


def soft_negative(make, x, encoder, log_temperature):
    return make(fastcse.soft_negative_loss, x["negative"] @ encoder, margin_weight=2.0, temperature=0.3)


def infonce_ids(make, x, encoder, log_temperature):
    block = CandidateBlock(x["negative"] @ encoder, log_weight=x["weight"], id=x["anchor_id"])
    ids = {"anchor_id": x["anchor_id"], "candidate_id": x["candidate_id"]}
    return make(fastcse.infonce_loss, temperature=0.3, negatives=[block], symmetric=True, **ids)


def infonce_queue(make, x, encoder, log_temperature):
    rows, _ = centroids(encoder.dtype)
    return make(fastcse.infonce_loss, temperature=0.3, replicated=[CandidateBlock(rows)])


def focal(make, x, encoder, log_temperature):
    return make(fastcse.focal_infonce_loss, margin=0.2, temperature=0.3)


def focal_symmetric(make, x, encoder, log_temperature):
    return make(fastcse.focal_infonce_loss, margin=0.2, temperature=0.3, symmetric=True)


def hsimcse(make, x, encoder, log_temperature, **options):
    given = {"noise": 0.0, "margin": 0.5, "adversarial_step": 0.4, "temperature": 0.3}
    return make(fastcse.hsimcse_loss, x["corpus"] @ encoder.detach(), **given | options)


def hsimcse_symmetric(make, x, encoder, log_temperature):
    return hsimcse(make, x, encoder, log_temperature, symmetric=True, adversarial_mode="l2")


def hsimcse_negatives(make, x, encoder, log_temperature):
    blocks = [CandidateBlock(x["negative"] @ encoder, own_log_weight=0.7)]
    return hsimcse(make, x, encoder, log_temperature, negatives=blocks)


def clusterns(make, x, encoder, log_temperature, **options):
    given = {"margin_weight": 2.0, "alpha": 0.1, "beta": 0.2, "temperature": 0.3}
    rows, counts = centroids(encoder.dtype)
    return make(fastcse.clusterns_loss, x["index"], rows, counts, **given | options)


def clusterns_active(make, x, encoder, log_temperature):
    blocks = [CandidateBlock(x["negative"] @ encoder)]
    return clusterns(make, x, encoder, log_temperature, margin_reduction="active", negatives=blocks)


def clusterns_removed(make, x, encoder, log_temperature):
    return clusterns(make, x, encoder, log_temperature, false_negatives="remove")


def clusterns_positive(make, x, encoder, log_temperature):
    return clusterns(make, x, encoder, log_temperature, false_negatives="positive")


def clusterns_before(make, x, encoder, log_temperature):
    return make(fastcse.clusterns_loss, temperature=0.3)


CASES = [
    infonce, infonce_learned, infonce_negatives, infonce_heavy, infonce_ids, infonce_queue,
    wrapped, sscl, soft_negative, focal, focal_symmetric, hsimcse,
    hsimcse_symmetric, hsimcse_negatives, clusterns, clusterns_active, clusterns_removed, clusterns_positive,
    clusterns_before,
]  # fmt: skip


def averaged(parameters):
    """What a data-parallel wrapper makes of the ranks' gradients."""
    made = []
    for p in parameters:
        g = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        dist.all_reduce(g)
        made.append(g / dist.get_world_size())
    return made


def case_on_a_rank(rank, ranks, case, counts, dtype, backend):
    """Mean loss and mean gradients over the ranks, and which backend made them."""
    x, given = own(batch(counts, dtype), counts, rank), parameters(dtype)
    loss = case(value(gathered_loss, x, *given, backend), x, *given)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean / ranks, averaged(given), fastcse.last_backend()


def expected_of(case, counts, dtype=torch.float64):
    x, given = batch(counts, dtype), parameters(dtype)
    loss = case(value(plain, x, *given), x, *given)
    loss.backward()
    return loss.detach(), [torch.zeros_like(p) if p.grad is None else p.grad for p in given]


RINGS = [case for case in CASES if case.__name__.startswith(("infonce", "focal"))]


def ring_on_a_rank(rank, ranks, case, counts, dtype, backend, temperature):
    """As `case_on_a_rank`, with candidates that travel."""
    x, given = own(batch(counts, dtype), counts, rank), parameters(dtype)
    make = value(gathered_loss, x, *given, backend)

    def ring_loss(loss, *more, **options):
        options |= {"max_gathered_bytes": 1, "return_stats": True, "max_workspace_bytes": 1024}
        if temperature is not None and not isinstance(options.get("temperature"), torch.Tensor):
            options["temperature"] = temperature
        return make(loss, *more, **options)

    loss, stats = case(ring_loss, x, *given)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean / ranks, averaged(given), fastcse.last_backend(), stats


@pytest.mark.parametrize(("counts", "dtype", "temperature"), [
    (EVEN, torch.float64, None), (UNEVEN, torch.float64, None), (UNEVEN, torch.float32, None),
    (UNEVEN, torch.float32, 0.01),  # beyond the range of the static shift
], ids=["even", "uneven", "fused", "fused-cold"])  # fmt: skip
def test_ring_candidates_give_the_same(tmp_path, counts, dtype, temperature):
    exact = dtype == torch.float64
    jobs = [(ring_on_a_rank, case, counts, dtype, None if exact else "cpp", temperature) for case in RINGS]
    answers = together(tmp_path, len(counts), jobs)
    for k, case in enumerate(RINGS):
        x, given = batch(counts), parameters()
        make = value(plain, x, *given)

        def whole(loss, *more, make=make, learned=case is infonce_learned, **options):
            options |= {} if temperature is None or learned else {"temperature": temperature}
            return make(loss, *more, return_stats=True, **options)

        expected, stats = case(whole, x, *given)
        expected.backward()
        close = (
            {"rtol": 1e-11, "atol": 1e-12} if exact else {"rtol": 2e-5, "atol": 2e-5 if temperature is None else 2e-3}
        )
        for rank, answer in enumerate(answers):
            mean, gradients, backend, found = answer[k]
            assert backend == ("reference" if exact else "cpp")
            torch.testing.assert_close(
                mean.double(), expected.detach(), msg=lambda m, case=case: f"{case.__name__}: {m}", **close
            )
            for got, p in zip(gradients, given):
                wanted = torch.zeros_like(p) if p.grad is None else p.grad
                torch.testing.assert_close(
                    got.double(), wanted, msg=lambda m, case=case: f"{case.__name__}: {m}", **close
                )
            first, last = sum(counts[:rank]), sum(counts[: rank + 1])
            torch.testing.assert_close(found.lse.double(), stats.lse[first:last], **close)
            assert torch.equal(found.hardest_index, stats.hardest_index[first:last])
        shares = [answer[k][3].masked_share * count for answer, count in zip(answers, counts)]
        torch.testing.assert_close(
            sum(shares).double() / sum(counts), stats.masked_share.double(), rtol=1e-6, atol=1e-7
        )


def rows_in_the_ring(rank, ranks):
    """The most rows of candidates and gradients that this rank holds of others at once."""
    import weakref

    from fastcse.distributed import ring

    alive, most, make = weakref.WeakSet(), [0], ring._room

    def counted(like, counts):
        made = make(like, counts)
        alive.update(made)
        most[0] = max(most[0], sum(len(x) for x in alive))
        return made

    ring._room = counted
    try:
        z = torch.randn(8, D, generator=torch.Generator().manual_seed(rank)).requires_grad_()
        gathered_loss(fastcse.infonce_loss, z, z.roll(1, 0), max_gathered_bytes=1).backward()
    finally:
        ring._room = make
    return most[0]


def test_the_ring_holds_as_much_whatever_the_number_of_ranks(tmp_path):
    most = [max(answer for (answer,) in together(tmp_path, ranks, [(rows_in_the_ring,)])) for ranks in (3, 4)]
    # Two visitors of 8 rows, one of them on its way, and two gradients.
    assert most[0] == most[1] <= 4 * 8


def too_large(rank, ranks):
    x = torch.eye(3, 4)
    with pytest.raises(ValueError, match=r"max_gathered_bytes of 7 is less than .* hsimcse_loss needs them whole"):
        gathered_loss(fastcse.hsimcse_loss, x, x, x, max_gathered_bytes=7)
    return True


def equal_candidates(rank, ranks):
    """The hardest negative of two anchors on each rank, all candidates being equal, in a ring."""
    rows = torch.eye(2)
    return [
        gathered_loss(
            fastcse.infonce_loss,
            rows[[0, 0]].to(dtype),
            rows[[1, 1]].to(dtype),
            max_gathered_bytes=1,
            return_stats=True,
        ).stats.hardest_index.tolist()
        for dtype in (torch.float64, torch.float32)
    ]


def test_a_loss_that_needs_all_candidates_says_so_and_ties_go_to_the_lowest_column(tmp_path):
    (_, first), (_, second) = together(tmp_path, 2, [(too_large,), (equal_candidates,)])
    assert (first, second) == ([[1, 0], [1, 0]], [[0, 0], [0, 0]])


@pytest.mark.parametrize("counts", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_every_loss_is_that_of_one_process(tmp_path, counts):
    jobs = [(case_on_a_rank, case, counts, torch.float64, None) for case in CASES]
    for answers in together(tmp_path, len(counts), jobs):
        for case, (mean, gradients, backend) in zip(CASES, answers):
            expected, wanted = expected_of(case, counts)
            assert backend == "reference"
            torch.testing.assert_close(
                mean, expected, rtol=1e-12, atol=1e-13, msg=lambda m, case=case: f"{case.__name__}: {m}"
            )
            for got, g in zip(gradients, wanted):
                torch.testing.assert_close(
                    got, g, rtol=1e-11, atol=1e-12, msg=lambda m, case=case: f"{case.__name__}: {m}"
                )


def test_the_fused_backend_keeps_the_contract(tmp_path):
    jobs = [(case_on_a_rank, case, UNEVEN, torch.float32, "cpp") for case in CASES]
    for answers in together(tmp_path, 3, jobs):
        for case, (mean, gradients, backend) in zip(CASES, answers):
            expected, wanted = expected_of(case, UNEVEN)
            assert backend == "cpp"
            torch.testing.assert_close(
                mean.double(), expected, rtol=2e-6, atol=2e-6, msg=lambda m, case=case: f"{case.__name__}: {m}"
            )
            for got, g in zip(gradients, wanted):
                torch.testing.assert_close(
                    got.double(), g, rtol=1e-5, atol=1e-5, msg=lambda m, case=case: f"{case.__name__}: {m}"
                )


def simcse_scale(rank, ranks):
    x, given = own(batch(EVEN), EVEN, rank), parameters()
    a, c = x["anchor"] @ given[0], x["candidate"] @ given[0]
    loss = gathered_loss(fastcse.infonce_loss, a, c, temperature=0.3, gradient_scale="simcse")
    loss.backward()
    exact = gathered_loss(fastcse.infonce_loss, a, c, temperature=0.3)
    return loss.detach(), exact.detach(), averaged(given)[0]


def test_parity_with_simcse_divides_the_gradient_by_the_ranks_and_not_the_loss(tmp_path):
    wanted = expected_of(infonce, EVEN)[1][0]
    for ((loss, exact, gradient),) in together(tmp_path, 2, [(simcse_scale,)]):
        torch.testing.assert_close(loss, exact, rtol=1e-14, atol=0)
        torch.testing.assert_close(gradient, wanted / 2, rtol=1e-12, atol=1e-14)


def half_rows(rank, ranks):
    x = torch.full((2, 3), 1.0, dtype=torch.bfloat16, requires_grad=True)
    whole = gather_rows(x, [2] * ranks)
    upstream = torch.full(whole.shape, [1.0, 2**-8, 2**-8][rank], dtype=torch.bfloat16)
    whole.backward(upstream)
    return whole.detach(), x.grad


def uneven_rows(rank, ranks):
    counts = [1, 3, 2]
    x = torch.full((counts[rank], 2), float(rank), requires_grad=True)
    exchange = RaggedGather.of([x, x[:1]])
    assert exchange.counts == [[1, 1], [3, 1], [2, 1]]
    whole, turned = exchange.gather(x, 0), exchange.gather(x, 0, own_first=True)
    whole.mul(torch.arange(12.0).view(6, 2)).sum().backward()
    return whole.detach(), turned.detach(), x.grad, exchange.offset(0), exchange.share(0)


def learned(rank, ranks):
    x = torch.tensor(2.0, requires_grad=True)
    y = average_gradient(x)
    (y * (rank + 1)).backward()
    return y.detach(), x.grad


def test_rows_travel_whole_and_gradients_come_home(tmp_path):
    answers = together(tmp_path, 3, [(half_rows,), (uneven_rows,), (learned,)])
    for rank, (half, uneven, alike) in enumerate(answers):
        assert torch.equal(half[0], torch.ones(6, 3, dtype=torch.bfloat16))
        # 1 + 2^-8 is no bfloat16, and would be 1 again after each addition.
        assert torch.equal(half[1], torch.full((2, 3), 1 + 2**-7, dtype=torch.bfloat16))
        whole, turned, gradient, offset, share = uneven
        assert torch.equal(whole[:, 0], torch.tensor([0.0, 1, 1, 1, 2, 2]))
        assert turned[0, 0] == rank
        assert sorted(turned[:, 0].tolist()) == [0, 1, 1, 1, 2, 2]
        assert (offset, share) == ((0, 0.5), (1, 1.5), (4, 1.0))[rank]
        assert torch.equal(gradient, 3 * torch.arange(12.0).view(6, 2)[offset : offset + len(gradient)])
        assert alike == (torch.tensor(2.0), torch.tensor(2.0))


ONE = {
    # What rank 1 does otherwise than rank 0, and what both are told.
    "width": (dict(anchor=torch.ones(2, 4)), r"the lengths of rows must be the same on all ranks, got \[3\], \[4\]"),
    "type": (dict(anchor=torch.ones(2, 3, dtype=torch.float64)), r"the types must be the same on all ranks, got .*"),
    "blocks": (dict(negatives=[torch.ones(1, 3)]), r"the number of tensors must be the same on all ranks, got 1, 2"),
    "gradient_scale": (dict(gradient_scale="other"), r"rank 1: gradient_scale must be one of .*, got 'other'"),
    "rows": (dict(candidate=torch.ones(3, 3)), r"rank 1: candidate and anchor must have as many rows, got 3 and 2"),
    "temperature": (dict(temperature=float("nan")), r"rank 1: temperature must be .* got nan"),
    "learned": (dict(temperature=torch.tensor(0.05)), r"which options are tensors must be the same on all ranks, .*"),
    "other": (dict(temperature=0.07), r"temperature must be the same on all ranks, got 0.05, 0.07"),
    "symmetric": (dict(symmetric=True), r"symmetric must be the same on all ranks, got False, True"),
    "ring": (dict(max_gathered_bytes=1), r"max_gathered_bytes must be the same on all ranks, got None, 1"),
    "gradient": (dict(anchor=torch.ones(2, 3).requires_grad_()), r"what requires a gradient must be the same .*"),
    "ids": (dict(anchor_id=torch.arange(2), candidate_id=torch.arange(2)), r"which ids are given must be the same .*"),
    "id": (dict(anchor_id=torch.arange(3), candidate_id=torch.arange(2)), r"rank 1: anchor_id must .*"),
    "weights": (
        dict(negatives=[CandidateBlock(torch.ones(1, 3), own_log_weight=1.0)]),
        r"rank 1: negatives\[0\] with an own_log_weight must have a row for each of the 2 anchors, got 1",
    ),
    "loss": (dict(loss=fastcse.focal_infonce_loss), r"the loss must be the same on all ranks, got infonce_loss, .*"),
    "empty": (dict(anchor=torch.ones(0, 3), candidate=torch.ones(0, 3)), r"rank 1: .*"),
}  # fmt: skip


def mistakes(rank, ranks):
    told = {}
    for name, (changes, _) in ONE.items():
        given = {"loss": fastcse.infonce_loss, "anchor": torch.ones(2, 3), "temperature": 0.05}
        given |= changes if rank == 1 else {}
        given.setdefault("candidate", given["anchor"])
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            gathered_loss(given.pop("loss"), given.pop("anchor"), given.pop("candidate"), **given)
        told[name] = str(caught.value)
    # Whatever went wrong, the group is still in step.
    own = torch.eye(4)[2 * rank : 2 * rank + 2]
    assert gathered_loss(fastcse.infonce_loss, own, own) < 1e-6
    return told


def test_one_ranks_mistake_is_told_to_all_and_nobody_waits(tmp_path):
    (first,), (second,) = together(tmp_path, 2, [(mistakes,)])
    assert first == second
    for name, (_, expected) in ONE.items():
        assert re.fullmatch(expected, first[name]), (name, first[name])


def compiled_on_a_rank(rank, ranks):
    torch.manual_seed(rank)
    a, c = torch.randn(2, 4, D).unbind()
    counts = [4] * ranks

    def loss(a, c):
        place = torch.arange(4 * rank, 4 * rank + 4)
        return fastcse.infonce_loss(a, gather_rows(c, counts), place, temperature=0.3)

    gradients = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x, y = a.clone().requires_grad_(), c.clone().requires_grad_()
        run(x, y).backward()
        gradients.append((x.grad, y.grad))
    return gradients


def test_gathering_compiles_whole(tmp_path):
    for ((eager, compiled),) in together(tmp_path, 2, [(compiled_on_a_rank,)]):
        for one, other in zip(eager, compiled):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_alone_it_is_the_loss_itself():
    x = batch((4,), torch.float32)
    a, c = x["anchor"], x["candidate"]
    assert torch.equal(gathered_loss(fastcse.infonce_loss, a, c), fastcse.infonce_loss(a, c))
    with pytest.raises(ValueError, match="candidate and anchor must have as many rows, got 3 and 4"):
        gathered_loss(fastcse.infonce_loss, a, c[:3])
