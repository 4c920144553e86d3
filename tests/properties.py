"""The properties that every public loss has: functions of a `LossCase`, a backend and a device."""

import re

import pytest
import torch
from calls import LAYOUTS, everything
from conformance import NAN, R, both

import fastcse

# ---------------------------------------------------------------- how a case is run


def arguments_of(case, device, dtype=torch.float32, n=8, learns=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    made = case.make(n, lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64))
    learns = case.learns if learns is None else learns

    def place(name, x):
        if not x.is_floating_point():
            return x.to(device)
        half = dtype in (torch.float16, torch.bfloat16) and x.dim() == 0
        return x.to(device, torch.float32 if half else dtype).requires_grad_(name in learns)

    return {name: place(name, x) for name, x in made.items()}


def copied(arguments, change=lambda x: x):
    """The same leaves again; `change` is made of their data."""
    return {k: x if x is None else change(x.detach()).requires_grad_(x.requires_grad) for k, x in arguments.items()}


def call(case, arguments, backend=None, reduction="none", **more):
    options = {**case.options, **more}
    if case.reductions != (None,):
        options["reduction"] = reduction
    told = backend is not None and (case.takes("backend") or case.function is everything)
    out = case.pick(case.function(**arguments, **options, **({"backend": backend} if told else {})))
    if told:
        assert fastcse.last_backend() == backend
    return out


def weighed(out):
    """A scalar of any result, in which no two elements have the same weight."""
    weight = torch.linspace(0.5, 2, out.numel(), device=out.device, dtype=out.dtype)
    return (out * weight.reshape(out.shape)).sum()


def gradients(case, arguments, out, again=True):
    return torch.autograd.grad(weighed(out), [arguments[name] for name in case.learns], retain_graph=again)


def result(case, arguments, backend, **more):
    """What a call gives, and its gradients."""
    out = call(case, arguments, backend, **more)
    return [out.detach(), *(gradients(case, arguments, out) if case.learns else ())]


def exact(case, arguments, reduction="none"):
    """The same of the oracle, in float64."""
    wide = copied(arguments, lambda x: x.double() if x.is_floating_point() else x)
    out = case.oracle(**wide)
    if case.reductions != (None,):
        out = {"mean": out.mean(), "sum": out.sum(), "none": out}[reduction]
    return [out.detach(), *(gradients(case, wide, out) if case.learns else ())]


def assert_near(got, expected, relative=2e-5):
    """Each tensor to `relative` of its largest element."""
    assert len(got) == len(expected)
    for one, two in zip(got, expected):
        largest = two[two.isfinite()].abs().max() if two.isfinite().any() else 1.0
        torch.testing.assert_close(
            one.double(), two.double(), rtol=0, atol=relative * float(largest) + 1e-7, equal_nan=True
        )


# ---------------------------------------------------------------- the properties


def value_and_gradients(case, backend, device):
    """Those of the oracle, for every reduction; float32, of which no gradient flows into what asks for none."""
    arguments = arguments_of(case, device)
    for reduction in case.reductions:
        got = result(case, arguments, backend, reduction=reduction)
        assert got[0].dtype == torch.float32
        assert_near(got, exact(case, arguments, reduction))
    for name in case.learns:
        alone = arguments_of(case, device, learns=(name,))
        out = weighed(call(case, alone, backend))
        out.backward()
        assert_near([alone[name].grad], [got[1 + case.learns.index(name)]], 2e-6)
    if not case.learns:
        assert not call(case, {k: x.requires_grad_() for k, x in arguments.items()}, backend).requires_grad


def any_strides(case, backend, device):
    arguments = arguments_of(case, device)
    expected = result(case, arguments, backend)

    def every_second(x):
        return x.repeat_interleave(2, 0)[::2] if x.dim() else x

    for change in LAYOUTS.values():
        strided = copied(arguments, lambda x, change=change: change(x) if x.dim() == 2 else every_second(x))
        assert_near(result(case, strided, backend), expected, 1e-5)
    if case.learns:
        first = next(iter(arguments))
        row = arguments[first].detach()[:1].clone().requires_grad_()
        grown = call(case, arguments | {first: row.expand(8, -1)}, backend)
        copy = row.detach().repeat(8, 1).requires_grad_()
        spread = call(case, arguments | {first: copy}, backend)
        (one,), (two,) = (torch.autograd.grad(weighed(x), y) for x, y in ((grown, row), (spread, copy)))
        assert_near([grown.detach(), one], [spread.detach(), two.sum(0, keepdim=True)])


def inputs_are_not_written_to(case, backend, device):
    arguments = arguments_of(case, device)
    before = {name: (x.detach().clone(), x._version) for name, x in arguments.items()}
    for reduction in case.reductions:
        out = call(case, arguments, backend, reduction=reduction)
        if case.learns:
            upstream = torch.rand_like(out)
            kept = upstream.clone()
            out.backward(upstream)
            assert torch.equal(upstream, kept)
        else:
            out.zero_()  # the result is memory of its own
    for name, (then, version) in before.items():
        assert torch.equal(arguments[name], then), name
        assert arguments[name]._version == version, name


def a_second_derivative_is_right_or_refused(case, backend, device):
    if not case.learns:
        return

    def twice(value, leaf):
        (first,) = torch.autograd.grad(value, leaf, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), leaf)

    arguments = arguments_of(case, device)
    wide = copied(arguments, lambda x: x.double() if x.is_floating_point() else x)
    for name in case.learns:
        for reduction in case.reductions[::2]:
            value = weighed(call(case, arguments, backend, reduction=reduction))
            of_oracle = case.oracle(**wide)
            of_oracle = weighed(of_oracle.mean() if reduction == "mean" else of_oracle)
            got, refused = None, ""
            try:
                got = twice(value, arguments[name])
            except RuntimeError as error:
                refused = str(error)
            if got is None:
                assert re.search("(?i)differentiated (again|twice)|double backward|second deriv", refused), refused
                assert backend != "reference", refused
                assert not case.plain, refused
            else:
                assert_near(got, twice(of_oracle, wide[name]), 1e-3)


def bad_arguments(case):
    """(changed arguments, what the error says) that every loss with such arguments refuses."""
    rows = case.learns if case.rows is None else case.rows
    width = 15 if case.function is fastcse.sscl_loss else 5
    if rows:
        first = rows[0]
        yield {first: R(11)}, rf"{first}.*11"
        yield {first: R(0, width)}, rf"{first}.*\(0, {width}\)"
        yield {first: torch.ones(8, width, dtype=torch.int64)}, rf"{first}.*int64"
        yield {first: [[1.0, 2.0]]}, rf"{first}.*list"
    for name in rows[1:]:
        yield {name: R(8, 17)}, rf"(?s)(?=.*{name}).*({width}.*17|17.*{width})"
        yield {name: R(8, width).half()}, rf"(?s)(?=.*{name}).*(float32.*float16|float16.*float32)"
        yield {name: R(8, width, device="meta")}, rf"(?s)(?=.*{name}).*(cpu.*meta|meta.*cpu)"
    if case.takes("temperature"):
        for wrong, says in ((0.0, r"\b0"), (-0.25, "-0.25"), (NAN, "nan"), (torch.ones(17), "17")):
            yield {"temperature": wrong}, f"temperature.*{says}"
    if case.takes("reduction"):
        yield {"reduction": "average"}, both("average", "mean")
    if case.takes("backend"):
        yield {"backend": "cuda_magic"}, both("cuda_magic", "reference")
    yield from case.bad


def bad_arguments_are_errors_that_name_the_values(case, backend, device):
    good = arguments_of(case, "cpu", learns=())
    call(case, good, backend if device.type == "cpu" else None)
    for changes, says in bad_arguments(case):
        with pytest.raises(ValueError, match=r".") as caught:
            case.function(**{**good, **case.options, **changes})
        assert re.search(says, str(caught.value), re.DOTALL), f"{changes}: {caught.value}"
    if case.takes("backend"):
        wide = {name: x.double() if x.is_floating_point() else x for name, x in good.items()}
        for name in ("cpp", "triton"):
            with pytest.raises(ValueError, match=both("float64", name)):
                case.function(**wide, **{**case.options, "backend": name})


def a_nan_stays_in_its_row(case, backend, device):
    if case.spoilt is None:
        return
    arguments = arguments_of(case, device)
    others = torch.arange(8, device=device) != 3
    clean = call(case, arguments, backend).detach()
    for bad in (torch.nan, torch.inf):
        spoilt = copied(arguments, torch.clone)
        with torch.no_grad():
            spoilt[case.spoilt][3, 1] = bad
        got = call(case, spoilt, backend)
        if got.dim() == 0:
            assert got.isnan()
            continue
        assert not got[3].isfinite().any() if case.learns else not got[3].isfinite().all()
        assert_near([got.detach()[others]], [clean[others]], 2e-6)
        if case.spoilt in case.learns:
            for name, gradient in zip(case.learns, gradients(case, spoilt, got)):
                if name == case.spoilt:
                    assert gradient[others].isfinite().all()
        if case.reductions != (None,):
            assert call(case, spoilt, backend, reduction="mean").isnan()


def zero_rows_have_no_gradient(case, backend, device):
    for size in (0.0, 1e-30):
        arguments = arguments_of(case, device)
        zeroed = {name: k + 1 for k, name in enumerate(arguments) if arguments[name].dim() == 2}
        with torch.no_grad():
            for name, k in zeroed.items():
                arguments[name][k % len(arguments[name])] *= size
        got = result(case, arguments, backend)
        assert all(x.isfinite().all() for x in got)
        assert_near(got, exact(case, arguments))
        if case.options.get("normalize", True):
            for name, gradient in zip(case.learns, got[1:]):
                assert name not in zeroed or (gradient[zeroed[name] % len(gradient)] == 0).all(), name


def half_precision_is_computed_in_float32(case, backend, device):
    for dtype in (torch.float16, torch.bfloat16):
        arguments = arguments_of(case, device, dtype)
        got, expected = result(case, arguments, backend), exact(case, arguments)
        moves = case.function is fastcse.adversarial_positive
        assert got[0].dtype == (dtype if moves else torch.float32)
        # A positive is moved in its own type, and `everything` makes a block of the rows' type.
        rough = case.function in (fastcse.adversarial_positive, fastcse.hsimcse_loss, everything)
        assert_near(got[:1], expected[:1], 1e-2 if rough else 2e-5)
        for name, one, two in zip(case.learns, got[1:], expected[1:]):
            assert one.dtype == arguments[name].dtype, name
            assert_near([one], [two], 2e-2)


def float64_is_the_oracle(case, backend, device):
    arguments = arguments_of(case, device, torch.float64)
    for reduction in case.reductions:
        got = result(case, arguments, None, reduction=reduction)
        assert got[0].dtype == torch.float64
        assert_near(
            got, exact(case, arguments, reduction), 1e-6 if case.function is fastcse.angular_infonce_loss else 1e-10
        )
    assert not case.takes("backend") or fastcse.last_backend() == "reference"


def autocast_rounds_nothing(case, backend, device):
    arguments = arguments_of(case, device)
    expected = result(case, arguments, backend)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = call(case, arguments, backend)
    assert out.dtype == torch.float32
    assert_near([out.detach(), *(gradients(case, arguments, out) if case.learns else ())], expected, 2e-6)


def without_gradients_the_value_is_the_same(case, backend, device):
    arguments = arguments_of(case, device)
    for reduction in case.reductions:
        expected = call(case, arguments, backend, reduction=reduction).detach()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                got = call(case, arguments, backend, reduction=reduction)
            assert not got.requires_grad
            assert_near([got], [expected], 2e-6)


def twice_the_same_bits(case, backend, device):
    """Also of a second backward pass through one graph, which may not write to what the first returned."""
    n = {"reference": 40, "triton": 24 if device.type == "cpu" else 300}.get(backend, 300)
    arguments = arguments_of(case, device, n=n)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if backend == "cpp" else threads)
    try:
        one, two = (result(case, arguments, backend) for _ in range(2))
        for reduction in case.reductions if case.learns else ():
            out = call(case, arguments, backend, reduction=reduction)
            held = gradients(case, arguments, 3 * out)
            first = [g.clone() for g in held]
            second = gradients(case, arguments, 3 * out)
            assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, held))
            assert_near(first, [3 * g for g in gradients(case, arguments, out)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two))


PROPERTIES = [
    value_and_gradients, any_strides, inputs_are_not_written_to, a_second_derivative_is_right_or_refused,
    bad_arguments_are_errors_that_name_the_values, a_nan_stays_in_its_row, zero_rows_have_no_gradient,
    half_precision_is_computed_in_float32, float64_is_the_oracle, autocast_rounds_nothing,
    without_gradients_the_value_is_the_same, twice_the_same_bits,
]  # fmt: skip


def compiles_whole(case, backend, device):
    """torch.compile(fullgraph=True) of value and gradients, and no new graph for every number of rows."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda arguments: call_plainly(case, arguments, backend), fullgraph=True, backend=counter)
    for n in (6, 9, 13):
        arguments = arguments_of(case, device, n=n)
        got = compiled(arguments)
        more = gradients(case, arguments, got, again=False) if case.learns else ()
        assert_near([got.detach(), *more], result(case, arguments, backend))
    most = 3 if case.function is fastcse.uniformity else 2  # its loop over slices of rows is a constant
    assert counter.frame_count <= most, f"compiled {counter.frame_count} times for three numbers of rows"


def call_plainly(case, arguments, backend):
    """`call` in a form that can be traced: nothing but the function."""
    told = {"backend": backend} if case.takes("backend") or case.function is everything else {}
    if case.reductions != (None,):
        told["reduction"] = "none"
    return case.pick(case.function(**arguments, **case.options, **told))
