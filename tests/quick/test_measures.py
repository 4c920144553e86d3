"""What a benchmark measures: turns of its providers, memory, and the float64 truth that errors are taken from."""

from types import SimpleNamespace

import torch

from fastcse.bench import memory
from fastcse.bench.loss import LossCase, plain_loss
from fastcse.bench.timing import interleave


def test_whoever_was_first_is_last_in_the_next_round():
    order = []
    interleave({name: lambda name=name: order.append(name) for name in "abc"}, lambda run: run() or 0.0, 2)
    assert "".join(order) == "abccba"


def test_memory_is_what_lies_beyond_inputs_and_outputs(monkeypatch):
    monkeypatch.setattr(memory, "peak_memory", lambda device: lambda run: 5 * memory.MIB)
    case = SimpleNamespace(
        inputs=lambda: (), call=lambda *_: lambda: None, output_bytes=lambda inputs: 2 * memory.MIB, device="cpu"
    )
    assert memory._extra_memory(case, SimpleNamespace(), None) == 3.0


def test_the_truth_of_the_symmetric_loss_is_the_plain_formula():
    case = LossCase(n=5, d=4, loss="symmetric", temperature=0.3)
    rows = [torch.randn(5, 4).double().requires_grad_() for _ in range(2)]
    exact, plain = case.exact(*rows), plain_loss(case)(*rows)
    torch.testing.assert_close(exact.value, plain.detach())
    for one, two in zip(exact.gradients, torch.autograd.grad(plain, rows)):
        torch.testing.assert_close(one, two)
