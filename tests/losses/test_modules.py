"""The modules are the functions, with a temperature that may learn. All share one class."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from conformance import LOSSES
from properties import arguments_of, weighed

import fastcse
from fastcse.distributed import gathered_loss

CONTRASTIVE = [
    {}, {"temperature": 0.2, "symmetric": True}, {"normalize": False, "temperature": 3.0, "reduction": "none"},
    {"max_workspace_bytes": 1 << 14, "reduction": "sum"}, {"backend": "reference"},
]  # fmt: skip
# Module: the case that makes its rows, and options of which each reaches the function.
MODULES = {
    fastcse.InfoNCELoss: ("infonce", CONTRASTIVE),
    fastcse.FocalInfoNCELoss: ("infonce", [*CONTRASTIVE, {"margin": 0.5, "detach_modulation": True}]),
    fastcse.AngularInfoNCELoss: ("infonce", [*CONTRASTIVE, {"temperature": 0.2, "margin": 0.4}]),
    fastcse.QuadrupletLoss: ("quadruplet", [
        {"weights": (1.0, 0.5), "margin": 0.4}, {"form": "classic", "margin": (0.3, 0.1), "normalize": False}]),
    fastcse.HSimCSELoss: ("hsimcse", [
        {"temperature": 0.2, "symmetric": True, "noise": 0.0},
        {"form": "classic", "margin": (0.3, 0.1), "reduction": "none", "noise": 0.0},
        {"quadruplet_weight": 2.0, "weights": (1.0, 0.5), "margin": 0.4, "adversarial_mode": "sign",
         "adversarial_step": 0.5, "noise": 0.0}]),
}  # fmt: skip
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
Focal = fastcse.FocalInfoNCELoss


def views(device):
    return [torch.randn(k, 4, device=device, requires_grad=True) for k in (5, 6, 3)]


@every_module
def test_a_module_is_its_function(device, module):
    name, every = MODULES[module]
    for options in every:
        rows = arguments_of(LOSSES[name], device)
        call = {}
        if module is not fastcse.QuadrupletLoss:
            ids = torch.arange(10, device=device)
            call = {"positive": ids[:8].flip(0), "anchor_id": ids[:8] % 3, "candidate_id": ids % 4}
            call["negatives"] = [fastcse.CandidateBlock(torch.randn(3, 5, device=device))]
        got, expected = module(**options)(*rows.values(), **call), module.loss_fn(**rows, **call, **options)
        assert torch.equal(got, expected), options
        leaves = [x for x in rows.values() if x.requires_grad]
        for one, two in zip(*(torch.autograd.grad(weighed(loss), leaves) for loss in (got, expected))):
            assert torch.equal(one, two), options
        assert repr(module(**options)).startswith(module.__name__)


@pytest.mark.parametrize("module", [*MODULES, fastcse.ClusterNSLoss])
def test_the_signature_is_the_functions(module):
    shown, options = inspect.signature(module).parameters, inspect.signature(module.loss_fn).parameters
    assert "backend" in shown
    if module is not fastcse.QuadrupletLoss:
        assert list(shown)[module is fastcse.ClusterNSLoss] == "temperature"
        assert {"learnable_temperature", "stats"} <= set(shown)
    assert all(p.default == options[n].default for n, p in shown.items() if n in options)
    assert not {"return_stats", "generator", "negatives", "anchor_id", "candidate_index"} & set(shown)


@pytest.mark.parametrize("options", [{"marginal": 0.3}, {"negatives": None}])
def test_an_option_that_the_function_has_not_is_named(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        Focal(**options)
    with pytest.raises(TypeError):
        Focal(0.05, 0.3, True)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Focal, {"temperature": 0.0}),
        (Focal, {"reduction": "average"}),
        (fastcse.QuadrupletLoss, {"weights": (-0.25, 0.1)}),
        (fastcse.HSimCSELoss, {"noise": -0.25}),
    ],
)
def test_a_module_refuses_what_its_function_refuses(module, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        module(**options)(*[torch.eye(3)] * (4 if module is fastcse.QuadrupletLoss else 2 + ("noise" in options)))


# ---------------------------------------------------------------- temperature


def test_a_fixed_temperature_is_no_parameter():
    layer = Focal(0.07)
    assert list(layer.parameters()) == []
    assert math.isclose(float(layer.temperature), 0.07, rel_tol=1e-6)


def test_a_learnable_temperature_lives_in_log_space():
    layer = Focal(0.07, learnable_temperature=True)
    (parameter,) = layer.parameters()
    assert list(layer.state_dict()) == ["log_temperature"]
    assert (parameter.dtype, parameter.shape) == (torch.float32, ())
    assert math.isclose(float(parameter.detach()), math.log(0.07), rel_tol=1e-5)
    assert math.isclose(float(layer.temperature), 0.07, rel_tol=1e-5)


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_learnable_temperature_has_the_right_gradient(device, options, dtype):
    anchor, candidate, _ = (x.detach().to(dtype).requires_grad_() for x in views(device))
    layer = Focal(0.3, learnable_temperature=True, **options).to(device)
    loss = layer(anchor, candidate)
    temperature = torch.tensor(0.3, device=device, requires_grad=True)
    expected = fastcse.focal_infonce_loss(anchor, candidate, temperature=temperature, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    (got,) = torch.autograd.grad(loss.sum(), layer.log_temperature)
    (by_temperature,) = torch.autograd.grad(expected.sum(), temperature)
    torch.testing.assert_close(got, 0.3 * by_temperature, rtol=1e-4, atol=1e-6)


def test_the_state_dict_carries_the_temperature():
    one, two = (Focal(t, learnable_temperature=True) for t in (0.2, 0.05))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two.load_state_dict(torch.load(file, weights_only=True))
    assert math.isclose(float(two.temperature), 0.2, rel_tol=1e-5)


# ---------------------------------------------------------------- statistics, copies


@pytest.mark.parametrize("module", [Focal, fastcse.HSimCSELoss])
def test_statistics_are_those_of_the_last_call(device, module):
    rows = [*arguments_of(LOSSES["hsimcse"], device).values()][: 3 if module is fastcse.HSimCSELoss else 2]
    more = {"noise": 0.0, "margin": 0.5} if module is fastcse.HSimCSELoss else {}
    layer = module(0.2, stats=True, **more)
    layer(*(x.flip(0) for x in rows))
    loss = layer(*rows)
    expected, stats = module.loss_fn(*rows, temperature=0.2, return_stats=True, **more)
    torch.testing.assert_close(loss, expected)
    assert layer.stats.parts.keys() == stats.parts.keys()
    for name in (*stats._fields[:-1], *stats.parts):
        torch.testing.assert_close(getattr(layer.stats, name), getattr(stats, name))
        assert not getattr(layer.stats, name).requires_grad
    quiet = module(0.2)
    quiet(*rows)
    assert quiet.stats is None


@pytest.mark.parametrize("learnable", [False, True])
def test_copies_and_pickles_are_equal_modules(device, learnable):
    anchor, candidate, _ = views(device)
    layer = Focal(0.2, 0.45, learnable_temperature=learnable, symmetric=True, stats=True).to(device)
    assert all(word in repr(layer) for word in ("FocalInfoNCELoss", "0.2", "0.45", "symmetric"))
    expected = layer(anchor, candidate)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        torch.testing.assert_close(twin(anchor, candidate), expected, rtol=0, atol=0)
        assert repr(twin) == repr(layer)
    if learnable:
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            next(twin.parameters()).add_(1)
        assert float(layer.temperature) == pytest.approx(0.2)


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
