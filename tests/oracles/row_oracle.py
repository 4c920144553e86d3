"""Truth about the row-wise parts of HSimCSE: numpy float64, one loop over the rows, analytic gradients.

The quadruplet hinge, the hardest negative and the adversarial positive. Knows nothing of fastcse.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from oracle import ints, to64

SHORTEST = 1e-8  # a shorter row is a zero row: similarity 0, gradient 0, as in every other op
NAMES = ("anchor", "positive", "negative", "corpus")


@dataclass
class Quad:
    """Arguments of one quadruplet call; `batch_negative` holds rows, or with `candidate` numbers of its rows."""

    anchor: torch.Tensor  # (N, D)
    positive: torch.Tensor  # (N, D)
    batch_negative: torch.Tensor  # (N, D), or (N,) int64 with -1 for none
    corpus_negative: torch.Tensor  # (N, D)
    candidate: torch.Tensor | None = None  # (M, D)
    weights: tuple[float, float] = (0.9, 0.11)
    margin: float | tuple[float, float] = 0.0
    form: str = "weighted"
    normalize: bool = True

    def rows(self):
        """The four arrays of rows that have a gradient, by name."""
        negative = self.batch_negative if self.candidate is None else self.candidate
        return dict(zip(NAMES, (self.anchor, self.positive, negative, self.corpus_negative)))

    def numbers(self):
        """(N,) int64: the row of `negative` of each anchor, -1 for none."""
        return np.arange(len(self.anchor)) if self.candidate is None else ints(self.batch_negative)

    def hinges(self):
        """The hinges of a row's loss: what multiplies each similarity, and the margin."""
        if self.form == "weighted":
            return [({"positive": -1.0, "negative": self.weights[0], "corpus": self.weights[1]}, self.margin)]
        first, second = self.margin if isinstance(self.margin, tuple) else (self.margin, self.margin)
        return [({"positive": -1.0, "negative": 1.0}, first), ({"positive": -1.0, "corpus": 1.0}, second)]


@dataclass
class QuadOutcome:
    """Losses, and the gradients of sum(upstream * losses) by the names of `Quad.rows`."""

    loss: np.ndarray  # (N,)
    grads: dict
    terms: dict = field(default_factory=dict)  # largest sum of absolute terms that an element of a gradient is
    loss_terms: np.ndarray | None = None  # (N,) the same of the losses
    gap: np.ndarray | None = None  # (N,) distance of the row's nearest hinge from its corner
    active: np.ndarray | None = None  # (N,) whether the row has a loss


def similarity(a, z, normalize):
    """s, its gradients by `a` and `z`, and the sums of absolute terms of the two."""
    if not normalize:
        return a @ z, z, a, np.abs(z), np.abs(a)
    long_a, long_z = np.sqrt(a @ a), np.sqrt(z @ z)
    if long_a < SHORTEST or long_z < SHORTEST:
        return 0.0, *np.zeros((4, len(a)))
    u, v = a / long_a, z / long_z
    s = u @ v
    by = [(v - s * u) / long_a, (u - s * v) / long_z]
    size = [(abs(v) + abs(s * u)) / long_a, (abs(u) + abs(s * v)) / long_z]
    return s, *by, *size


def quadruplet(case, upstream=None):
    """Losses and gradients of sum(upstream * losses); `upstream` None is the mean's 1/N."""
    n, rows = len(case.anchor), {name: to64(z) for name, z in case.rows().items()}
    weight = np.full(n, 1 / n) if upstream is None else to64(upstream)
    grads = {name: np.zeros_like(z) for name, z in rows.items()}
    terms = {name: np.zeros_like(z) for name, z in rows.items()}
    loss, loss_terms, gap = np.zeros(n), np.zeros(n), np.full(n, np.inf)
    for i, number in enumerate(case.numbers()):
        place = {"positive": i, "negative": number, "corpus": i}
        for coefficients, margin in case.hinges():
            held = {name: c for name, c in coefficients.items() if c != 0}
            if "negative" in held and number < 0:
                continue  # similarity -inf
            parts = {name: similarity(rows["anchor"][i], rows[name][place[name]], case.normalize) for name in held}
            hinge = margin + sum(c * parts[name][0] for name, c in held.items())
            gap[i] = min(gap[i], abs(hinge))
            loss_terms[i] += abs(margin) + sum(abs(c * parts[name][0]) for name, c in held.items())
            if not hinge > 0:
                continue
            loss[i] += hinge
            for name, c in held.items():
                _, by_anchor, by_row, anchor_size, row_size = parts[name]
                grads["anchor"][i] += weight[i] * c * by_anchor
                grads[name][place[name]] += weight[i] * c * by_row
                terms["anchor"][i] += abs(weight[i] * c) * anchor_size
                terms[name][place[name]] += abs(weight[i] * c) * row_size
    return QuadOutcome(loss, grads, {name: t.max() for name, t in terms.items()}, loss_terms, gap, loss > 0)


# ---------------------------------------------------------------- hardest negative


def units(x):
    """Rows divided by their length; a zero row stays zero."""
    length = lengths(x)
    return np.where(length < SHORTEST, 0, x / np.where(length < SHORTEST, 1, length))


def cosines(anchor, candidate, normalize=True):
    """(N, M) float64 similarities, pair by pair."""
    a, c = to64(anchor), to64(candidate)
    with np.errstate(all="ignore"):
        a, c = (units(a), units(c)) if normalize else (a, c)
        return np.stack([(row * c).sum(1) for row in a])  # no BLAS: equal rows must have equal sums


def allowed(anchor, candidate, positive=None, anchor_id=None, candidate_id=None):
    """(N, M): not the positive, not of the anchor's id, and finite."""
    n, m = len(anchor), len(candidate)
    own = np.arange(n) if positive is None else ints(positive)
    keep = np.isfinite(to64(candidate)).all(1) & (np.arange(m) != own[:, None])
    if anchor_id is not None:
        keep = keep & (ints(anchor_id)[:, None] != ints(candidate_id))
    return keep


def hardest(s, keep):
    """(N,) values and indices of the largest allowed similarity, the lowest index of equals; -inf and -1 for none."""
    value, index = np.full(len(s), -np.inf), np.full(len(s), -1)
    for i in range(len(s)):
        for j in np.flatnonzero(keep[i]):
            if s[i, j] > value[i]:
                value[i], index[i] = s[i, j], j
    return value, index


# ---------------------------------------------------------------- adversarial positive


def lengths(x):
    return np.sqrt((x * x).sum(1, keepdims=True))


def attack_rows(x, anchor, temperature=0.05):
    """(N,) cross entropies of cos(x_i, anchor_j) / temperature with label j = i."""
    s = units(x) @ units(anchor).T / temperature
    top = s.max(1)
    return np.log(np.exp(s - top[:, None]).sum(1)) + top - np.diag(s)


def attack_gradient(x, anchor, temperature=0.05):
    """(N, D) gradient of the mean of `attack_rows` by x, row by row in closed form; a zero row has none."""
    n, g, u, unit_x, length = len(x), np.zeros_like(x), units(anchor), units(x), lengths(x)
    for i in np.flatnonzero(length >= SHORTEST):
        t = u @ unit_x[i]
        p = np.exp((t - t.max()) / temperature)
        p /= p.sum()
        p[i] = -np.delete(p, i).sum()  # p - 1 without cancellation
        p /= n * temperature
        g[i] = (p @ u - (p @ t) * unit_x[i]) / length[i]
    return g


def adversarial(anchor, positive, noise=0.0, temperature=0.05, step=3.0, mode="raw"):
    """(N, D): one step of ascent from positive + noise, an array of the same shape or 0."""
    anchor, positive = to64(anchor), to64(positive)
    x = positive + noise
    g, size = attack_gradient(x, anchor, temperature), lengths(positive)
    if mode == "raw":
        return x + step * g
    if mode == "sign":
        return x + step * size * np.sign(g) / np.sqrt(g.shape[1])
    length = lengths(g)
    return x + step * size * np.where(length == 0, 0, g / np.where(length == 0, 1, length))


# ---------------------------------------------------------------- data


def settled_quad(n, m, d, *, index=False, dtype=torch.float32, seed=0, clear=0.03, **options):
    """A quadruplet of random rows, of which some have a loss and some none, and none is within `clear` of a corner,
    where rounding would decide about the gradient. `index` picks `m` candidates by number, some by -1."""
    g = torch.Generator().manual_seed(seed)
    many = 2 * n + 30

    def mixed(base):
        share = 3 * torch.rand(many, 1, generator=g) - 1
        return (share * base + torch.randn(many, d, generator=g)).to(dtype)

    anchor = torch.randn(many, d, generator=g)
    rows = [anchor.to(dtype), mixed(anchor), mixed(anchor), mixed(anchor)]
    if index:
        options["candidate"] = torch.randn(m, d, generator=g).to(dtype)
        rows[2] = torch.randint(-1, m, (many,), generator=g)
    keep = torch.as_tensor(quadruplet(Quad(*rows, **options)).gap > clear).nonzero()[:n, 0]
    assert len(keep) == n, "too few rows are clear of a corner"
    return Quad(*(z[keep] for z in rows), **options)


# ---------------------------------------------------------------- the published vectors

Z1 = torch.tensor([[3.0, 4, 0], [0, 3, 4], [5, 0, 0]], dtype=torch.float64)
Z2 = torch.tensor([[4.0, 3, 0], [0, 4, 3], [4, 0, -3]], dtype=torch.float64)
BANK = torch.tensor([[0.6, 0.8, 0], [0, 0.6, 0.8], [1, 0, 0], [0.8, 0.6, 0], [0, 0, 1]], dtype=torch.float64)
NEAREST = torch.tensor([[3, 2, 1], [4, 0, 3], [3, 0, 1]])


def published(weights=(0.9, 0.11), margin=0.0):
    """The published batch, from end to end."""
    adv = torch.as_tensor(adversarial(Z1, Z2))
    index = torch.as_tensor(hardest(cosines(Z1, Z2), allowed(Z1, Z2))[1])
    return Quad(Z1, adv, index, BANK[NEAREST].mean(1), Z2, weights=weights, margin=margin)
