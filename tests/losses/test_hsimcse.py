"""hsimcse_loss on every backend: the published vectors, plain torch, its two parts, its statistics, its modules."""

import pytest
import torch
import torch.nn.functional as F
from calls import assert_compiles, weigh
from plain import cosines, cross_entropy, hinges, moved, paired
from row_oracle import BANK, NEAREST, Z1, Z2, published, quadruplet

import fastcse

every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
QUIET = {"noise": 0.0}
FORMS = {
    "classic": {"form": "classic", "margin": (0.4, -0.1)},
    "another attack": {
        "adversarial_mode": "l2", "adversarial_step": 0.7, "margin": 0.2, "quadruplet_weight": 1.3, "temperature": 0.3,
        "weights": (0.9, 0.5),
    },
}  # fmt: skip


def views(n=9, m=9, d=6, dtype=torch.float32, seed=0):
    """Leaves anchor (n, d), candidate (m, d) of which some are near, and constant corpus negatives (n, d)."""
    g = torch.Generator().manual_seed(seed)
    anchor, corpus = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    candidate = torch.randn(m, d, generator=g, dtype=torch.float64)
    candidate[: min(n, m)] += anchor[: min(n, m)]
    corpus = corpus + 0.5 * anchor
    return [z.to(dtype).requires_grad_(k < 2) for k, z in enumerate((anchor, candidate, corpus))]


def leaves_of(rows, device):
    return [z.detach().to(device).requires_grad_(z.requires_grad) for z in rows]


@pytest.fixture
def ask(forced, device):
    """Loss and gradients by anchor and candidate, on the CPU; without noise unless asked for."""

    def go(rows, *arguments, loss=None, **options):
        anchor, candidate, corpus = leaves_of(rows, device)
        given = (anchor, candidate) if loss is fastcse.infonce_loss else (anchor, candidate, corpus)
        options = {**({} if loss is fastcse.infonce_loss else QUIET), **options}
        place = lambda x: x.to(device) if isinstance(x, torch.Tensor) else x  # noqa: E731
        out = forced(
            loss or fastcse.hsimcse_loss,
            *given,
            *map(place, arguments),
            **{name: place(x) for name, x in options.items()},
        )
        value = out.loss if options.get("return_stats") else out
        weigh(value).backward()
        assert corpus.grad is None
        return out, anchor.grad.cpu(), candidate.grad.cpu()

    return go


def assert_close(got, expected, rtol=2e-5, atol=1e-6):
    for one, two in zip(got, expected, strict=True):
        torch.testing.assert_close(one.detach().cpu(), two.detach().cpu(), rtol=rtol, atol=atol)


def plain(anchor, candidate, corpus, positive=None, *, temperature=0.05, reduction="mean", quadruplet_weight=0.22,
          adversarial_step=3.0, adversarial_mode="raw", **form):  # fmt: skip
    """The loss as plain torch writes it, without noise and ids; gradients by autograd."""
    positive = torch.arange(len(anchor)) if positive is None else positive
    s = cosines(anchor, candidate)
    adv = moved(anchor, candidate.detach()[positive], temperature, adversarial_step, adversarial_mode)
    batch = s.scatter(1, positive[:, None], -torch.inf).amax(1)
    quad = hinges(paired(anchor, adv), batch, paired(anchor, corpus.detach()), **form)
    loss = cross_entropy(s / temperature, positive) + quadruplet_weight * quad
    return {"mean": loss.mean(), "sum": loss.sum(), "none": loss}[reduction]


def plainly(rows, *arguments, **options):
    """`plain` in float64, in the form of `ask`."""
    anchor, candidate, corpus = (z.detach().double().requires_grad_() for z in rows)
    loss = plain(anchor, candidate, corpus, *arguments, **options)
    grads = torch.autograd.grad(weigh(loss), [anchor, candidate])
    return [x.detach().to(torch.promote_types(rows[0].dtype, torch.float32)) for x in (loss, *grads)]


# ---------------------------------------------------------------- values and gradients


def vectors():
    return [Z1.float().requires_grad_(), Z2.float().requires_grad_(), BANK[NEAREST].mean(1).float()]


@pytest.mark.parametrize(("weights", "total"), [((0.9, 0.11), 0.2316270578), ((0.9, 0.5), 0.2506184910)], ids=str)
def test_published_vectors(ask, weights, total):
    rows = vectors()
    loss, danchor, dcandidate = ask(rows, weights=weights)
    torch.testing.assert_close(loss.detach().cpu(), torch.tensor(total), rtol=2e-6, atol=2e-7)
    _, by_anchor, by_candidate = ask(rows, loss=fastcse.infonce_loss)
    dz1 = torch.tensor([[-0.0310545325, 0.0232908993, 0.0475612145], [0, 0, 0], [0, 0.0618791894, 0.0503969475]])
    dz2 = torch.tensor([[0.0216, -0.0288, 0], [0.036, 0.01728, -0.02304], [0, 0, 0]])
    factor = 0.22 * (weights == (0.9, 0.5))
    assert_close((danchor - by_anchor, dcandidate - by_candidate), (factor * dz1, factor * dz2), 1e-4, 1e-6)


SHAPES = [(1, 1, 1), (1, 3, 4), (2, 2, 17), (5, 9, 3), (12, 12, 96), (33, 40, 17)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(ask, shape):
    rows = views(*shape)
    if shape[1] == 1:
        rows[2] = rows[2].detach()
        loss, *grads = ask(rows, margin=5.0)
        assert loss == 0
        assert all((g == 0).all() for g in grads)
        return
    assert_close(ask(rows, margin=0.5), plainly(rows, margin=0.5), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_positives_anywhere(ask, form):
    rows, positive = views(9, 13), torch.tensor([12, 0, 3, 3, 5, 1, 7, 0, 9])
    assert_close(ask(rows, positive, **FORMS[form]), plainly(rows, positive, **FORMS[form]))
    assert_close(ask(rows, positive=positive), ask(rows, positive))


# ---------------------------------------------------------------- its two parts


OPTIONS = {
    "plain": {},
    "symmetric": {"symmetric": True},
    "block": {"negatives": torch.linspace(-1, 1, 24).reshape(4, 6).sin()},
    "ids": {"anchor_id": torch.arange(9) % 4, "candidate_id": torch.arange(9) % 4},
    "hot": {"temperature": 0.5},
    "small workspace": {"max_workspace_bytes": 1 << 14},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_is_the_sum_of_its_parts(ask, forced, device, option, reduction):
    rows, options = views(), OPTIONS[option]
    got = ask(rows, quadruplet_weight=0.7, margin=0.5, reduction=reduction, **options)
    without = ask(rows, quadruplet_weight=0.0, margin=1.0, reduction=reduction, **options)
    attack = {"temperature": options["temperature"]} if option == "hot" else {}
    ids = {k: v.to(device) for k, v in options.items() if k.endswith("_id")}
    anchor, candidate, corpus = leaves_of(rows, device)
    adv = forced(fastcse.adversarial_positive, anchor, candidate, noise=0.0, **attack)
    index = forced(fastcse.hardest_negative, anchor, candidate, **ids).index
    quad = forced(
        fastcse.quadruplet_loss, anchor, adv, index, corpus, candidate=candidate, margin=0.5, reduction=reduction
    )
    by_quad = torch.autograd.grad(weigh(quad), [anchor, candidate])
    infonce = ask(rows, loss=fastcse.infonce_loss, reduction=reduction, **options)
    assert (quad > 0).any()
    assert_close(got, [one.cpu() + 0.7 * two.cpu() for one, two in zip(infonce, (quad, *by_quad))])
    assert_close(without, infonce, rtol=1e-6, atol=1e-7)


def test_the_batch_negative_pulls_at_exactly_one_candidate_per_anchor(device):
    # float64, so that what InfoNCE's own gradient rounds cannot hide what the hinge adds.
    rows = leaves_of(views(7, 12, dtype=torch.float64), device)
    losses = fastcse.hsimcse_loss(*rows, noise=0.0, margin=1.0, quadruplet_weight=1.0, reduction="none")
    without = fastcse.infonce_loss(*rows[:2], reduction="none")
    hardest = fastcse.hardest_negative(rows[0].detach(), rows[1].detach()).index
    for i in range(7):
        (quad,) = torch.autograd.grad((losses - without)[i], rows[1], retain_graph=True)
        assert (quad.abs().amax(1) > 1e-9).nonzero().flatten().tolist() == [int(hardest[i])]


def test_ties_of_the_hardest_go_to_the_lowest_index(ask):
    anchor, candidate = torch.eye(4, 6), -torch.ones(12, 6)
    candidate[:4] = 2 * anchor
    candidate[[7, 9]] = torch.tensor([0.0, 0, 3, 4, 0, 0])
    rows = [anchor.requires_grad_(), candidate.requires_grad_(), torch.ones(4, 6)]
    with_quad, without = (ask(rows, margin=1.0, quadruplet_weight=w)[2] for w in (50.0, 0.0))
    moved = (with_quad - without).norm(dim=1)
    assert moved[7] > 0.1
    assert moved[9] < 1e-5
    assert ask(rows, return_stats=True)[0].stats.hardest_index.tolist() == [1, 0, 7, 7]


def test_duplicates_by_id_are_never_the_hardest(ask):
    rows = views()
    with torch.no_grad():
        rows[1][5] = rows[0][2]  # nearest of all, and the same text
    ids = torch.arange(9)
    ids[5] = ids[2] = 77
    unaware, _ = ask(rows, return_stats=True)[0]
    (loss, stats), *_ = ask(rows, return_stats=True, anchor_id=ids, candidate_id=ids)
    assert stats.hardest_index[2] != 5
    assert float(stats.batch_similarity) == pytest.approx(float(stats.hardest_similarity.mean()), rel=1e-5)
    assert loss < unaware


@pytest.mark.parametrize("form", ["weighted", "classic"])
def test_one_pair_alone(ask, form):
    # No batch negative, so the weighted hinge is inactive; the classic one still has its corpus negative.
    rows = views(1, 1, 5)
    (loss, stats), danchor, dcandidate = ask(rows, form=form, margin=1.5, return_stats=True)
    assert stats.hardest_index.tolist() == [-1]
    assert stats.infonce == 0
    assert (dcandidate == 0).all()
    if form == "weighted":
        assert loss == 0
        assert (danchor == 0).all()
    else:
        cosine = F.cosine_similarity(rows[0], rows[2]) - F.cosine_similarity(rows[0], rows[1])
        assert_close([loss], [0.22 * F.relu(1.5 + cosine).mean()])
        assert (danchor != 0).any()


def test_every_negative_masked(ask):
    same = torch.full((9,), 7)
    (loss, stats), danchor, dcandidate = ask(
        views(), margin=1.0, anchor_id=same, candidate_id=same, return_stats=True
    )  # fmt: skip
    assert (stats.hardest_index == -1).all()
    assert loss == 0
    assert (danchor == 0).all()
    assert (dcandidate == 0).all()


# ---------------------------------------------------------------- constants, noise, temperature


def test_the_corpus_negatives_are_constants(forced, device):
    rows = leaves_of(views(), device)
    rows[2].requires_grad_()
    forced(fastcse.hsimcse_loss, *rows, noise=0.0, margin=1.0).backward()
    assert rows[2].grad is None or (rows[2].grad == 0).all()


def test_the_noise_follows_its_generator(ask, device):
    def seeded(seed):
        return torch.Generator(device).manual_seed(seed)

    one, two, other = (ask(views(), noise=1.0, margin=0.5, generator=seeded(k)) for k in (1, 1, 2))
    quiet = ask(views(), margin=0.5)
    for a, b in zip(one, two):
        assert torch.equal(a, b)
    assert one[0] != other[0]
    assert one[0] != quiet[0]


def test_the_noise_is_that_of_the_attack(ask, device):
    rows = views()
    generator = torch.Generator(device).manual_seed(5)
    anchor, candidate, corpus = (z.detach().to(device) for z in rows)
    adv = fastcse.adversarial_positive(anchor, candidate, generator=generator)
    infonce, stats = ask(rows, loss=fastcse.infonce_loss, return_stats=True)[0]
    quad = fastcse.quadruplet_loss(anchor, adv, stats.hardest_index, corpus, candidate=candidate, margin=0.5)
    got = ask(rows, noise=1.0, margin=0.5, generator=torch.Generator(device).manual_seed(5))[0]
    assert_close([got], [infonce + 0.22 * quad])
    torch.manual_seed(11)
    first = ask(rows, noise=1.0, margin=0.5)[0]
    torch.manual_seed(11)
    assert torch.equal(first, ask(rows, noise=1.0, margin=0.5)[0])


def test_a_temperature_that_learns_learns_from_infonce_alone(forced, device):
    grads = []
    for function in (fastcse.hsimcse_loss, fastcse.infonce_loss):
        rows = leaves_of(views(), device)
        temperature = torch.tensor(0.2, device=device, requires_grad=True)
        quad = function is fastcse.hsimcse_loss
        given = (*rows, None) if quad else rows[:2]
        more = dict(noise=0.0, margin=0.5) if quad else {}
        forced(function, *given, temperature=temperature, **more).backward()
        grads.append(temperature.grad)
    assert grads[1] != 0
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------- statistics


@every_reduction
def test_statistics(ask, forced, device, reduction):
    rows, weight = views(), 3.0
    out, *_ = ask(rows, margin=0.2, quadruplet_weight=weight, reduction=reduction, return_stats=True)
    assert isinstance(out, fastcse.LossAndStats)
    stats = out.stats
    (_, own), *_ = ask(rows, loss=fastcse.infonce_loss, return_stats=True)
    for name in fastcse.ContrastiveStats._fields[:-1]:
        torch.testing.assert_close(getattr(stats, name), getattr(own, name), rtol=1e-6, atol=1e-6)
    anchor, candidate, corpus = (z.detach().to(device) for z in rows)
    adv = forced(fastcse.adversarial_positive, anchor, candidate, noise=0.0)
    quad = forced(
        fastcse.quadruplet_loss, anchor, adv, own.hardest_index, corpus, candidate=candidate, margin=0.2,
        reduction="none",
    )  # fmt: skip
    assert 0 < (quad > 0).float().mean() < 1
    expected = {
        "active_share": (quad > 0).float().mean(),
        "adversarial_similarity": F.cosine_similarity(anchor, adv).mean(),
        "batch_similarity": own.hardest_similarity.mean(),
        "corpus_similarity": F.cosine_similarity(anchor, corpus).mean(),
    }
    for name, value in expected.items():
        got = getattr(stats, name)
        assert got.shape == (), name
        assert not got.requires_grad, name
        torch.testing.assert_close(got, value.detach(), rtol=1e-5, atol=1e-6, msg=name)
    reduce = {"mean": torch.mean, "sum": torch.sum, "none": lambda x: x}[reduction]
    rows_of_infonce = ask(rows, loss=fastcse.infonce_loss, reduction="none")[0].detach()
    torch.testing.assert_close(out.loss.detach(), reduce(rows_of_infonce + weight * quad), rtol=1e-5, atol=1e-6)


@every_reduction
def test_the_two_parts_are_means_before_their_weight_whatever_the_reduction(ask, reduction):
    rows, expected = views(), ask(views(), loss=fastcse.infonce_loss)[0].detach()
    whole = ask(rows, margin=0.2, quadruplet_weight=1.0)[0].detach()
    stats = ask(rows, margin=0.2, quadruplet_weight=3.0, reduction=reduction, return_stats=True)[0].stats
    for name, value in (("infonce", expected), ("quadruplet", whole - expected)):
        got = getattr(stats, name)
        assert got.shape == (), name
        assert not got.requires_grad, name
        torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-6, msg=name)


def test_the_mean_of_the_batch_negatives_leaves_out_rows_without_one(ask):
    ids = torch.arange(9)
    anchor_id, candidate_id = torch.where(ids < 4, 77, ids), torch.full((9,), 77)
    stats = ask(views(), anchor_id=anchor_id, candidate_id=candidate_id, return_stats=True)[0].stats
    assert (stats.hardest_index >= 0).tolist() == [False] * 4 + [True] * 5
    torch.testing.assert_close(stats.batch_similarity, stats.hardest_similarity[4:].mean(), rtol=1e-5, atol=1e-6)


def test_asking_for_statistics_changes_neither_loss_nor_gradient(ask):
    (loss, _), *grads = ask(views(), margin=0.5, return_stats=True)
    assert_close((loss, *grads), ask(views(), margin=0.5), rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- modules


def test_the_module_draws_noise_by_default(device):
    rows = leaves_of(views(), device)
    layer = fastcse.HSimCSELoss(margin=0.5)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(layer(*rows))
    assert torch.equal(values[0], values[1])
    assert values[0] != values[2]
    one, two = (layer(*rows, generator=torch.Generator(device).manual_seed(4)) for _ in range(2))
    assert torch.equal(one, two)
    assert one != values[2]


# ---------------------------------------------------------------- compile, arguments


def test_compile_statistics_and_modules(device):
    rows = leaves_of(views(), device)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *z: fastcse.hsimcse_loss(*z, noise=0.0, return_stats=True), fullgraph=True, backend="aot_eager"
    )
    got, expected = compiled(*rows), fastcse.hsimcse_loss(*rows, noise=0.0, return_stats=True)
    torch.testing.assert_close(got.loss, expected.loss)
    assert got.stats.parts.keys() == expected.stats.parts.keys()
    for name in (*got.stats._fields[:-1], *got.stats.parts):
        torch.testing.assert_close(getattr(got.stats, name), getattr(expected.stats, name))
    layer = fastcse.HSimCSELoss(noise=0.0, margin=0.5)
    assert_compiles(lambda a, c, k: layer(a, c, k), rows)


def test_compile_with_noise(device):
    rows = leaves_of(views(), device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *z: fastcse.hsimcse_loss(*z, margin=0.5), fullgraph=True, backend="aot_eager")
    values = {float(compiled(*rows).detach()) for _ in range(3)}
    assert len(values) == 3, "the noise is drawn anew, not compiled in"


def test_the_vectors_of_this_file_are_those_of_the_oracle():
    exact = quadruplet(published((0.9, 0.5)))
    assert abs(0.2316270578 + 0.22 * exact.loss.mean() - 0.2506184910) < 1e-9
