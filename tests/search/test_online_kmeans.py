"""ClusterNS's clustering: where it starts, how it moves, and that it goes on after being saved."""

import multiprocessing
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

import fastcse
from fastcse import OnlineKMeans
from fastcse.clustering.online import first_centroids, mean_similarity

Z1 = torch.tensor([[3.0, 4, 0], [0, 3, 4], [5, 0, 0]])
Z2 = torch.tensor([[4.0, 3, 0], [0, 4, 3], [4, 0, -3]])
MU = torch.tensor([[3.0, 4, 0], [5, 0, 0]])


def running(**options):
    """Started, at the centroids of the test vectors."""
    clusters = OnlineKMeans(2, 3, **options)
    clusters.centroids.copy_(MU)
    clusters.started.fill_(True)
    return clusters


def batches(count, n=12, d=5, k=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(k, d, generator=g) * 2
    for _ in range(count):
        anchor = centres[torch.randint(k, (n,), generator=g)] + 0.3 * torch.randn(n, d, generator=g)
        yield anchor, anchor + 0.1 * torch.randn(n, d, generator=g)


def test_the_chain_of_the_specification():
    assert torch.equal(first_centroids(Z1, Z2, 3, 0, "chain"), Z1[[0, 2, 1]])


def test_max_min_looks_at_all_centroids_before():
    rows = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0.05], [0.02, 1]])
    chosen = first_centroids(rows, rows, 4, 0, "max-min")
    assert torch.equal(chosen, rows[[0, 3, 4, 1]]) or torch.equal(chosen, rows[[0, 3, 2, 1]])
    # The chain forgets all but the last: from -1 it goes back to the first's side.
    assert torch.equal(first_centroids(rows, rows, 3, 0, "chain")[2], rows[1])


@pytest.mark.parametrize("how", ["chain", "max-min"])
def test_no_anchor_begins_two_clusters(how):
    rows = torch.ones(6, 3) + torch.arange(6)[:, None] * 1e-3
    assert len(first_centroids(rows, rows, 6, 2, how).unique(dim=0)) == 6


@pytest.mark.interpreted_by_value
@pytest.mark.parametrize(("reduce", "first"), [("sum", [3.0, 4.3, 0.4]), ("mean", [2.85, 3.95, 0.2])])
def test_the_vectors_of_the_specification(backend, reduce, first):
    clusters = running(rate=0.1, centroid_reduce=reduce, backend=backend)
    found = clusters(Z1, Z2)
    torch.testing.assert_close(clusters.centroids, torch.tensor([first, [5, 0, 0]]), atol=1e-6, rtol=0)
    assert found.index.tolist() == [0, 0, 1]
    assert found.second.tolist() == [1, 1, 0]
    assert found.counts.tolist() == [1, 2]
    assert fastcse.last_backend() == backend


def test_kmeans_mode_forgets_and_sum_and_mean_assign_alike():
    kept = [running(mode="kmeans", centroid_reduce=reduce) for reduce in ("sum", "mean")]
    for anchor, candidate in batches(4, d=3):
        found = [clusters(anchor, candidate) for clusters in kept]
        assert torch.equal(found[0].index, found[1].index)
    members = anchor[found[1].index == 0]
    assert kept[1].mode == "kmeans"
    assert len(members) == 0 or not torch.equal(kept[0].centroids, kept[1].centroids)


def test_adamw_is_torchs_step_on_the_mean_squared_error():
    clusters = running(mode="adamw", rate=0.1)
    parameter = torch.nn.Parameter(MU.clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    for _ in range(5):
        index = fastcse.assign(Z1, parameter.detach()).index
        assert index.unique().tolist() == [0, 1]
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(parameter[index], Z1).backward()
        optimizer.step()
        clusters(Z1, Z2)
    # A step is a ratio of two small moments: what float32 rounds off them shows.
    torch.testing.assert_close(clusters.centroids, parameter.detach(), atol=3e-5, rtol=0)


@pytest.mark.parametrize("mode", ["momentum", "kmeans", "adamw"])
def test_a_cluster_without_anchors_stays_where_it_is(mode):
    clusters = running(mode=mode, rate=0.1)
    before = clusters.centroids.clone()
    clusters(Z1[:2], Z2[:2])
    assert torch.equal(clusters.centroids[1], before[1])
    assert not torch.equal(clusters.centroids[0], before[0])


def test_it_starts_at_the_batch_whose_mean_cosine_has_fallen():
    torch.testing.assert_close(mean_similarity(Z1, Z2).float(), fastcse.similarity(Z1, Z2).mean())
    mean = float(mean_similarity(Z1, Z2))
    late, early = OnlineKMeans(2, 3, threshold=mean - 1e-3), OnlineKMeans(2, 3, threshold=mean + 1e-3)
    assert late(Z1, Z2) is None
    assert not late.started
    assert early(Z1, Z2) is None
    assert early.started
    assert all((row == Z1).all(1).any() for row in early.centroids)
    assert early(Z1, Z2) is not None


def test_the_start_is_a_matter_of_the_seed():
    made = []
    for seed in (1, 1, *range(2, 9)):
        clusters = OnlineKMeans(2, 3, threshold=1.0, seed=seed)
        clusters(Z1, Z2)
        made.append(clusters.centroids)
    assert torch.equal(made[0], made[1])
    assert len({tuple(c.flatten().tolist()) for c in made}) > 1


def test_evaluation_moves_nothing_and_starts_nothing():
    clusters = running(rate=0.5).eval()
    found = clusters(Z1, Z2)
    assert torch.equal(clusters.centroids, MU)
    assert found.index.tolist() == [0, 0, 1]
    waiting = OnlineKMeans(2, 3, threshold=1.0).eval()
    assert waiting(Z1, Z2) is None
    assert not waiting.started


@pytest.mark.parametrize("mode", ["momentum", "kmeans", "adamw"])
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_saved_clustering_goes_on_alike(mode, stop):
    options = {"mode": mode, "rate": 0.05, "threshold": 0.9, "seed": 3}
    whole, first = OnlineKMeans(4, 5, **options), OnlineKMeans(4, 5, **options)
    data = list(batches(8))
    for anchor, candidate in data:
        expected = whole(anchor, candidate)
    for anchor, candidate in data[:stop]:
        first(anchor, candidate)
    resumed = OnlineKMeans(4, 5, **options)
    resumed.load_state_dict(first.state_dict())
    for anchor, candidate in data[stop:]:
        found = resumed(anchor, candidate)
    assert whole.started
    assert torch.equal(resumed.centroids, whole.centroids)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_what_waits_for_a_slow_device_is_saved(monkeypatch):
    """The path of a GPU, with the CPU's numbers: looked at LAG steps late, and not lost by saving."""
    monkeypatch.setattr(OnlineKMeans, "_is_time", lambda self, a, c: lagging(self, a, c))

    def lagging(self, anchor, candidate):
        from fastcse.clustering.online import AsyncScalar

        self._waiting.append(AsyncScalar.of(mean_similarity(anchor, candidate)))
        return len(self._waiting) > 3 and self._waiting.pop(0).value() <= self.threshold

    clusters = OnlineKMeans(2, 3, threshold=1.0)
    for _ in range(2):
        clusters(Z1, Z2)
    resumed = OnlineKMeans(2, 3, threshold=1.0)
    resumed.load_state_dict(clusters.state_dict())
    resumed(Z1, Z2)
    assert not resumed.started
    resumed(Z1, Z2)
    assert resumed.started


def test_centroids_are_float32_and_small_steps_of_half_rows_are_not_lost():
    clusters = running(rate=1e-4)
    for _ in range(50):
        clusters(Z1.bfloat16(), Z2.bfloat16())
    assert clusters.centroids.dtype == torch.float32
    exact = running(rate=1e-4)
    for _ in range(50):
        exact(Z1, Z2)
    torch.testing.assert_close(clusters.centroids, exact.centroids, atol=1e-5, rtol=1e-5)


def one_rank(rank, ranks, folder):
    """Each rank brings a part of every batch and draws its own first anchor; what rank 0 drew is everybody's."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    clusters = OnlineKMeans(3, 5, threshold=1.0, seed=rank, rate=0.1, across_ranks=True)
    part = slice(0, 5) if rank == 0 else slice(5, None)
    for anchor, candidate in batches(3):
        found = clusters(anchor[part], candidate[part])
    torch.save((clusters.centroids, found.index, found.counts), f"{folder}/{rank}.pt")
    # Alone in its run, a clustering waits for nobody: only one rank calls it.
    if rank == 1:
        OnlineKMeans(3, 5, threshold=1.0, seed=rank)(*next(iter(batches(1))))
    dist.destroy_process_group()


def test_ranks_cluster_as_one_process_does(tmp_path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=one_rank, args=(rank, 2, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(90)
    assert [process.exitcode for process in ranks] == [0, 0]
    (first, index0, counts0), (second, index1, counts1) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(counts0, counts1)
    alone = OnlineKMeans(3, 5, threshold=1.0, seed=0, rate=0.1)
    for anchor, candidate in batches(3):
        found = alone(anchor, candidate)
    torch.testing.assert_close(first, alone.centroids, rtol=1e-6, atol=1e-6)
    assert torch.equal(torch.cat([index0, index1]), found.index)
    assert torch.equal(counts0, found.counts)
