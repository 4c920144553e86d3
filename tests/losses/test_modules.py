"""The modules are the functions, with a temperature that may learn."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch

import fastcse
from fastcse.distributed import gathered_loss

PAIRS = [
    (fastcse.InfoNCELoss, fastcse.infonce_loss),
    (fastcse.FocalInfoNCELoss, fastcse.focal_infonce_loss),
    (fastcse.AngularInfoNCELoss, fastcse.angular_infonce_loss),
]
every_module = pytest.mark.parametrize(("module", "function"), PAIRS, ids=["infonce", "focal", "angular"])

OPTIONS = [
    {},
    {"temperature": 0.2},
    {"symmetric": True},
    {"normalize": False, "temperature": 3.0},
    {"reduction": "none"},
    {"reduction": "sum"},
    {"max_workspace_bytes": 1 << 14},
    {"backend": "reference"},
]


def views(device, n=5, m=6, d=4):
    return [torch.randn(k, d, device=device, requires_grad=True) for k in (n, m, 3)]


@every_module
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_module_is_its_function(device, module, function, options):
    anchor, candidate, hard = views(device)
    arguments = dict(
        positive=torch.arange(5, device=device).flip(0),
        negatives=[fastcse.CandidateBlock(hard)],
        anchor_id=torch.arange(5, device=device) % 3,
        candidate_id=torch.arange(6, device=device) % 4,
    )
    layer = module(**options)
    got, expected = layer(anchor, candidate, **arguments), function(anchor, candidate, **arguments, **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    leaves = [anchor, candidate, hard]
    for one, two in zip(*(torch.autograd.grad(loss.sum(), leaves) for loss in (got, expected))):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    torch.testing.assert_close(layer(anchor, candidate), function(anchor, candidate, **options), rtol=0, atol=0)
    positive = arguments["positive"]
    torch.testing.assert_close(layer(anchor, candidate, positive), function(anchor, candidate, positive, **options))


@pytest.mark.parametrize("options", [{"margin": 0.1}, {"margin": 0.5, "detach_modulation": True}], ids=str)
def test_the_options_of_the_focal_module(device, options):
    anchor, candidate, _ = views(device)
    got = fastcse.FocalInfoNCELoss(0.2, **options)(anchor, candidate)
    expected = fastcse.focal_infonce_loss(anchor, candidate, temperature=0.2, **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for one, two in zip(*(torch.autograd.grad(loss, [anchor, candidate]) for loss in (got, expected))):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_defaults_are_the_published_settings():
    anchor, candidate, _ = views("cpu")
    torch.testing.assert_close(
        fastcse.FocalInfoNCELoss()(anchor, candidate),
        fastcse.focal_infonce_loss(anchor, candidate, temperature=0.05, margin=0.3),
    )
    torch.testing.assert_close(
        fastcse.InfoNCELoss()(anchor, candidate), fastcse.infonce_loss(anchor, candidate, temperature=0.05)
    )


@every_module
def test_only_the_first_arguments_are_positional(module, function):
    with pytest.raises(TypeError):
        module(0.05, 0.3, True)


@every_module
def test_an_option_that_the_function_has_not_is_named(module, function):
    with pytest.raises(TypeError, match="marginal"):
        module(marginal=0.3)
    with pytest.raises(TypeError, match="negatives"):
        module(negatives=None)


@pytest.mark.parametrize("module", [m for m, _ in PAIRS] + [fastcse.HSimCSELoss, fastcse.ClusterNSLoss])
def test_the_signature_is_the_functions(module):
    shown = inspect.signature(module).parameters
    options = inspect.signature(module.loss_fn).parameters
    assert list(shown)[module is fastcse.ClusterNSLoss] == "temperature"
    assert {"learnable_temperature", "stats", "backend"} <= set(shown)
    assert all(p.default == options[n].default for n, p in shown.items() if n in options)
    assert not {"return_stats", "generator", "negatives", "anchor_id", "candidate_index"} & set(shown)


# ---------------------------------------------------------------- temperature


@every_module
def test_a_fixed_temperature_is_no_parameter(module, function):
    layer = module(0.07)
    assert list(layer.parameters()) == []
    assert math.isclose(float(layer.temperature), 0.07, rel_tol=1e-6)


@every_module
def test_a_learnable_temperature_lives_in_log_space(module, function):
    layer = module(0.07, learnable_temperature=True)
    (parameter,) = layer.parameters()
    assert list(layer.state_dict()) == [name for name, _ in layer.named_parameters()]
    assert parameter.dtype == torch.float32
    assert parameter.shape == ()
    # Either sign of the logarithm will do; that it is a logarithm keeps the temperature positive.
    assert math.isclose(abs(float(parameter)), abs(math.log(0.07)), rel_tol=1e-5)
    assert math.isclose(float(layer.temperature), 0.07, rel_tol=1e-5)
    with torch.no_grad():
        parameter.mul_(2)
    assert math.isclose(float(layer.temperature), 0.07**2, rel_tol=1e-5)


@every_module
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"reduction": "none"}], ids=str)
def test_a_learnable_temperature_has_the_right_gradient(device, module, function, options):
    anchor, candidate, _ = views(device)
    layer = module(0.3, learnable_temperature=True, **options).to(device)
    loss = layer(anchor, candidate)
    temperature = torch.tensor(0.3, device=device, requires_grad=True)
    expected = function(anchor, candidate, temperature=temperature, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    (parameter,) = layer.parameters()
    (got,) = torch.autograd.grad(loss.sum(), parameter)
    (by_temperature,) = torch.autograd.grad(expected.sum(), temperature)
    sign = math.copysign(1, float(parameter) * math.log(0.3))
    torch.testing.assert_close(got, sign * 0.3 * by_temperature, rtol=1e-4, atol=1e-6)


@every_module
def test_a_learnable_temperature_trains(device, module, function):
    anchor, candidate, _ = (z.detach() for z in views(device, 20, 20))
    layer = module(0.1, learnable_temperature=True).to(device)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        loss = layer(anchor, candidate)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    # Unrelated pairs: the best temperature is a hot one.
    assert float(layer.temperature) > 0.2
    assert losses[-1] < 0.8 * losses[0]


@every_module
def test_the_state_dict_carries_the_temperature(module, function):
    one, two = module(0.2, learnable_temperature=True), module(0.05, learnable_temperature=True)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two.load_state_dict(torch.load(file, weights_only=True))
    assert math.isclose(float(two.temperature), 0.2, rel_tol=1e-5)


@every_module
def test_half_precision_rows_and_a_float_temperature(device, module, function):
    anchor, candidate, _ = (z.detach().bfloat16().requires_grad_() for z in views(device))
    layer = module(0.2, learnable_temperature=True).to(device)
    loss = layer(anchor, candidate)
    loss.backward()
    assert loss.dtype == torch.float32
    assert anchor.grad.dtype == torch.bfloat16
    assert next(layer.parameters()).grad.isfinite()


# ---------------------------------------------------------------- stats and manners


@every_module
def test_stats_after_a_forward(device, module, function):
    anchor, candidate, _ = views(device)
    layer = module(stats=True)
    loss = layer(anchor, candidate)
    assert isinstance(loss, torch.Tensor)
    expected, stats = function(anchor, candidate, return_stats=True)
    torch.testing.assert_close(loss, expected)
    for name in stats._fields[:-1]:
        torch.testing.assert_close(getattr(layer.stats, name), getattr(stats, name))
        assert not getattr(layer.stats, name).requires_grad
    layer(candidate, candidate)
    assert float(layer.stats.positive_similarity) == pytest.approx(1)


@every_module
def test_without_stats_none_are_kept(device, module, function):
    anchor, candidate, _ = views(device)
    layer = module()
    layer(anchor, candidate)
    assert getattr(layer, "stats", None) is None


@every_module
@pytest.mark.parametrize("learnable", [False, True])
def test_copies_and_pickles_are_equal_modules(device, module, function, learnable):
    anchor, candidate, _ = views(device)
    layer = module(0.2, learnable_temperature=learnable, symmetric=True, stats=True).to(device)
    expected = layer(anchor, candidate)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        torch.testing.assert_close(twin(anchor, candidate), expected, rtol=0, atol=0)
        assert repr(twin) == repr(layer)
    if learnable:
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            next(twin.parameters()).add_(1)
        assert float(layer.temperature) == pytest.approx(0.2)


@every_module
def test_repr_names_what_was_chosen(module, function):
    text = repr(module(0.07, symmetric=True))
    assert text.startswith(module.__name__)
    assert "0.07" in text
    assert "symmetric" in text
    learnable = module(0.07, learnable_temperature=True)
    assert "0.07" in repr(learnable)
    if module is fastcse.FocalInfoNCELoss:
        assert "0.45" in repr(module(margin=0.45))


QUADRUPLETS = [{"weights": (1.0, 0.5), "margin": 0.4}, {"form": "classic", "margin": (0.3, 0.1), "normalize": False}]


@pytest.mark.parametrize("options", QUADRUPLETS, ids=str)
def test_the_quadruplet_module_is_its_function(device, options):
    rows = [torch.randn(7, 5, device=device, requires_grad=True) for _ in range(4)]
    index, candidate = torch.tensor([1, 0, -1, 2, 2, 0, 1], device=device), torch.randn(3, 5, device=device)
    layer = fastcse.QuadrupletLoss(**options)
    got, expected = layer(*rows), fastcse.quadruplet_loss(*rows, **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for one, two in zip(*(torch.autograd.grad(loss, rows) for loss in (got, expected))):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    rows[2] = index
    got, expected = layer(*rows, candidate=candidate), fastcse.quadruplet_loss(*rows, candidate=candidate, **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert list(layer.parameters()) == []
    assert repr(layer).startswith("QuadrupletLoss")


@pytest.mark.parametrize(("name", "value"), [("weights", (-0.25, 0.1)), ("adversarial_mode", "fgsm"), ("noise", -0.25)])
def test_the_module_refuses_what_the_function_refuses(name, value):
    rows = torch.eye(3)
    with pytest.raises(ValueError, match=name.removeprefix("adversarial_")) as caught:
        fastcse.HSimCSELoss(**{name: value})(rows, rows, rows)
    assert str(value) in str(caught.value)


# ---------------------------------------------------------------- names of 0.1


@pytest.mark.parametrize("name", ["HSimCSEStats", "ClusterNSStats", "SSCLStats", "SoftNegativeStats"])
def test_a_former_name_warns(name):
    with pytest.warns(DeprecationWarning, match="ContrastiveStats"):
        assert getattr(fastcse, name) is fastcse.ContrastiveStats
    with pytest.raises(AttributeError, match="SimCSEStats"):
        fastcse.SimCSEStats  # noqa: B018


def test_the_former_name_of_replicated_blocks_warns():
    z, rows = torch.eye(3, 4), torch.ones(2, 4)
    with pytest.warns(DeprecationWarning, match="replicated"):
        got = gathered_loss(fastcse.infonce_loss, z, z, everywhere=[fastcse.CandidateBlock(rows)])
    torch.testing.assert_close(got, fastcse.infonce_loss(z, z, negatives=rows))
