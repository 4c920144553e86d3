"""Truth about the contrastive losses: numpy float64, one loop per anchor, its own analytic gradient.

Knows nothing of fastcse. What an error may be is said in `yardstick`.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Extra:
    """One extra block of negatives; `grad` says whether its rows require one."""

    rows: torch.Tensor  # (K, D)
    log_weight: torch.Tensor | None = None  # (K,)
    own_log_weight: float = 0.0
    id: torch.Tensor | None = None  # (K,) int64
    grad: bool = True


@dataclass
class Case:
    """Arguments of one loss call."""

    anchor: torch.Tensor  # (N, D)
    candidate: torch.Tensor  # (M, D)
    positive: torch.Tensor | None = None  # (N,) int64
    extras: tuple[Extra, ...] = ()
    focal: bool = False
    temperature: float = 0.05
    margin: float = 0.3
    detach: bool = False
    angular: bool = False  # negatives turned towards the anchor by the angle `margin`
    symmetric: bool = False
    anchor_id: torch.Tensor | None = None
    candidate_id: torch.Tensor | None = None
    normalize: bool = True

    def columns(self):
        """The positive's column of each anchor, (N,) int64."""
        return torch.arange(len(self.anchor)) if self.positive is None else self.positive.cpu()


@dataclass
class Outcome:
    """A loss, (N,) or scalar, and the gradients of `sum(upstream * rows)`; numpy or torch."""

    loss: object
    danchor: object = None
    dcandidate: object = None
    dextras: tuple = ()
    dtemperature: object = None
    stats: object = None
    terms: tuple = ()  # of each gradient, the largest sum of absolute terms that its elements are sums of
    logit_terms: float = 0.0  # the same of a row's loss: how far it moves when every logit moves by its own size
    temperature_terms: float = 0.0  # and of the temperature's gradient
    slack: float = 2.0  # how often the yardstick's error it may make


# ---------------------------------------------------------------- truth


def to64(tensor):
    return tensor.detach().cpu().double().numpy()


def ints(ids):
    return ids.cpu().numpy()


def unit(z):
    """Rows divided by their length; a zero row stays zero."""
    length = np.sqrt((z * z).sum(1, keepdims=True))
    return z / np.where(length == 0, 1, length), length


def unit_backward(du, z):
    """Gradient by z of a function of unit(z); a zero row has none."""
    u, length = unit(z)
    du = np.where(length == 0, 0, du / np.where(length == 0, 1, length))
    return du - (du * u).sum(1, keepdims=True) * u


def largest_terms(ds, v, z, normalize):
    """Largest sum of |ds| |v|, over |z| where rows are normalised: what rounding in float32 is relative to."""
    length = unit(z)[1] if normalize else np.ones((len(z), 1))
    return (ds @ np.abs(v) / np.where(length == 0, 1, length)).max()


def maps(case):
    """(f+, df+, f-, df-): the logit maps of positives and negatives and what the chain rule multiplies by."""
    t, m, share = case.temperature, case.margin, 1 if case.detach else 2
    if case.angular:
        angle = lambda s: np.arccos(np.clip(s, -1, 1))  # noqa: E731
        far = lambda s: angle(s) > m  # noqa: E731
        slope = lambda s: np.sin(angle(s) - m) / np.sin(np.maximum(angle(s), 1e-9))  # noqa: E731
        return (
            lambda s: s / t,
            lambda s: 1 / t + 0 * s,
            lambda s: np.where(far(s), np.cos(angle(s) - m), s) / t,
            lambda s: np.where(far(s), slope(s), 1) / t,
        )
    if not case.focal:
        return (lambda s: s / t, lambda s: 1 / t + 0 * s) * 2
    return (lambda s: s * s / t, lambda s: share * s / t, lambda s: s * (s + m) / t, lambda s: (share * s + m) / t)


def softmax_row(s, own, pos, keep, bias, case):
    """One softmax over similarities `s` with its positive at `own`: loss, dloss/ds, dloss/dlogit * logit, lse.
    `pos` marks the pairs that enter with the positive logit."""
    f_pos, df_pos, f, df = maps(case)
    phi, slope = np.where(pos, f_pos(s), f(s)), np.where(pos, df_pos(s), df(s))
    x = np.where(keep, phi + bias, -np.inf)
    rest = np.delete(x, own)
    top = x.max()
    lse = top + np.log(np.exp(x - top).sum())
    small = len(rest) == 0 or rest.max() <= x[own]
    loss = np.log1p(np.exp(rest - x[own]).sum()) if small else lse - x[own]
    dx = np.exp(x - lse)
    dx[own] = -np.exp(rest - lse).sum()  # p - 1 without cancellation
    return loss, dx * slope, dx * phi, lse


def row_keep(case, i):
    """Which columns anchor i sees, and their log-weights, over the candidate block and the extra ones."""
    own = int(case.columns()[i])
    keep, bias = [np.ones(len(case.candidate), bool)], [np.zeros(len(case.candidate))]
    if case.candidate_id is not None and case.anchor_id is not None:
        keep[0] = ints(case.candidate_id) != ints(case.anchor_id)[i]
        keep[0][own] = True
    for extra in case.extras:
        k = len(extra.rows)
        keep.append(np.ones(k, bool) if extra.id is None else ints(extra.id) != ints(case.anchor_id)[i])
        weight = np.zeros(k) if extra.log_weight is None else to64(extra.log_weight).copy()
        weight[i : i + 1] += extra.own_log_weight
        bias.append(weight)
    return own, np.concatenate(keep), np.concatenate(bias)


def column_keep(case, i):
    """The column direction of anchor i: which anchors its positive sees, and which of those pairs are positives.

    A pair has one logit and one mask in both directions: the positive pair of any anchor is never left out."""
    columns = case.columns().numpy()
    pos = columns == columns[i]
    if case.anchor_id is None or case.candidate_id is None:
        return np.ones(len(columns), bool), pos
    return (ints(case.anchor_id) != ints(case.candidate_id)[columns[i]]) | pos, pos


def softmaxes(case, s):
    """Every softmax of the loss: (anchor, its place in `s`, own position, positive pairs, seen pairs, log-weights)."""
    for i, column in enumerate(case.columns().numpy()):
        own, keep, bias = row_keep(case, i)
        yield i, (i, slice(None)), own, np.arange(s.shape[1]) == own, keep, bias
        if case.symmetric:
            keep, pos = column_keep(case, i)
            yield i, (slice(None), column), i, pos, keep, np.zeros(len(s))


def oracle(case, upstream=None):
    """Rows and gradients of sum(upstream * rows) in float64; `upstream` None is the mean's 1/N."""
    raw = [to64(z) for z in (case.anchor, case.candidate, *(e.rows for e in case.extras))]
    u, *blocks = [unit(z)[0] if case.normalize else z for z in raw]
    n, v = len(u), np.concatenate(blocks)  # v: (M + extras, D)
    s = u @ v.T
    weight = (np.full(n, 1 / n) if upstream is None else to64(upstream)) * (0.5 if case.symmetric else 1.0)
    rows, lse, moved, moved_terms = np.zeros((4, n))
    ds, ds_terms = np.zeros((2, *s.shape))
    for i, place, own, pos, keep, bias in softmaxes(case, s):
        loss, g, dx, row_lse = softmax_row(s[place], own, pos, keep, bias, case)
        rows[i] += loss * (0.5 if case.symmetric else 1.0)
        ds[place] += weight[i] * g
        ds_terms[place] += np.abs(weight[i] * g)
        moved[i] += dx.sum()
        moved_terms[i] += np.abs(dx).sum()
        if place[0] == i:
            lse[i] = row_lse
    edges = np.cumsum([len(b) for b in blocks])[:-1]

    def parts(ds):  # the gradient of each array of rows is ds @ other rows
        return [(ds, v), *((part.T, u) for part in np.split(ds, edges, axis=1))]

    grads = [unit_backward(g @ w, z) if case.normalize else g @ w for (g, w), z in zip(parts(ds), raw)]
    terms = tuple(largest_terms(g, w, z, case.normalize) for (g, w), z in zip(parts(ds_terms), raw))
    by_temperature = -(weight * moved).sum() / case.temperature
    size = (np.abs(weight) * moved_terms).sum() / case.temperature
    return Outcome(
        rows,
        grads[0],
        grads[1],
        tuple(grads[2:]),
        by_temperature,
        lse,
        terms,
        moved_terms.max(),
        temperature_terms=size,
    )


# ---------------------------------------------------------------- data


def make_rows(kind, n, m, d, dtype=torch.float32, seed=0):
    """anchor (n, d), candidate (m, d), positive (n,). Random: far pairs; clustered: near pairs in tight groups;
    anisotropic: late training, one common direction and near pairs."""
    g = torch.Generator().manual_seed(seed)
    positive = torch.arange(n) % m
    candidate = torch.randn(m, d, generator=g)
    if kind == "clustered":
        candidate = 3 * torch.randn(max(m // 8, 1), d, generator=g)[torch.arange(m) % max(m // 8, 1)] + candidate
    if kind == "anisotropic":
        candidate = candidate + 2 * torch.randn(1, d, generator=g)
    anchor = torch.randn(n, d, generator=g)
    if kind != "random":
        anchor = candidate[positive] + 0.5 * anchor
    return anchor.to(dtype), candidate.to(dtype), positive
