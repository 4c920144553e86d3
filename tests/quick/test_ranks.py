"""Losses over the ranks of a group, without processes: the other rank of two holds the same rows as this one."""

import pytest
import torch

import fastcse
from fastcse.distributed import collectives, losses, ring
from fastcse.distributed.collectives import RaggedGather


@pytest.fixture(params=[0, 1])
def exchange(request, monkeypatch):
    """What this rank receives is what it sends. Of the gradient of a mean over both, that is the other's part too."""

    def copied(exchange, sent, arriving):
        for one, other in zip(arriving, sent):
            one.copy_(other)
        return []

    monkeypatch.setattr(ring, "_send_and_receive", copied)
    return RaggedGather(None, request.param, [[5], [5]])


def test_candidates_that_travel_give_the_loss_and_gradients_of_all_columns(exchange):
    a, c = (torch.randn(5, 4).requires_grad_() for _ in range(2))
    t = torch.tensor(0.3, requires_grad=True)
    made = fastcse.infonce_loss(
        a, ring.RingCandidates(exchange, c, []), temperature=t, return_stats=True, backend="cpp"
    )
    whole = fastcse.infonce_loss(a, torch.cat([c, c]), temperature=t, return_stats=True, backend="reference")
    torch.testing.assert_close(made.loss, whole.loss)
    for one, two in zip(torch.autograd.grad(made.loss, [a, c, t]), torch.autograd.grad(whole.loss, [a, c, t])):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_the_hardest_of_equal_candidates_is_the_lowest_column_of_all_ranks(exchange):
    equal = torch.ones(5, 4)
    source = ring.RingCandidates(exchange, equal, [])
    stats = fastcse.infonce_loss(equal, source, return_stats=True, backend="cpp").stats
    assert stats.hardest_index.tolist() == ([1, 0, 0, 0, 0] if exchange.rank == 0 else [0] * 5)


def test_means_of_unequal_parts_have_the_shares_that_make_their_mean_that_of_all_rows():
    rows = torch.randn(10).split([2, 3, 5])
    exchanges = [RaggedGather(None, rank, [[2], [3], [5]]) for rank in range(3)]
    mean = sum(exchange.share(0) * part.mean() for exchange, part in zip(exchanges, rows)) / 3
    torch.testing.assert_close(mean, torch.cat(rows).mean())


def test_the_gradient_of_a_temperature_is_the_mean_of_the_ranks(monkeypatch):
    own, other = (torch.tensor(0.3, requires_grad=True) for _ in range(2))
    monkeypatch.setattr(collectives, "is_many", lambda group: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(collectives, "gather_rows", lambda x, counts, group: torch.cat([x, other.reshape(1, 1)]))
    collectives.average_gradient(own).backward()
    assert (own.grad.item(), other.grad.item()) == (0.5, 0.5)


def test_the_gradient_scale_of_simcse_leaves_the_value(exchange):
    value = torch.tensor(3.0, requires_grad=True)
    scaled = losses._scaled(value, exchange, "simcse")
    scaled.backward()
    assert (scaled.item(), value.grad.item()) == (3.0, 0.5)
