"""Truth about k-means and its parts: numpy float64 and loops, the whole matrix of pairs. Knows nothing of fastcse."""

import numpy as np
from oracle import to64

SHORTEST = 1e-8  # a shorter row has cosine 0 with all, as in every other op
EPSILON = 2.0**-24
# What is below float32's normal numbers is nothing.
TINY = 2.0**-126


def array(x):
    """float64 numpy of a tensor or an array."""
    return x.astype(np.float64) if isinstance(x, np.ndarray) else to64(x)


def unit(x):
    """Rows of length 1; a row shorter than 1e-8 becomes 0."""
    norm = np.sqrt((x * x).sum(1, keepdims=True))
    return np.where(norm < SHORTEST, 0, x / np.where(norm < SHORTEST, 1, norm))


def pairs(points, centroids, metric):
    """(N, K) float64 squared distances, or cosines; infinitely far where a row is not finite."""
    x, c = array(points), array(centroids)
    good = np.isfinite(x).all(1)[:, None] & np.isfinite(c).all(1)
    x, c = (np.where(np.isfinite(z).all(1)[:, None], z, 0) for z in (x, c))
    if metric == "cosine":
        x, c = unit(x), unit(c)
        return np.where(good, np.stack([(row * c).sum(1) for row in x]), -np.inf)
    return np.where(good, np.stack([((row - c) ** 2).sum(1) for row in x]), np.inf)


def nearest(points, centroids, wanted, metric):
    """(N, wanted) int64 centroids, nearest first, of equal ones the lowest first, -1 for none, and their values."""
    value = pairs(points, centroids, metric)
    index = np.full((len(value), wanted), -1)
    found = np.full((len(value), wanted), np.nan)
    for i, row in enumerate(value):
        order = np.lexsort((np.arange(len(row)), -row if metric == "cosine" else row))
        order = order[np.isfinite(row[order])][:wanted]
        index[i, : len(order)], found[i, : len(order)] = order, row[order]
    return index, found


def misses(points, centroids, metric, roughly):
    """(N, K) and (N,): what float32 may miss of a value, and by how much a centroid that is taken may be farther than
    the nearest. `roughly` where centroids are ranked by float32 products."""
    x, c = array(points), array(centroids)
    terms = (x.shape[1] + 8) * EPSILON
    if metric == "cosine":
        return np.full((len(x), len(c)), terms), np.full(len(x), 2 * terms)
    with np.errstate(all="ignore"):
        value = np.nan_to_num(pairs(points, centroids, metric), posinf=0) * terms + TINY
        x, c = (np.nan_to_num(np.sqrt((z * z).sum(1)), nan=0, posinf=0) for z in (x, c))
    rank = 4 * terms * (x + c.max()) * c.max() if roughly else 0
    return value, 2 * value.max(1) + rank


def assert_nearest(index, value, points, centroids, metric, roughly=False):
    """(N, wanted) `index` and `value` are the nearest centroids as far as float32 can tell."""
    index, value = index.cpu().numpy(), value.cpu().double().numpy()
    exact = pairs(points, centroids, metric)
    best, best_value = nearest(points, centroids, index.shape[1], metric)
    miss, apart = misses(points, centroids, metric, roughly)
    np.testing.assert_array_equal(index == -1, best == -1)
    np.testing.assert_array_equal(np.isnan(value), index == -1)
    rows = np.arange(len(index))
    for r in range(index.shape[1]):
        there = index[:, r] >= 0
        i, j = rows[there], index[there, r]
        error = np.abs(value[i, r] - exact[i, j])
        assert (error <= miss[i, j]).all(), f"value: error {error.max()}, allowed {miss[i, j].max()}"
        farther = np.abs(exact[i, j] - best_value[i, r])
        assert (farther <= apart[i]).all(), f"rank {r}: farther by {farther.max()}, allowed {apart.max()}"
    if index.shape[1] == 2:
        both = index[:, 1] >= 0
        assert (index[both, 0] != index[both, 1]).all(), "one centroid twice"
        sign = -1 if metric == "cosine" else 1
        first, second = sign * value[both, 0], sign * value[both, 1]
        assert (first <= second + (apart[both] if roughly else 0)).all(), "the second is nearer than the first"
        equal = (first == second) & (not roughly)
        assert (index[both, 0] < index[both, 1])[equal].all(), "equal centroids in the wrong order"


def sums(points, index, clusters, normalize):
    """(K, D) float64 sums, (K,) counts, and (K, D) sums of absolute values, which say how much rounding may miss."""
    x, index = array(points), index.cpu().numpy()
    total, size, count = np.zeros((clusters, x.shape[1])), np.zeros((clusters, x.shape[1])), np.zeros(clusters, int)
    for row, cluster in zip(x, index):
        if cluster < 0:
            continue
        row = unit(row[None])[0] if normalize else row
        total[cluster] += row
        size[cluster] += np.abs(row)
        count[cluster] += 1
    return total, count, size


def lloyd(points, start, metric="euclidean", max_iter=300, tol=1e-4):
    """(centroids, labels, inertia, iterations) by scikit-learn's rules."""
    x, c = array(points), array(start).copy()
    x = unit(x) if metric == "cosine" else x
    old, number = None, 0
    while number < max_iter:
        number += 1
        labels, far = _labels(x, c, metric)
        moved = _moved(x, labels, far, c, metric)
        shift, c = ((moved - c) ** 2).sum(), moved
        if old is not None and (labels == old).all():
            break
        old = labels
        if shift <= tol * x.var(0).mean():
            break
    labels, far = _labels(x, c, metric)
    return c, labels, far.sum(), number


def _labels(x, c, metric):
    index, value = nearest(x, c, 1, metric)
    return index[:, 0], 1 - value[:, 0] if metric == "cosine" else value[:, 0]


def _moved(x, labels, far, c, metric):
    labels, moved = labels.copy(), c.copy()
    empty = [k for k in range(len(c)) if not (labels == k).any()]
    # The farthest point for the first empty cluster, the next for the second.
    for k, point in zip(empty, np.argsort(-far, kind="stable")):
        labels[point] = k
    for k in range(len(c)):
        total = x[labels == k].sum(0)
        if metric == "cosine":
            length = np.sqrt((total**2).sum())
            moved[k] = total / length if length > 0 else c[k]
        elif (labels == k).any():
            moved[k] = total / (labels == k).sum()
    return moved
