"""torch.library.opcheck of every custom op, with the arguments of real calls."""

import functools

import pytest
import torch
from calls import everything, views
from conftest import BACKENDS
from torch.utils._python_dispatch import TorchDispatchMode

import fastcse
from fastcse import infonce_loss


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
    own = torch.tensor([1, 0, 6, -1, 6, 1], device=device)
    return {
        "temperature": lambda: 3 * infonce_loss(a, c, temperature=t, backend=backend),
        "rows symmetric": lambda: (
            infonce_loss(a, c, symmetric=True, temperature=t, reduction="none", backend=backend) * weight
        ).sum(),
        "everything symmetric": lambda: everything(a, c, h, symmetric=True, backend=backend),
        "stats": lambda: infonce_loss(a, c, return_stats=True, backend=backend).loss,
        "similarity": lambda: fastcse.similarity(a, c, backend=backend).sum(),
        "topk": lambda: a.sum() + fastcse.topk(a, c, 2, backend=backend).values.sum(),
        "assign": lambda: a.sum() + fastcse.assign(a, c, second=True, metric="euclidean", backend=backend).value.sum(),
        "cluster sums": lambda: a.sum() + fastcse.cluster_sums(a, own, 8, normalize=True, backend=backend).sums.sum(),
        "quadruplet of rows": lambda: (
            fastcse.quadruplet_loss(a, a, own, c[:6], candidate=c, margin=2.0, reduction="none", backend=backend)
            * weight
        ).sum(),
        "hsimcse": lambda: fastcse.hsimcse_loss(a, c, a, temperature=t, margin=2.0, noise=0.0, backend=backend),
        "clusterns": lambda: fastcse.clusterns_loss(a, c[:6], own.clamp_max(1), margin_weight=1.0, backend=backend),
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


@functools.cache
def recorded(device, backend, name):
    return record(scenarios(device, backend)[name])


@pytest.mark.parametrize("name", scenarios("cpu", None))
def test_opcheck(device, name):
    for op, args, kwargs in recorded(device, None, name):
        torch.library.opcheck(op, args, kwargs)


@pytest.mark.interpreted
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "cpp"], indirect=True)
@pytest.mark.parametrize("name", ["everything symmetric", "quadruplet of rows"])
def test_opcheck_on_other_backends(device, backend, name):
    for op, args, kwargs in recorded(device, backend, name):
        torch.library.opcheck(op, args, kwargs)


def test_the_scenarios_reach_every_custom_op(device):
    seen = {op.name() for name in scenarios(device, None) for op, _, _ in recorded(device, None, name)}
    registered = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastcse::")}
    assert seen == registered
