"""adversarial_positive on every backend: the published vectors, a float64 oracle, invariants of the step, the noise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import slack_of
from oracle import to64
from row_oracle import Z1, Z2, adversarial, attack_gradient, attack_rows
from yardstick import assert_within

import fastcse

MODES = ("raw", "l2", "sign")
every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture
def attack(forced, device):
    """The adversarial positive on the CPU; without noise unless asked for. Its form is checked on the way."""

    def go(anchor, positive, *, noise=0.0, **options):
        out = forced(fastcse.adversarial_positive, anchor.to(device), positive.to(device), noise=noise, **options)
        assert out.shape == positive.shape
        assert out.dtype == positive.dtype
        assert out.device == positive.to(device).device
        assert not out.requires_grad
        return out.cpu()

    return go


def views(n, d, near=1.0, dtype=torch.float32):
    """Anchors, and positives `near` them: the smaller, the nearer."""
    anchor = torch.randn(n, d)
    return anchor.to(dtype), (anchor + near * torch.randn(n, d)).to(dtype)


def eager(anchor, positive, order, *, temperature=0.05, step=3.0, mode="raw"):
    """What plain torch makes of it in the dtype of the rows, with the features in another order."""
    anchor, positive = anchor[:, order], positive[:, order]
    x = positive.clone().requires_grad_()
    s = F.normalize(x, dim=1) @ F.normalize(anchor, dim=1).T / temperature
    (g,) = torch.autograd.grad(F.cross_entropy(s, torch.arange(len(x))), x)
    size = positive.norm(dim=1, keepdim=True)
    if mode == "l2":
        g = size * F.normalize(g, dim=1, eps=1e-30)
    if mode == "sign":
        g = size * g.sign() / positive.shape[1] ** 0.5
    return (positive + step * g)[:, order.argsort()]


def step_terms(anchor, positive, *, temperature=0.05, step=3.0, mode="raw"):
    """Largest sum of absolute terms that an entry of a raw step is; the other modes divide it away."""
    x = to64(positive)
    wrong = 1 - np.exp(-attack_rows(x, to64(anchor), temperature))
    return (4 * abs(step) * wrong / (len(x) * temperature * np.linalg.norm(x, axis=1))).max() * (mode == "raw")


def assert_rule(got, anchor, positive, slack=2.0, **options):
    """The result against the oracle: no more than twice what plain torch misses, and 2 ulp."""
    width = anchor.shape[1]
    orders = [torch.randperm(width, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    sticks = [eager(anchor, positive, order, **options) for order in [torch.arange(width), *orders]]
    terms = step_terms(anchor, positive, **options)
    assert_within(got, adversarial(anchor, positive, **options), sticks, "adversarial", terms, slack)


# ---------------------------------------------------------------- values


def test_published_vectors(attack):
    z1, z2 = Z1.float(), Z2.float()
    adv = [
        [4.0827146845, 2.889713754, 1.88913e-5],
        [0.0039811409, 4.0030256562, 2.9959657917],
        [3.9990445306, 0.0053081635, -3.0012739592],
    ]
    got = attack(z1, z2)
    torch.testing.assert_close(got, torch.tensor(adv), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(got, attack(z1, z2, step=3.0, mode="raw", temperature=0.05), rtol=0, atol=0)
    before, after = (attack_rows(to64(x), to64(z1)).mean() for x in (z2, got))
    np.testing.assert_allclose([before, after], [0.0144265327, 0.0225280411], rtol=2e-5)
    g = torch.tensor([[0.0275715615, -0.036762082, 6.2971e-6], [0.001327047, 0.0010085521, -0.0013447361]])
    # A step so long that the gradient is all there is.
    torch.testing.assert_close(attack(z1, z2, step=1e6)[:2] / 1e6, g, rtol=2e-4, atol=5e-6)


SHAPES = [(2, 1), (2, 3), (5, 17), (63, 3), (64, 96), (65, 17), (130, 384)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(attack, shape):
    anchor, positive = views(*shape)
    step = 1000.0 if shape[0] > 5 else 3.0  # a long step shows what the gradient itself misses
    assert_rule(attack(anchor, positive, step=step), anchor, positive, step=step)


@every_mode
@pytest.mark.parametrize(("temperature", "step"), [(0.05, 0.3), (0.5, -2.0)])
def test_any_mode(attack, mode, temperature, step):
    anchor, positive = views(20, 9)
    options = dict(mode=mode, temperature=temperature, step=step)
    assert_rule(attack(anchor, positive, **options), anchor, positive, **options)


@every_mode
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(attack, backend, mode, dtype):
    anchor, positive = views(40, 33, dtype=dtype)
    got = attack(anchor, positive, mode=mode, step=0.5)
    assert_rule(got, anchor, positive, slack=slack_of(backend, dtype), mode=mode, step=0.5)


@every_mode
def test_a_temperature_may_be_a_tensor(attack, device, mode):
    anchor, positive = views(9, 6)
    tensor = torch.tensor([0.3], device=device, requires_grad=True)
    got, expected = (attack(anchor, positive, temperature=t, mode=mode) for t in (tensor, 0.3))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- invariants


@pytest.mark.parametrize("near", [0.3, 2.0])
def test_the_gradient_is_orthogonal_to_the_row(attack, near):
    anchor, positive = views(20, 9, near)
    moved = (attack(anchor, positive, step=1.0) - positive).double()
    size = moved.norm(dim=1) * positive.double().norm(dim=1)
    # What is left of positive + g after the positive comes off carries the rounding of the sum.
    rounding = 2e-7 * positive.double().square().sum(1) * 9
    assert ((moved * positive).sum(1).abs() <= 1e-5 * size + rounding).all()
    assert moved.norm(dim=1).max() > 1e-2


@every_mode
def test_a_small_step_never_lowers_the_loss_it_climbs(device, mode):
    for seed in range(8):
        torch.manual_seed(seed)
        n, d, temperature = 2 + seed % 5, 2 + seed, 0.05 if seed % 2 else 1.0
        anchor, positive = (z.to(device) for z in views(n, d, 0.5 + 0.4 * seed, dtype=torch.float64))
        got = fastcse.adversarial_positive(anchor, positive, step=1e-4, noise=0.0, mode=mode, temperature=temperature)
        before, after = (attack_rows(to64(x), to64(anchor), temperature) for x in (positive, got))
        assert (after >= before - 1e-15).all(), "every row climbs, not only their mean"
        assert after.mean() > before.mean()


@pytest.mark.parametrize("mode", ["l2", "sign"])
def test_length_of_a_step_relative_to_the_row(attack, mode):
    anchor, positive = views(20, 9, 2.0)
    moved = attack(anchor, positive, step=0.25, mode=mode) - positive
    torch.testing.assert_close(moved.norm(dim=1), 0.25 * positive.norm(dim=1), rtol=1e-5, atol=1e-6)


def test_a_solved_batch_moves_next_to_nothing(attack):
    rows = 4 * torch.eye(6)
    torch.testing.assert_close(attack(rows, rows), rows, rtol=0, atol=1e-6)


def test_the_raw_step_is_that_of_the_mean(attack):
    # Two copies of a batch that know nothing of each other: every row's step is halved, but for the far columns.
    anchor, positive = views(6, 4, 0.5)
    pad = torch.zeros(6, 4)
    both = [torch.cat([torch.cat([z, pad], 1), torch.cat([pad, z], 1)]) for z in (anchor, positive)]
    got = attack(*both, step=10.0, temperature=0.01) - both[1]
    single = attack(anchor, positive, step=10.0, temperature=0.01) - positive
    exact = adversarial(*both, step=10.0, temperature=0.01) - to64(both[1])
    np.testing.assert_allclose(to64(got), exact, atol=1e-4 * np.abs(exact).max() + 1e-6)
    torch.testing.assert_close(got[:6, :4], single / 2, rtol=0.1, atol=0.1 * float(single.abs().max()))


# ---------------------------------------------------------------- degenerate rows


@every_mode
def test_one_row_alone_has_nothing_to_climb(attack, mode):
    anchor, positive = views(1, 7)
    assert torch.equal(attack(anchor, positive, mode=mode), positive)


@every_mode
def test_zero_rows_stay_where_they_are(attack, mode):
    anchor, positive = views(6, 5)
    positive[2] *= 1e-30
    anchor[4] = 0
    options = dict(mode=mode, step=0.7, temperature=0.5)
    got = attack(anchor, positive, **options)
    assert torch.equal(got[2], positive[2])
    truth = torch.tensor(adversarial(anchor, positive, **options), dtype=torch.float32)
    torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)


def test_equal_rows_give_no_gradient_and_no_step(attack):
    # Every candidate is as near as the positive, in the same direction.
    rows = torch.tensor([[2.0, 0, 0]]).repeat(4, 1)
    torch.testing.assert_close(attack(rows, rows), rows, rtol=0, atol=1e-5)
    for mode in ("l2", "sign"):
        assert attack(rows, rows, mode=mode).isfinite().all()


# ---------------------------------------------------------------- noise


def seeded(device, seed=3):
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize("length", [0.25, 1.0, 8.0])
def test_the_noise_has_its_length(attack, device, length):
    anchor, positive = views(20, 9)
    noise = attack(anchor, positive, step=0.0, noise=length, generator=seeded(device)) - positive
    torch.testing.assert_close(noise.norm(dim=1), torch.full((20,), length), rtol=1e-5, atol=1e-5)
    directions = F.normalize(noise, dim=1)
    assert (directions @ directions.T - torch.eye(20)).abs().max() < 0.99, "each row has a direction of its own"


def test_the_noise_is_uniform_in_a_cube_before_it_is_scaled(attack, device):
    noise = attack(*(torch.zeros(2, 4096) for _ in range(2)), step=0.0, noise=1.0, generator=seeded(device))
    flat = noise * 64  # entries of variance 1; of U(-1/2, 1/2) the largest is then sqrt 3, of a Gaussian about 3.7
    assert 1.6 < flat.abs().max() < 1.8
    assert flat.mean().abs() < 0.1
    assert abs(float(flat.square().mean()) - 1) < 1e-4
    assert (flat < 0).float().mean().sub(0.5).abs() < 0.05


@every_mode
def test_the_step_starts_from_the_noisy_row(attack, device, mode):
    anchor, positive = views(20, 9)
    start = attack(anchor, positive, step=0.0, noise=1.0, generator=seeded(device))
    got = attack(anchor, positive, step=0.5, mode=mode, noise=1.0, generator=seeded(device), temperature=0.5)
    x = to64(start)
    g = attack_gradient(x, to64(anchor), 0.5)
    if mode == "raw":
        expected = x + 0.5 * g
    else:  # the radius is relative to the positive, not to the noisy row
        size = 0.5 * np.linalg.norm(to64(positive), axis=1, keepdims=True)
        expected = x + size * (g / np.linalg.norm(g, axis=1, keepdims=True) if mode == "l2" else np.sign(g) / 3)
    np.testing.assert_allclose(to64(got), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - x).max() > 1e-3


@pytest.mark.parametrize("source", ["generator", "global"])
def test_the_same_seed_gives_the_same_bits(attack, device, source):
    anchor, positive = views(6, 5)

    def go(seed):
        if source == "global":
            torch.manual_seed(seed)
            return attack(anchor, positive, noise=1.0)
        return attack(anchor, positive, noise=1.0, generator=seeded(device, seed))

    one, two, other = go(1), go(1), go(2)
    assert torch.equal(one, two)
    assert not torch.isclose(one, other).all(1).any()


def test_a_generator_leaves_the_global_one_alone(attack, device):
    anchor, positive = views(6, 5)
    state = torch.get_rng_state()
    generator = seeded(device)
    first = attack(anchor, positive, noise=1.0, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(attack(anchor, positive, noise=1.0, generator=generator), first), "it moves on"
    attack(anchor, positive, noise=0.0)
    assert torch.equal(torch.get_rng_state(), state), "without noise nothing is drawn"


def test_backends_draw_the_same_noise(device):
    anchor, positive = (z.to(device) for z in views(6, 5))
    expected = fastcse.adversarial_positive(anchor, positive, generator=seeded(device), backend="reference")
    got = fastcse.adversarial_positive(anchor, positive, generator=seeded(device))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- manners


def test_a_step_and_noise_of_zero_give_memory_of_its_own(attack):
    positive = views(6, 5)[1]
    attack(positive, positive, step=0.0).zero_()
    assert (positive != 0).all()


@every_mode
def test_compiled_noise_has_unit_length(device, mode):
    def noise(anchor, positive):
        return fastcse.adversarial_positive(anchor, positive, mode=mode, step=0.0) - positive

    torch._dynamo.reset()
    drawn = torch.compile(noise, fullgraph=True, backend="aot_eager")(*(z.to(device) for z in views(9, 5)))
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(9, device=device), rtol=1e-5, atol=1e-5)
