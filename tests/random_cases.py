"""Random cases of the losses, of any shape, type and mix of options, for hypothesis."""

import torch
from hypothesis import strategies as st
from oracle import Case, Extra
from yardstick import assert_rule

LARGEST = {"reference": 40, "cpp": 90, "triton": 9}
choices = {"reduction": st.sampled_from(["mean", "none"]), "learn": st.booleans()}


@st.composite
def cases(draw, largest):
    """A case of up to `largest` rows with any mix of options, and an upstream gradient."""
    size = st.integers(1, largest)
    n, m, d = draw(size), draw(size), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))

    def rows(count):
        return torch.randn(count, d, generator=g).to(dtype)

    def ids(count):
        return torch.randint(0, draw(st.sampled_from([2, 5, 100])), (count,), generator=g)

    masked = draw(st.booleans())

    def extra(k):
        weight = torch.randn(k, generator=g) if draw(st.booleans()) else None
        own = draw(st.sampled_from([0.0, 0.7, -2.0]))
        return Extra(rows(k), weight, own, ids(k) if masked and draw(st.booleans()) else None, draw(st.booleans()))

    extras = tuple(extra(max(n, draw(size))) for _ in range(draw(st.integers(0, 2))))
    focal = draw(st.booleans())
    in_batch = masked and (draw(st.booleans()) or all(e.id is None for e in extras))
    case = Case(
        rows(n),
        rows(m),
        torch.randint(0, m, (n,), generator=g),
        extras,
        focal=focal,
        temperature=draw(st.sampled_from([0.02, 0.05, 0.3, 1.0])),
        symmetric=draw(st.booleans()),
        margin=draw(st.sampled_from([0.0, 0.3, -0.2])),
        detach=focal and draw(st.booleans()),
        anchor_id=ids(n) if masked else None,
        candidate_id=ids(m) if in_batch else None,
    )
    return case, torch.randn(n, generator=g)


def check(run, drawn, reduction, learn):
    case, upstream = drawn
    if reduction == "mean":
        upstream = None
    # A learnable temperature is checked in float32 only: in half precision the yardstick's own gradient may overflow.
    got = run(case, reduction=reduction, upstream=upstream, learn=learn and case.anchor.dtype == torch.float32)
    assert_rule(case, got, upstream, reduction)
