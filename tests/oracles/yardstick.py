"""The accuracy rule: an error may be twice what plain torch makes in the same dtype, plus 2 units in the last place.

`eager` is what a user would write in plain torch. Knows nothing of fastcse.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from oracle import Outcome, column_keep, oracle, row_keep, to64


def masks(case):
    """(N, M + extras) keep and log-weights of the rows, (N, N) keep of the column direction."""
    keep, bias = zip(*(row_keep(case, i)[1:] for i in range(len(case.anchor))))
    by_column = [column_keep(case, i)[0] for i in range(len(case.anchor))] if case.symmetric else [[]]
    return [torch.as_tensor(np.stack(part)).to(case.anchor.device) for part in (keep, bias, by_column)]


def eager_rows(case, anchor, candidate, extras, scale, seen=None):
    """(N,) losses as plain torch writes them, in the inputs' dtype; `scale` divides or multiplies the logits."""
    keep, bias, by_column = seen or masks(case)
    columns = case.columns().to(anchor.device)
    rows = [F.normalize(z, dim=1) if case.normalize else z for z in (anchor, candidate, *extras)]
    s = rows[0] @ torch.cat(rows[1:]).T  # (N, M + extras)
    if case.focal:
        weight = torch.where(F.one_hot(columns, s.shape[1]).bool(), s, s + case.margin)
        s = s * (weight.detach() if case.detach else weight)
    if case.angular:
        angle = s.float().clamp(1e-6 - 1, 1 - 1e-6).acos() if s.dtype != torch.float64 else s.acos()
        turn = ~F.one_hot(columns, s.shape[1]).bool() & (angle > case.margin)
        s = torch.where(turn, (angle - case.margin).cos(), s)
    x = scale(s)
    loss = F.cross_entropy((x + bias.to(x.dtype)).masked_fill(~keep, -torch.inf), columns, reduction="none")
    if not case.symmetric:
        return loss
    x = x.T[columns].masked_fill(~by_column, -torch.inf)  # (N, N): candidate p_i against anchor k
    return (loss + F.cross_entropy(x, torch.arange(len(x), device=x.device), reduction="none")) / 2


def eager(case, upstream=None, dtype=None, multiply=False, seen=None):
    """The yardstick's rows and gradients, in `dtype` (the inputs' when None)."""
    dtype = dtype or case.anchor.dtype
    rows = (case.anchor, case.candidate, *(e.rows for e in case.extras))
    leaves = [z.detach().to(dtype).requires_grad_() for z in rows]
    temperature = torch.tensor(
        case.temperature,
        dtype=dtype if dtype == torch.float64 else torch.float32,
        device=case.anchor.device,
        requires_grad=True,
    )
    scale = (lambda s: s * (1 / temperature)) if multiply else (lambda s: s / temperature)
    rows = eager_rows(case, leaves[0], leaves[1], leaves[2:], scale, seen)
    total = rows.mean() if upstream is None else (rows * upstream.to(rows.dtype)).sum()
    grads = torch.autograd.grad(total, [*leaves, temperature])
    return Outcome(rows.detach(), grads[0], grads[1], grads[2:-1], grads[-1])


def shuffled(case, order):
    """The same case with its features in another order: same loss, other rounding."""
    extras = tuple(replace(e, rows=e.rows[:, order]) for e in case.extras)
    return replace(case, anchor=case.anchor[:, order], candidate=case.candidate[:, order], extras=extras)


def yardsticks(case, upstream=None, draws=8):
    """`eager` under several orders of the features, dividing by the temperature or multiplying by its inverse as
    published code does either, so that one lucky rounding does not set the bar."""
    width, seen = case.anchor.shape[1], masks(case)
    for draw in range(draws):
        order = (
            torch.arange(width) if draw < 2 else torch.randperm(width, generator=torch.Generator().manual_seed(draw))
        )
        out = eager(shuffled(case, order), upstream, multiply=draw % 2 == 1, seen=seen)
        back = order.argsort()
        yield Outcome(
            out.loss,
            out.danchor[:, back],
            out.dcandidate[:, back],
            tuple(g[:, back] for g in out.dextras),
            out.dtemperature,
        )


# ---------------------------------------------------------------- the rule


def ulp(dtype, magnitude):
    """Distance of neighbouring numbers of `dtype` at `magnitude`; what is below float32's normal numbers is nothing."""
    info = torch.finfo(dtype)
    return max(info.eps * 2.0 ** np.floor(np.log2(max(float(magnitude), info.tiny))), torch.finfo(torch.float32).tiny)


def miss(got, exact):
    """Largest absolute difference; NaN and inf count as infinite."""
    got = to64(got) if isinstance(got, torch.Tensor) else np.asarray(got)
    assert got.shape == np.shape(exact), f"shape {got.shape}, expected {np.shape(exact)}"
    difference = np.abs(got - exact)
    return 0.0 if difference.size == 0 else float(np.where(np.isfinite(difference), difference, np.inf).max())


def assert_within(got, exact, sticks, name, terms=0.0, slack=2.0):
    """|got - exact| <= slack * (what plain torch misses) + 2 ulp of got's dtype + 2 float32 ulp of the terms that an
    element is a sum of, so that an exact cancellation in the yardstick asks for no exact cancellation here."""
    yard = max(miss(stick, exact) for stick in sticks)
    assert np.isfinite(yard), f"{name}: the yardstick itself is not finite"
    allowed = slack * yard + 2 * ulp(got.dtype, np.abs(exact).max()) + 2 * ulp(torch.float32, terms) * (terms > 0)
    error = miss(got, exact)
    assert error <= allowed, f"{name}: error {error:.3e} > allowed {allowed:.3e} (plain torch misses {yard:.3e})"


def assert_rule(case, got, upstream=None, reduction="none"):
    """Loss and every gradient of `got` against the oracle, by the accuracy rule."""
    exact, sticks = oracle(case, upstream), list(yardsticks(case, upstream))
    reduce = {"none": lambda r: r, "mean": lambda r: r.mean(), "sum": lambda r: r.sum()}[reduction]
    assert got.loss.dtype == (torch.float64 if case.anchor.dtype == torch.float64 else torch.float32)

    def check(name, got_value, exact_value, pick, terms=0.0):
        assert_within(got_value, np.asarray(exact_value), [pick(s) for s in sticks], name, terms, got.slack)

    count = len(exact.loss) if reduction == "sum" else 1
    check("loss", got.loss, reduce(exact.loss), lambda s: reduce(s.loss), count * exact.logit_terms / 2)
    check("danchor", got.danchor, exact.danchor, lambda s: s.danchor, exact.terms[0])
    check("dcandidate", got.dcandidate, exact.dcandidate, lambda s: s.dcandidate, exact.terms[1])
    for k, extra in enumerate(case.extras):
        if extra.grad:
            check(f"dextras[{k}]", got.dextras[k], exact.dextras[k], lambda s, k=k: s.dextras[k], exact.terms[k + 2])
        else:
            assert got.dextras[k] is None, f"extras[{k}] asked for no gradient and got one"
    if got.dtemperature is not None:
        check("dtemperature", got.dtemperature, exact.dtemperature, lambda s: s.dtemperature, exact.temperature_terms)
