"""What every public loss is worth, in plain torch: the formula as one writes it down, differentiated by autograd.

Knows nothing of fastcse. Rows in, a loss for each anchor out, or a scalar where the loss has no rows.
"""

import torch
import torch.nn.functional as F


def unit(z):
    """Rows divided by their length; one shorter than 1e-8 is a zero row."""
    length = z.norm(dim=1, keepdim=True)
    short = length < 1e-8
    return torch.where(short, 0.0, z / torch.where(short, 1.0, length))


def cosines(anchor, candidate):
    return unit(anchor) @ unit(candidate).T


def paired(a, z):
    return (unit(a) * unit(z)).sum(1)


def cross_entropy(x, columns, keep=None):
    x = x if keep is None else x.masked_fill(~keep, -torch.inf)
    return x.logsumexp(1) - x.gather(1, columns[:, None])[:, 0]


def one_way_or_both(x, columns, symmetric):
    loss = cross_entropy(x, columns)
    if not symmetric:
        return loss
    return (loss + cross_entropy(x.T[columns], torch.arange(len(x), device=x.device))) / 2


def scaled(s, own, margin):
    return s


def focal(s, own, margin):
    return s * torch.where(own, s, s + margin)


def detached(s, own, margin):
    return s * torch.where(own, s, s + margin).detach()


def angular(s, own, margin):
    angle = s.clamp(1e-12 - 1, 1 - 1e-12).acos()
    return torch.where(~own & (angle > margin), (angle - margin).cos(), s)


def contrastive(logit, margin=0.0, symmetric=False, normalize=True):
    """The oracle of a loss with this logit."""

    def rows(anchor, candidate, positive=None, temperature=0.3, negatives=None):
        columns = torch.arange(len(anchor), device=anchor.device) if positive is None else positive
        others = candidate if negatives is None else torch.cat([candidate, negatives])
        s = cosines(anchor, others) if normalize else anchor @ others.T
        own = F.one_hot(columns, s.shape[1]).bool()
        return one_way_or_both(logit(s, own, margin) / temperature, columns, symmetric)

    return rows


def everything_rows(symmetric):
    """The oracle of `calls.everything`."""

    def rows(a, c, h):
        n, m = len(a), len(c)
        place = torch.arange(n, device=a.device)
        columns = place % 4
        frozen = torch.linspace(-1, 2, 3 * a.shape[1], device=a.device, dtype=a.dtype).reshape(3, -1)
        s = cosines(a, torch.cat([c, h, frozen]))
        own = F.one_hot(columns, s.shape[1]).bool()
        ids = torch.cat([torch.arange(m) % 5, torch.arange(4), torch.full((3,), -1)]).to(a.device)
        keep = (ids != columns[:, None]) | own
        x = focal(s, own, 0.3) / 0.2
        weight = F.pad(torch.linspace(-1, 1, 4, device=a.device, dtype=a.dtype), (m, 3)).expand(n, -1).clone()
        heavy = place[:4]
        weight[heavy, m + heavy] += 0.5
        loss = cross_entropy(x + weight, columns, keep)
        if not symmetric:
            return loss
        seen = (columns != ids[columns][:, None]) | (columns == columns[:, None])
        return (loss + cross_entropy(x.T[columns], place, seen)) / 2

    return rows


def moved(anchor, positive, temperature=0.05, step=3.0, mode="raw"):
    """The adversarial positive without noise."""
    x = positive.detach().clone().requires_grad_()
    s = cosines(x, anchor.detach()) / temperature
    with torch.enable_grad():
        (g,) = torch.autograd.grad(cross_entropy(s, torch.arange(len(x), device=x.device)).mean(), x)
    size = positive.detach().norm(dim=1, keepdim=True)
    g = {"raw": g, "l2": size * unit(g * 1e9), "sign": size * g.sign() / x.shape[1] ** 0.5}[mode]
    return positive.detach() + step * g


def hinges(near, batch, corpus, form="weighted", margin=0.0, weights=(0.9, 0.11)):
    if form == "weighted":
        return F.relu(weights[0] * batch + weights[1] * corpus - near + margin)
    return F.relu(margin[0] + batch - near) + F.relu(margin[1] + corpus - near)


def hsimcse(**options):
    def rows(anchor, candidate, corpus_negative, positive=None):
        s = cosines(anchor, candidate)
        positive = torch.arange(len(anchor), device=s.device) if positive is None else positive
        batch = s.masked_fill(F.one_hot(positive, s.shape[1]).bool(), -torch.inf).amax(1)
        near = paired(anchor, moved(anchor, candidate[positive], 0.3))
        quad = hinges(near, batch, paired(anchor, corpus_negative.detach()), **options)
        return contrastive(scaled)(anchor, candidate, positive) + 0.22 * quad

    return rows


def quadruplet(**options):
    def rows(anchor, positive, batch_negative, corpus_negative, candidate=None):
        third, none = batch_negative, None
        if candidate is not None:
            third, none = candidate[batch_negative.clamp_min(0)], batch_negative < 0
        batch = paired(anchor, third)
        batch = batch if none is None else batch.masked_fill(none, -torch.inf)
        return hinges(paired(anchor, positive), batch, paired(anchor, corpus_negative), **options)

    return rows


def between(d, alpha, beta):
    return F.relu(d + alpha) + F.relu(-d - beta)


def clusterns(how):
    def value(anchor, candidate, index, centroids, counts):
        s = cosines(anchor, candidate) / 0.3
        n, place = len(s), torch.arange(len(s), device=s.device)
        same = (index[:, None] == index) & (index >= 0)
        heavy = cosines(anchor, centroids.detach()) / 0.3 + counts.to(s.dtype).log()
        keep = ~same | F.one_hot(place).bool() if how in ("remove", "positive") else torch.ones_like(same)
        whole = cross_entropy(torch.cat([s, heavy], 1), place, F.pad(keep, (0, heavy.shape[1]), value=True)).mean()
        if how == "remove":
            return whole
        if how == "positive":
            cluster = same | F.one_hot(place).bool()
            return whole + (s.diagonal() - (s * cluster).sum(1) / cluster.sum(1)).mean()
        d = 0.3 * torch.where(same, s - s.diagonal()[:, None], 0.0)
        if how == "active":  # the mean over pairs of a cluster
            pairs = same & ~F.one_hot(place).bool()
            return whole + 2.0 * between(d[pairs], 0.1, 0.2).mean()
        return whole + 2.0 * between(d, 0.1, 0.2).sum() / n**2

    return value


def soft_negative(anchor, candidate, soft_negative):
    d = paired(anchor, soft_negative) - paired(anchor, candidate[: len(anchor)])
    return contrastive(scaled)(anchor, candidate) + 1.5 * between(d, 0.1, 0.3)


def sscl(anchor, candidate):
    (a, *more), (c, *others) = anchor.chunk(3, 1), candidate.chunk(3, 1)
    plain = contrastive(scaled)
    return (plain(a, c) + plain(a, c, negatives=torch.cat([*more, *others]))) / 2


def uniformity(rows, t=2.0):
    square = 2 - 2 * cosines(rows, rows)
    return (-t * square).exp()[tuple(torch.triu_indices(len(rows), len(rows), 1))].mean().log()
