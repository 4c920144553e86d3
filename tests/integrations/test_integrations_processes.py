"""The adapters over two processes: their mean gradient beside one process with the whole batch."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses as peer
from test_integrations_sentence_transformers import guided_by_hand
from torch import distributed as dist

from fastcse.distributed import gather_equal_rows
from fastcse.integrations.open_clip import ClipLoss
from fastcse.integrations.sentence_transformers import gist, multiple_negatives

RANKS, ROWS, WIDTH, COLUMNS = 2, 5, 8, 3
EVERY = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
RANKING = {
    "default": {},
    "every direction": {"directions": EVERY},
    "without doc_to_query": {"directions": ("query_to_doc", "doc_to_doc")},
    "symmetric": {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    **{mode: {"directions": EVERY, "hardness_mode": mode, "hardness_strength": 5.0}
       for mode in ("in_batch_negatives", "hard_negatives", "all_negatives")},
}  # fmt: skip
GUIDED = {"temperature": 0.1, "margin_strategy": "absolute", "margin": 0.1}
CONTRASTED = {"pairs only": (False, False), "positives": (False, True)}
CLIP = [(local, grad) for local in (False, True) for grad in (False, True)]


def whole():
    """The whole batch: columns of (W N, D), and the guide's."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, COLUMNS, RANKS * ROWS, WIDTH, dtype=torch.float64, generator=generator)[k] for k in (0, 1)]


def guided(anchors, positives, gather):
    """The loss without its two models, of which only the embeddings are asked for here."""
    loss = gist.GISTEmbedLoss.__new__(gist.GISTEmbedLoss)
    torch.nn.Module.__init__(loss)
    loss.__dict__.update(GUIDED, contrast_anchors=anchors, contrast_positives=positives, gather_across_devices=gather)
    return loss


def outcomes(rank):
    """Name -> [loss, gradients of the own rows] on this rank, in float64."""
    columns, guides = (x[:, rank * ROWS : (rank + 1) * ROWS] for x in whole())
    made = {}

    def note(name, compute):
        leaves = [x.clone().requires_grad_() for x in columns]
        loss = compute(leaves)
        made[name] = [loss.detach(), *torch.autograd.grad(loss, leaves, materialize_grads=True)]

    for name, options in RANKING.items():
        for place in multiple_negatives, peer:
            loss = place.MultipleNegativesRankingLoss(None, gather_across_devices=True, **options)
            key = ("ranking", name, place is peer)
            note(key, lambda leaves, loss=loss: loss.compute_loss_from_embeddings(leaves, None))
    for name, (anchors, positives) in CONTRASTED.items():
        loss = guided(anchors, positives, True)
        note(("gist", name), lambda leaves, loss=loss: loss.compute_loss_from_embeddings(leaves, list(guides)))
    for local, grad in CLIP:
        loss = ClipLoss(local, grad, rank=rank, world_size=RANKS)
        note(("clip", local, grad), lambda leaves, loss=loss: loss(leaves[0], leaves[1], 3.0))
    return made


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    own = torch.full((2, 3), float(rank), requires_grad=True)
    everyone, first = gather_equal_rows(own)
    (everyone * torch.arange(12.0).reshape(4, 3)).sum().backward()
    seen = {"outcomes": outcomes(rank), "rows": everyone.detach(), "first": first, "grad": own.grad,
            "type": type(everyone).__name__}  # fmt: skip
    torch.save(seen, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, (folder,), nprocs=RANKS)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


def test_rows_and_their_gradients_are_exchanged(ranks):
    for rank, seen in enumerate(ranks):
        assert seen["type"] == "Tensor"
        assert seen["first"] == 2 * rank
        torch.testing.assert_close(seen["rows"], torch.tensor([0.0, 0, 1, 1])[:, None].expand(4, 3))
        # Both ranks ask the same of a row, so that its owner gets it twice.
        torch.testing.assert_close(seen["grad"], RANKS * torch.arange(12.0).reshape(4, 3)[2 * rank : 2 * rank + 2])


def assert_whole(ranks, key, compute, gradient_share=1.0, columns=range(COLUMNS)):
    """The mean over ranks of losses and of gradients is the single process's; a rank's own rows come from all."""
    leaves = [x.clone().requires_grad_() for x in whole()[0]]
    expected = compute(leaves)
    losses, gradients = zip(*((seen["outcomes"][key][0], seen["outcomes"][key][1:]) for seen in ranks))
    torch.testing.assert_close(sum(losses) / RANKS, expected.detach())
    wanted = torch.autograd.grad(expected, leaves, materialize_grads=True)
    for column in columns:
        got = torch.cat([g[column] for g in gradients]) / RANKS
        torch.testing.assert_close(got, gradient_share * wanted[column], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", RANKING)
def test_ranking_is_the_whole_batchs_and_the_peers(ranks, name):
    loss = peer.MultipleNegativesRankingLoss(None, **RANKING[name])
    assert_whole(ranks, ("ranking", name, False), lambda leaves: loss.compute_loss_from_embeddings(leaves, None))
    for seen in ranks:
        for mine, theirs in zip(seen["outcomes"]["ranking", name, False], seen["outcomes"]["ranking", name, True]):
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", CONTRASTED)
def test_gist_is_the_whole_batchs(ranks, name):
    anchors, positives = CONTRASTED[name]
    options = {**GUIDED, "contrast_anchors": anchors, "contrast_positives": positives}
    assert_whole(ranks, ("gist", name), lambda leaves: guided_by_hand(leaves, list(whole()[1]), options))


@pytest.mark.parametrize(("local", "grad"), CLIP)
def test_clip_as_its_options_say(ranks, local, grad):
    def formula(leaves):
        x = 3.0 * leaves[0] @ leaves[1].T
        own = torch.arange(len(x))
        return (F.cross_entropy(x, own) + F.cross_entropy(x.T, own)) / 2

    def own_rows_only(leaves):  # every side's gradient through its own rows, where no other process sends any
        a, b = leaves[:2]
        own = torch.arange(len(a))
        one, other = 3.0 * a @ b.detach().T, 3.0 * b @ a.detach().T
        return (F.cross_entropy(one, own) + F.cross_entropy(other, own)) / 2

    if local and not grad:
        assert_whole(ranks, ("clip", local, grad), own_rows_only)
    else:
        # All rows without the others' gradient: right in direction, and W times too small.
        assert_whole(ranks, ("clip", local, grad), formula, 1.0 if grad else 1 / RANKS)
