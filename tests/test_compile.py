"""torch.compile(fullgraph=True), opcheck, gradcheck and autocast for every public function and option."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import fastcse
from fastcse import CandidateBlock, focal_infonce_loss, infonce_loss

LOSSES = [infonce_loss, focal_infonce_loss]
every_loss = pytest.mark.parametrize("function", LOSSES, ids=["infonce", "focal"])
every_reduction = pytest.mark.parametrize("reduction", ["mean", "none", "sum"])


def views(device, n=6, m=7, d=5, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(k, d, generator=g, dtype=torch.float64).to(device, dtype).requires_grad_() for k in (n, m, 4)]


def everything(a, c, h, **options):
    """All options at once."""
    ids = torch.arange(len(a), device=a.device) % 4
    block = CandidateBlock(h, log_weight=torch.linspace(-1, 1, 4, device=a.device), own_log_weight=0.5,
                           id=torch.arange(4, device=a.device))
    frozen = torch.linspace(-1, 2, 3 * a.shape[1], device=a.device, dtype=a.dtype).reshape(3, -1)
    return focal_infonce_loss(a, c, ids, negatives=[block, frozen], anchor_id=ids,
                              candidate_id=torch.arange(len(c), device=a.device) % 5, temperature=0.2, **options)


CALLS = {
    "infonce": infonce_loss,
    "focal": focal_infonce_loss,
    "positive": lambda a, c, **o: infonce_loss(a, c, torch.arange(len(a), device=a.device).flip(0), **o),
    "raw rows": lambda a, c, **o: infonce_loss(a, c, normalize=False, temperature=2.0, **o),
    "detached": lambda a, c, **o: focal_infonce_loss(a, c, detach_modulation=True, margin=0.1, **o),
}


def both_ways(compiled, plain, leaves):
    """Value and gradients of the compiled function against the plain one."""
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    got, expected = compiled(), plain()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    weight = torch.linspace(1, 2, expected.numel(), device=expected.device).reshape(expected.shape)
    grads = [torch.autograd.grad((loss * weight).sum(), leaves, allow_unused=True) for loss in (got, expected)]
    for one, two in zip(*grads):
        assert one is not None
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def assert_compiles(function, leaves, backend="aot_eager"):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    both_ways(lambda: compiled(*leaves), lambda: function(*leaves), leaves)


@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_compile(device, name, symmetric, reduction):
    assert_compiles(lambda a, c: CALLS[name](a, c, symmetric=symmetric, reduction=reduction), views(device)[:2])


@every_loss
def test_compile_on_every_backend(device, backend, function):
    assert_compiles(lambda a, c: function(a, c, backend=backend), views(device)[:2])
    assert fastcse.last_backend() == backend
    assert_compiles(lambda a, c: function(a, c, backend=backend, symmetric=True, reduction="none"), views(device)[:2])
    assert fastcse.last_backend() == backend


@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_compile_everything(device, symmetric, reduction):
    def function(a, c, h):
        return everything(a, c, h, symmetric=symmetric, reduction=reduction)
    assert_compiles(function, views(device))


@every_loss
@every_reduction
def test_compile_learnable_temperature(device, function, reduction):
    a, c, _ = views(device)
    temperature = torch.tensor(0.2, device=device, requires_grad=True)
    assert_compiles(lambda a, c, t: function(a, c, temperature=t, reduction=reduction), [a, c, temperature])


@every_loss
def test_compile_stats(device, function):
    leaves = views(device)[:2]
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, c: function(a, c, return_stats=True), fullgraph=True, backend="aot_eager")
    got, expected = compiled(*leaves), function(*leaves, return_stats=True)
    torch.testing.assert_close(got.loss, expected.loss)
    for one, two in zip(got.stats, expected.stats):
        torch.testing.assert_close(one, two)
        assert not one.requires_grad


@pytest.mark.parametrize("normalize", [True, False])
def test_compile_similarity(device, normalize):
    assert_compiles(lambda a, c: fastcse.similarity(a, c, normalize=normalize), views(device)[:2])


def test_compile_geometry(device):
    a, b = views(device, 6, 6)[:2]
    assert_compiles(fastcse.alignment, [a, b])
    assert_compiles(fastcse.uniformity, [a])


@pytest.mark.parametrize("module", [fastcse.InfoNCELoss, fastcse.FocalInfoNCELoss])
@pytest.mark.parametrize("options", [{}, {"learnable_temperature": True}, {"symmetric": True}], ids=str)
def test_compile_modules(device, module, options):
    layer = module(**options).to(device)
    assert_compiles(lambda a, c: layer(a, c), views(device)[:2])


def test_compile_without_gradients(device):
    leaves = views(device)[:2]
    torch._dynamo.reset()
    compiled = torch.compile(focal_infonce_loss, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*leaves), focal_infonce_loss(*leaves))


def test_inductor_in_a_model(device):
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 5).to(device)

    def step(a, c):
        return focal_infonce_loss(layer(a).tanh(), c, symmetric=True) * 2 + infonce_loss(a, layer(c))
    leaves = [*views(device)[:2], layer.weight]
    compiled = torch.compile(step, fullgraph=True, backend="inductor")
    both_ways(lambda: compiled(*leaves[:2]), lambda: step(*leaves[:2]), leaves)


@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_batch_size_is_no_constant(device, symmetric, reduction):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def function(a, c, h):
        return focal_infonce_loss(a, c, negatives=h, symmetric=symmetric, reduction=reduction)
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for n in (5, 7, 9, 12, 21):
        leaves = views(device, n, n + 3)
        both_ways(lambda leaves=leaves: compiled(*leaves), lambda leaves=leaves: function(*leaves), leaves)
    assert counter.frame_count <= 2, f"compiled {counter.frame_count} times for five batch sizes"


# ---------------------------------------------------------------- custom ops

class Recorder(TorchDispatchMode):
    """Remembers the calls of fastcse's custom ops: operator and copied arguments."""

    def __init__(self):
        super().__init__()
        self.calls, self.backward = [], False

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "fastcse":
            self.calls.append((op, self.copied(args), {k: self.copied(v) for k, v in (kwargs or {}).items()}))
        return op(*args, **(kwargs or {}))

    def copied(self, value):
        # What arrives in backward asks for no gradient of its own: differentiating twice is an error, elsewhere tested.
        if isinstance(value, torch.Tensor):
            return value.detach().clone().requires_grad_(value.requires_grad and not self.backward)
        return type(value)(self.copied(v) for v in value) if isinstance(value, list | tuple) else value


def scenarios(device, backend):
    """Calls that between them reach every custom op, in every mode."""
    a, c, h = views(device)
    t = torch.tensor(0.2, device=device, requires_grad=True)
    weight = torch.linspace(1, 2, 6, device=device)
    return {
        "mean": lambda: infonce_loss(a, c, backend=backend),
        "focal mean": lambda: focal_infonce_loss(a, c, backend=backend),
        "rows": lambda: (focal_infonce_loss(a, c, reduction="none", backend=backend) * weight).sum(),
        "symmetric": lambda: infonce_loss(a, c, symmetric=True, backend=backend),
        "temperature": lambda: 3 * infonce_loss(a, c, temperature=t, backend=backend),
        "temperature of rows": lambda: infonce_loss(a, c, temperature=t, reduction="none", backend=backend).sum(),
        "everything": lambda: everything(a, c, h, backend=backend),
        "everything symmetric": lambda: everything(a, c, h, symmetric=True, backend=backend),
        "stats": lambda: infonce_loss(a, c, return_stats=True, backend=backend).loss,
        "similarity": lambda: fastcse.similarity(a, c, backend=backend).sum(),
        "half": lambda: infonce_loss(a.bfloat16(), c.bfloat16(), backend=backend),
    }


def record(call):
    """The custom ops that `call` and its backward reach when compiled; eagerly it may take a shorter way past them."""
    recorder = Recorder()

    def backend(graph, example_inputs):
        def watched(*args):
            with recorder:
                return graph(*args)
        return watched
    torch._dynamo.reset()
    loss = torch.compile(call, fullgraph=True, backend=backend)()
    recorder.backward = True
    with recorder:
        loss.backward()
    return recorder.calls


@pytest.mark.parametrize("name", scenarios("cpu", None))
def test_opcheck(device, name):
    calls = record(scenarios(device, None)[name])
    assert calls, "no custom op of fastcse was seen"
    for op, args, kwargs in calls:
        torch.library.opcheck(op, args, kwargs)


@pytest.mark.parametrize("name", ["everything", "similarity", "rows"])
def test_opcheck_on_every_backend(device, backend, name):
    for op, args, kwargs in record(scenarios(device, backend)[name]):
        torch.library.opcheck(op, args, kwargs)


def test_the_scenarios_reach_every_custom_op(device):
    seen = {op.name() for call in scenarios(device, None).values() for op, _, _ in record(call)}
    registered = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastcse::")}
    assert seen == registered


# ---------------------------------------------------------------- float64

GRADCHECKS = {
    "infonce": (lambda a, c, h, **o: infonce_loss(a, c, temperature=0.4, **o)),
    "focal": (lambda a, c, h, **o: focal_infonce_loss(a, c, temperature=0.4, **o)),
    "raw rows": (lambda a, c, h, **o: focal_infonce_loss(a, c, temperature=1.0, normalize=False, **o)),
    "everything": everything,
}


@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", GRADCHECKS)
def test_gradcheck(name, symmetric, reduction):
    leaves = views("cpu", 4, 5, 3, torch.float64)
    options = dict(symmetric=symmetric, reduction=reduction)
    assert torch.autograd.gradcheck(lambda *z: GRADCHECKS[name](*z, **options), leaves)
    assert fastcse.last_backend() == "reference"
    assert GRADCHECKS[name](*leaves, **options).dtype == torch.float64


@every_loss
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck_of_the_temperature(function, symmetric):
    a, c, _ = views("cpu", 4, 5, 3, torch.float64)
    t = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, c, t: function(a, c, temperature=t, symmetric=symmetric), [a, c, t])


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_of_similarity(normalize):
    leaves = views("cpu", 3, 4, 3, torch.float64)[:2]
    assert torch.autograd.gradcheck(lambda a, c: fastcse.similarity(a, c, normalize=normalize), leaves)


@pytest.mark.parametrize("module", [fastcse.InfoNCELoss, fastcse.FocalInfoNCELoss])
def test_gradcheck_of_modules(module):
    layer = module(0.4, learnable_temperature=True).double()
    a, c, _ = views("cpu", 4, 5, 3, torch.float64)
    (parameter,) = layer.parameters()
    assert torch.autograd.gradcheck(lambda a, c, p: layer(a, c), [a, c, parameter])


# ---------------------------------------------------------------- autocast

def autocast(device):
    return torch.autocast(device.type, dtype=torch.bfloat16)


@every_loss
@every_reduction
@pytest.mark.parametrize("symmetric", [False, True])
def test_autocast_does_not_round_float32_rows(forced, device, function, reduction, symmetric):
    leaves = views(device, 20, 20, 16)[:2]
    options = dict(reduction=reduction, symmetric=symmetric)
    expected = forced(function, *leaves, **options)
    with autocast(device):
        got = forced(function, *leaves, **options)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    for one, two in zip(*(torch.autograd.grad(loss.sum(), leaves) for loss in (got, expected))):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@every_loss
def test_autocast_behind_a_layer(forced, device, function):
    layer = torch.nn.Linear(16, 16, bias=False).to(device)
    a, c, _ = (z.detach() for z in views(device, 20, 20, 16))
    with autocast(device):
        rows = layer(a), layer(c)
        assert rows[0].dtype == torch.bfloat16
        loss = forced(function, *rows)
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32
    outside = forced(function, *(z.detach() for z in rows))
    torch.testing.assert_close(loss.detach(), outside, rtol=1e-6, atol=1e-6)


def test_autocast_similarity(forced, device):
    leaves = views(device, 9, 8, 16)[:2]
    expected = forced(fastcse.similarity, *leaves)
    with autocast(device):
        got = forced(fastcse.similarity, *leaves)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
