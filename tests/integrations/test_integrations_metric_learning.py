"""The loss and the miner beside pytorch-metric-learning's own."""

import doctest
import logging

import pytest
import torch

pml = pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is not installed")
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers  # noqa: E402

import fastcse  # noqa: E402
from fastcse.integrations import metric_learning as ours  # noqa: E402

LABELS = {
    "two of each": [0, 1, 2, 3, 4, 0, 1, 2, 3, 4],
    "groups": [7, 7, 3, 7, -2, 3, 3, 7, 7, 3],
    "some alone": [0, 0, 1, 2, 3, 4, 5, 0, 8, 9],
    "one label": [4] * 10,
    "no pair": list(range(10)),
}
every_label = pytest.mark.parametrize("labels", [torch.tensor(x) for x in LABELS.values()], ids=list(LABELS))


def leaf(rows=10, width=8, dtype=torch.float32):
    return torch.randn(rows, width, dtype=dtype, requires_grad=True)


def compare(mine, theirs, leaves, *arguments, **options):
    rtol, atol = (1e-10, 1e-12) if leaves[0].dtype == torch.float64 else (1e-4, 1e-5)
    got, expected = mine(leaves[0], *arguments, **options), theirs(leaves[0], *arguments, **options)
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)
    for one, other in zip(
        torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves, materialize_grads=True)
    ):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
    return got


@pytest.mark.parametrize("at_once", [3, 2**15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@every_label
def test_all_pairs_of_the_labels(labels, temperature, dtype, at_once, monkeypatch):
    monkeypatch.setattr(ours, "AT_ONCE", at_once)
    mine = ours.NTXentLoss(temperature)
    compare(mine, losses.NTXentLoss(temperature), [leaf(dtype=dtype)], labels)
    assert mine.used_backend == ("reference" if dtype == torch.float64 else "cpp") == fastcse.last_backend()


@every_label
def test_a_reference_set(labels):
    x, y = leaf(dtype=torch.float64), leaf(14, dtype=torch.float64)
    other = torch.cat([labels.flip(0), labels[:4]])
    compare(ours.NTXentLoss(), losses.NTXentLoss(), [x, y], labels, ref_emb=y, ref_labels=other)
    # Equal labels in another tensor make a row its own positive, here and there.
    compare(ours.NTXentLoss(), losses.NTXentLoss(), [x, y], labels, ref_emb=y[:10], ref_labels=labels.clone())


@pytest.mark.parametrize(
    "options",
    [
        {"distance": distances.DotProductSimilarity(normalize_embeddings=False)},
        {"distance": distances.DotProductSimilarity()},
        {"reducer": reducers.ThresholdReducer(low=0.1)},
        {"reducer": reducers.AvgNonZeroReducer()},
        {"reducer": reducers.ClassWeightedReducer(torch.arange(1.0, 11.0))},
        {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3},
    ],
    ids=str,
)
def test_options_of_the_base_class(options):
    labels = torch.tensor(LABELS["two of each"])
    compare(ours.NTXentLoss(0.5, **options), losses.NTXentLoss(0.5, **options), [leaf(dtype=torch.float64)], labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_of_a_miner(dtype):
    x, labels = leaf(dtype=dtype), torch.tensor(LABELS["groups"])
    for miner in miners.BatchHardMiner(), miners.TripletMarginMiner(), miners.MultiSimilarityMiner():
        mine = ours.NTXentLoss()
        compare(mine, losses.NTXentLoss(), [x], labels, miner(x, labels))
        assert mine.used_backend == "torch"
    triplets = tuple(torch.randint(10, (20,)) for _ in range(3))  # repeated ones count as often as they occur
    compare(ours.NTXentLoss(), losses.NTXentLoss(), [x], indices_tuple=triplets)


def test_any_other_distance_runs_in_the_peers_class_and_says_so(caplog):
    mine, theirs = (place.NTXentLoss(distance=distances.LpDistance()) for place in (ours, losses))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            compare(mine, theirs, [leaf()], torch.tensor(LABELS["groups"]))
    assert [r.message for r in caplog.records if "LpDistance" in r.message] == [caplog.records[0].message]
    assert mine.used_backend == "pytorch-metric-learning"


def test_the_peers_wrappers_take_it():
    x, y = leaf(), leaf()
    for symmetric in True, False:
        wrapped = [losses.SelfSupervisedLoss(p.NTXentLoss(), symmetric=symmetric) for p in (ours, losses)]
        got, expected = (w(x, y) for w in wrapped)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    memories = [losses.CrossBatchMemory(p.NTXentLoss(), 8, memory_size=25) for p in (ours, losses)]
    for seed in range(3):
        rows, labels = leaf(), torch.randint(4, (10,), generator=torch.Generator().manual_seed(seed))
        got, expected = (m(rows, labels) for m in memories)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_far_negative_keeps_its_loss_where_the_peer_stops():
    # Cosines of 1 and -1 at temperature 0.01: the peer's loss of 200 ends at -log(1e-38) = 87, without gradient.
    x = torch.tensor([[1.0, 0.2], [-1, 0], [1, 0]], requires_grad=True)
    loss = ours.NTXentLoss(0.01)(x, torch.tensor([0, 0, 1]))
    assert loss > 95  # the mean with the pair's other half, which costs 0.7
    assert losses.NTXentLoss(0.01)(x, torch.tensor([0, 0, 1])) < 45
    assert torch.autograd.grad(loss, x)[0].abs().max() > 1


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="temperature"):
        ours.NTXentLoss(0.0)
    with pytest.raises(ValueError, match="indices_tuple"):
        ours.NTXentLoss()(leaf())
    with pytest.raises(ValueError, match="positives"):
        ours.HardestNegativeMiner("easiest")
    with pytest.raises(ValueError, match="LpDistance"):
        ours.HardestNegativeMiner(distance=distances.LpDistance(p=1))
    with pytest.raises(ValueError, match="SNRDistance"):
        ours.HardestNegativeMiner(distance=distances.SNRDistance())


# ---------------------------------------------------------------- the miner

DISTANCES = [
    distances.LpDistance(),
    distances.LpDistance(normalize_embeddings=False),
    distances.CosineSimilarity(),
    distances.DotProductSimilarity(normalize_embeddings=False),
]
every_distance = pytest.mark.parametrize("distance", DISTANCES, ids=lambda d: f"{type(d).__name__}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_distance
@every_label
def test_hardest_of_both_sides_is_batch_hard(labels, distance, dtype):
    x = leaf(dtype=dtype)
    mine = ours.HardestNegativeMiner(distance=distance)
    got, expected = mine(x, labels), miners.BatchHardMiner(distance=distance)(x, labels)
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    assert mine.used_backend == ("reference" if dtype == torch.float64 else "cpp") == fastcse.last_backend()


@every_distance
def test_a_reference_set_of_the_miner(distance):
    x, y, labels = leaf(), leaf(31), torch.tensor(LABELS["groups"], dtype=torch.int32)
    other = torch.cat([labels, labels, labels, labels[:1]])
    got, expected = (m(x, labels, y, other) for m in (
        ours.HardestNegativeMiner(distance=distance), miners.BatchHardMiner(distance=distance)))  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


@every_distance
@every_label
def test_all_positives_have_the_triplet_of_greatest_violation(labels, distance):
    x = leaf()
    got = ours.HardestNegativeMiner("all", distance=distance)(x, labels)
    a, p, n = miners.TripletMarginMiner(margin=1e9, distance=distance)(x, labels)
    mat = distance(x)
    worst = {}
    for i, j, k in zip(a.tolist(), p.tolist(), n.tolist()):
        sign = 1 if distance.is_inverted else -1
        if (i, j) not in worst or sign * mat[i, k] > sign * mat[i, worst[i, j]]:
            worst[i, j] = k
    assert {(i, j): k for i, j, k in zip(*(x.tolist() for x in got))} == worst
    assert len(got[0]) == len(worst)


def test_loss_and_miner_together():
    x, labels = leaf(), torch.tensor(LABELS["groups"])
    compare(ours.NTXentLoss(), losses.NTXentLoss(), [x], labels, ours.HardestNegativeMiner()(x, labels))


def test_examples_run():
    assert doctest.testmod(ours, extraglobs={"torch": torch}).failed == 0
