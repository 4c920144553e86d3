"""Truth and yardstick of the contrastive losses; knows nothing of fastcse.

`oracle` is numpy float64 with one loop per anchor and its own analytic gradient; `eager` is what a user would write in
plain torch, in the dtype of the inputs. The allowed error is twice that of `eager`, plus 2 units in the last place.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F


@dataclass
class Extra:
    """One extra block of negatives; `grad` says whether its rows require one."""

    rows: torch.Tensor                    # (K, D)
    log_weight: torch.Tensor | None = None  # (K,)
    own_log_weight: float = 0.0
    id: torch.Tensor | None = None        # (K,) int64
    grad: bool = True


@dataclass
class Case:
    """Arguments of one loss call."""

    anchor: torch.Tensor                  # (N, D)
    candidate: torch.Tensor               # (M, D)
    positive: torch.Tensor | None = None  # (N,) int64
    extras: tuple[Extra, ...] = ()
    focal: bool = False
    temperature: float = 0.05
    margin: float = 0.3
    detach: bool = False
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
    unprojected: tuple = ()   # largest |dL/du| / |z| of each gradient, before the projection that may cancel it


# ---------------------------------------------------------------- truth

def to64(tensor):
    return tensor.detach().cpu().double().numpy()


def unit(z):
    """Rows divided by their length; a zero row stays zero."""
    length = np.sqrt((z * z).sum(1, keepdims=True))
    return z / np.where(length == 0, 1, length), length


def unit_backward(du, z):
    """Gradient by z of a function of unit(z), and the largest |du| / |z|; a zero row has none."""
    u, length = unit(z)
    du = np.where(length == 0, 0, du / np.where(length == 0, 1, length))
    return du - (du * u).sum(1, keepdims=True) * u, np.abs(du).max()


def maps(case):
    """(f+, df+, f-, df-): the logit maps of positives and negatives and what the chain rule multiplies by."""
    t, m, share = case.temperature, case.margin, 1 if case.detach else 2
    if not case.focal:
        return (lambda s: s / t, lambda s: 1 / t + 0 * s) * 2
    return (lambda s: s * s / t, lambda s: share * s / t,
            lambda s: s * (s + m) / t, lambda s: (share * s + m) / t)


def softmax_row(s, own, keep, bias, case):
    """One row of similarities with its positive at `own`: loss, dloss/ds, dloss/dtemperature, lse."""
    f_pos, df_pos, f, df = maps(case)
    phi, slope = f(s), df(s)
    phi[own], slope[own] = f_pos(s[own]), df_pos(s[own])
    x = np.where(keep, phi + bias, -np.inf)
    rest = np.delete(x, own)
    top = x.max()
    lse = top + np.log(np.exp(x - top).sum())
    small = len(rest) == 0 or rest.max() <= x[own]
    loss = np.log1p(np.exp(rest - x[own]).sum()) if small else lse - x[own]
    dx = np.exp(x - lse)
    dx[own] = -np.exp(rest - lse).sum()   # p - 1 without cancellation
    return loss, dx * slope, -(dx * phi).sum() / case.temperature, lse


def row_keep(case, i):
    """Which columns anchor i sees, and their log-weights, over the candidate block and the extra ones."""
    own = int(case.columns()[i])
    keep, bias = [np.ones(len(case.candidate), bool)], [np.zeros(len(case.candidate))]
    if case.candidate_id is not None and case.anchor_id is not None:
        keep[0] = to64(case.candidate_id) != float(case.anchor_id[i])
        keep[0][own] = True
    for extra in case.extras:
        k = len(extra.rows)
        keep.append(np.ones(k, bool) if extra.id is None else to64(extra.id) != float(case.anchor_id[i]))
        weight = np.zeros(k) if extra.log_weight is None else to64(extra.log_weight).copy()
        weight[i:i + 1] += extra.own_log_weight
        bias.append(weight)
    return own, np.concatenate(keep), np.concatenate(bias)


def oracle(case, upstream=None):
    """Rows and gradients of sum(upstream * rows) in float64; `upstream` None is the mean's 1/N."""
    raw = [to64(z) for z in (case.anchor, case.candidate, *(e.rows for e in case.extras))]
    u, *blocks = [unit(z)[0] if case.normalize else z for z in raw]
    n, v = len(u), np.concatenate(blocks)                                    # v: (M + extras, D)
    s = u @ v.T
    weight = np.full(n, 1 / n) if upstream is None else to64(upstream)
    rows, lse, ds, dtemperature = np.zeros(n), np.zeros(n), np.zeros_like(s), 0.0
    share = 0.5 if case.symmetric else 1.0
    for i in range(n):
        own, keep, bias = row_keep(case, i)
        loss, g, dt, lse[i] = softmax_row(s[i].copy(), own, keep, bias, case)
        rows[i] += share * loss
        ds[i] += share * weight[i] * g
        dtemperature += share * weight[i] * dt
        if case.symmetric:
            keep = np.ones(n, bool) if case.anchor_id is None or case.candidate_id is None else \
                to64(case.anchor_id) != float(case.candidate_id[own])
            keep[i] = True
            loss, g, dt, _ = softmax_row(s[:, own].copy(), i, keep, np.zeros(n), case)
            rows[i] += share * loss
            ds[:, own] += share * weight[i] * g
            dtemperature += share * weight[i] * dt
    du, dv = ds @ v, ds.T @ u
    parts = [du, *np.split(dv, np.cumsum([len(b) for b in blocks])[:-1])]
    grads, size = zip(*(unit_backward(g, z) if case.normalize else (g, 0.0) for g, z in zip(parts, raw)))
    return Outcome(rows, grads[0], grads[1], grads[2:], dtemperature, lse, size)


# ---------------------------------------------------------------- yardstick

def eager_rows(case, anchor, candidate, extras, temperature):
    """(N,) losses as plain torch writes them, in the inputs' dtype."""
    rows = [F.normalize(z, dim=1) if case.normalize else z for z in (anchor, candidate, *extras)]
    device, n, columns = anchor.device, len(anchor), case.columns().to(anchor.device)
    weights = [torch.as_tensor(row_keep(case, i)[2], dtype=anchor.dtype) for i in range(n)]
    keep = torch.stack([torch.as_tensor(row_keep(case, i)[1]) for i in range(n)]).to(device)
    s = rows[0] @ torch.cat(rows[1:]).T                                      # (N, M + extras)
    x = eager_logits(case, s, F.one_hot(columns, s.shape[1]).bool(), temperature)
    x = (x + torch.stack(weights).to(device)).masked_fill(~keep, -torch.inf)
    loss = F.cross_entropy(x, columns, reduction="none")
    if not case.symmetric:
        return loss
    own = torch.eye(n, dtype=torch.bool, device=device)
    x = eager_logits(case, s[:, columns].T, own, temperature)                # (N, N): candidate p_i against anchor k
    if case.anchor_id is not None and case.candidate_id is not None:
        x = x.masked_fill((case.candidate_id[columns][:, None] == case.anchor_id[None, :]) & ~own, -torch.inf)
    return (loss + F.cross_entropy(x, torch.arange(n, device=device), reduction="none")) / 2


def eager_logits(case, s, pos, temperature):
    if not case.focal:
        return s / temperature
    weight = torch.where(pos, s, s + case.margin)
    return s * (weight.detach() if case.detach else weight) / temperature


def eager(case, upstream=None, dtype=None):
    """The yardstick's rows and gradients, in `dtype` (the inputs' when None)."""
    dtype = dtype or case.anchor.dtype
    leaves = [z.detach().to(dtype).requires_grad_() for z in (case.anchor, case.candidate, *(e.rows for e in case.extras))]
    temperature = torch.tensor(case.temperature, dtype=dtype if dtype == torch.float64 else torch.float32,
                               device=case.anchor.device, requires_grad=True)
    rows = eager_rows(case, leaves[0], leaves[1], leaves[2:], temperature)
    total = rows.mean() if upstream is None else (rows * upstream.to(rows.dtype)).sum()
    grads = torch.autograd.grad(total, [*leaves, temperature])
    return Outcome(rows.detach(), grads[0], grads[1], grads[2:-1], grads[-1])


def shuffled(case, order):
    """The same case with its features in another order: same loss, other rounding."""
    extras = tuple(replace(e, rows=e.rows[:, order]) for e in case.extras)
    return replace(case, anchor=case.anchor[:, order], candidate=case.candidate[:, order], extras=extras)


def yardsticks(case, upstream=None, draws=4):
    """`eager` under several orders of the features, so that one lucky rounding does not set the bar."""
    width = case.anchor.shape[1]
    for draw in range(draws):
        order = torch.arange(width) if draw == 0 else \
            torch.randperm(width, generator=torch.Generator().manual_seed(draw))
        out, back = eager(shuffled(case, order), upstream), order.argsort()
        yield Outcome(out.loss, out.danchor[:, back], out.dcandidate[:, back],
                      tuple(g[:, back] for g in out.dextras), out.dtemperature)


# ---------------------------------------------------------------- the rule

def ulp(dtype, magnitude):
    """Distance of neighbouring numbers of `dtype` at `magnitude`."""
    info = torch.finfo(dtype)
    return max(info.eps * 2.0 ** np.floor(np.log2(max(float(magnitude), info.tiny))), info.eps * info.tiny)


def miss(got, exact):
    """Largest absolute difference; NaN and inf count as infinite."""
    got = to64(got) if isinstance(got, torch.Tensor) else np.asarray(got)
    assert got.shape == np.shape(exact), f"shape {got.shape}, expected {np.shape(exact)}"
    difference = np.abs(got - exact)
    return 0.0 if difference.size == 0 else float(np.where(np.isfinite(difference), difference, np.inf).max())


def assert_within(got, exact, sticks, name, unprojected=0.0, slack=2.0):
    """|got - exact| <= slack * (what plain torch misses) + 2 ulp of got's dtype (+ 2 float32 ulp of what cancels)."""
    yard = max(miss(stick, exact) for stick in sticks)
    assert np.isfinite(yard), f"{name}: the yardstick itself is not finite"
    allowed = slack * yard + 2 * ulp(got.dtype, np.abs(exact).max()) + 2 * ulp(torch.float32, unprojected)
    error = miss(got, exact)
    assert error <= allowed, f"{name}: error {error:.3e} > allowed {allowed:.3e} (plain torch misses {yard:.3e})"


def assert_rule(case, got, upstream=None, reduction="none"):
    """Loss and every gradient of `got` against the oracle, by the accuracy rule."""
    exact, sticks = oracle(case, upstream), list(yardsticks(case, upstream))
    reduce = {"none": lambda r: r, "mean": lambda r: r.mean(), "sum": lambda r: r.sum()}[reduction]
    assert got.loss.dtype == (torch.float64 if case.anchor.dtype == torch.float64 else torch.float32)
    assert_within(got.loss, reduce(exact.loss), [reduce(s.loss.double()) for s in sticks], "loss")
    assert_within(got.danchor, exact.danchor, [s.danchor for s in sticks], "danchor", exact.unprojected[0])
    assert_within(got.dcandidate, exact.dcandidate, [s.dcandidate for s in sticks], "dcandidate", exact.unprojected[1])
    for k, extra in enumerate(case.extras):
        if extra.grad:
            assert_within(got.dextras[k], exact.dextras[k], [s.dextras[k] for s in sticks], f"dextras[{k}]",
                          exact.unprojected[k + 2])
        else:
            assert got.dextras[k] is None, f"extras[{k}] asked for no gradient and got one"
    if got.dtemperature is not None:
        assert_within(got.dtemperature, np.asarray(exact.dtemperature), [s.dtemperature for s in sticks], "dtemperature")


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
