"""Lanes, forced backends and poisoned memory.

The CPU lane runs the kernels in Triton's interpreter. FASTCSE_TEST_DEVICE=cuda runs the same files on the device.
FASTCSE_ALLOW_NO_CPP=1 lets a machine without the C++ module skip its cases instead of failing them.
"""

import os
import sys
from collections import defaultdict

os.environ["HF_HUB_OFFLINE"] = "1"
DEVICE = os.environ.get("FASTCSE_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    # Read when a kernel is decorated, so it must stand before the first import of triton.
    os.environ["TRITON_INTERPRET"] = "1"

from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from oracle import Outcome  # noqa: E402

import fastcse  # noqa: E402

hypothesis.settings.register_profile(
    "fastcse",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fastcse")

if DEVICE == "cpu":
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        """d + a @ b, every element summed in the order of k, as a GPU's matrix instructions do. The interpreter's own
        product is BLAS's, which on some processors sums the columns of one tile in unequal orders: equal centroids then
        have unequal scores, and no rule for ties can hold. The package has no product of 8-bit floats."""
        terms = np.multiply(a.data[:, :, None], b.data[None], dtype=d.data.dtype)
        return TensorHandle(terms.sum(1) + d.data, d.dtype.scalar)

    InterpreterBuilder.create_dot = dot

PACKAGE = str(Path(fastcse.__file__).resolve().parent)
BACKENDS = ("reference", "triton") if DEVICE == "cuda" else ("reference", "cpp", "triton")


def poisoned(allocate):
    """`allocate`, but memory asked for by a fastcse file comes filled with what no result may contain."""

    def call(*args, **options):
        out = allocate(*args, **options)
        if torch.compiler.is_compiling() or not sys._getframe(1).f_code.co_filename.startswith(PACKAGE):
            return out
        with torch.no_grad():
            if out.is_floating_point():
                return out.fill_(torch.nan)
            return out.fill_(True if out.dtype == torch.bool else torch.iinfo(out.dtype).max - 7)

    return call


torch.empty = poisoned(torch.empty)
torch.empty_like = poisoned(torch.empty_like)
torch.empty_strided = poisoned(torch.empty_strided)
torch.Tensor.new_empty = poisoned(torch.Tensor.new_empty)


def by_value(items):
    """A part of one test's items in which every value of every parameter occurs, picked greedily in order."""
    wanted = {item: {(k, repr(v)) for k, v in item.callspec.params.items()} for item in items}
    missing, kept = set().union(*wanted.values()), []
    while missing:
        kept.append(max(items, key=lambda item: len(wanted[item] & missing)))
        missing -= wanted[kept[-1]]
    return kept


def pytest_configure(config):
    config.addinivalue_line("markers", "interpreted: runs in Triton's interpreter in `make test` too")
    config.addinivalue_line("markers", "interpreted_by_value: the same, one item for every value")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """The interpreter is thirty times slower than a backend, and the engine above the kernels is the same code on all
    of them: without a GPU, what is not made for the interpreter runs there in `make test-all` alone."""
    if DEVICE != "cpu":
        # What never touches the device has run in the CPU lane.
        elsewhere = [item for item in items if "device" not in item.fixturenames]
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if "device" in item.fixturenames]
        return
    groups = defaultdict(list)
    for item in items:
        if getattr(item, "callspec", None) and item.callspec.params.get("backend") == "triton":
            groups[item.parent.nodeid, item.originalname].append(item)
    for group in groups.values():
        kept = by_value(group) if group[0].get_closest_marker("interpreted_by_value") else []
        for item in group:
            if item not in kept and not item.get_closest_marker("interpreted"):
                item.add_marker(pytest.mark.whole)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(20231018)


@pytest.fixture
def device():
    return torch.device(DEVICE)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every backend of this lane; one that cannot run is a failure, so that no lane is green by doing nothing."""
    status = fastcse.backends()[request.param]
    if not status.available and request.param == "cpp" and os.environ.get("FASTCSE_ALLOW_NO_CPP") == "1":
        pytest.skip(f"cpp: {status.reason} (runs in the lane that builds the C++ module)")
    if not status.available:
        pytest.fail(f"backend {request.param!r} is not available: {status.reason}")
    return request.param


@pytest.fixture
def forced(backend):
    """Calls a public function with the backend forced, and asserts that this backend ran."""

    def call(function, *args, **options):
        out = function(*args, backend=backend, **options)
        assert fastcse.last_backend() == backend
        return out

    return call


def loss_arguments(case, device, temperature=None):
    """The public function, leaves and keyword arguments of an `oracle.Case`."""

    def place(x):
        return None if x is None else x.detach().to(device)

    # Never cloned: a clone would be contiguous, and the strides are part of the case.
    leaves = [place(case.anchor).requires_grad_(), place(case.candidate).requires_grad_()]
    extras = [place(e.rows).requires_grad_(e.grad) for e in case.extras]
    blocks = [
        fastcse.CandidateBlock(rows, log_weight=place(e.log_weight), own_log_weight=e.own_log_weight, id=place(e.id))
        for rows, e in zip(extras, case.extras)
    ]
    options = dict(
        temperature=case.temperature if temperature is None else temperature,
        symmetric=case.symmetric,
        anchor_id=place(case.anchor_id),
        candidate_id=place(case.candidate_id),
        normalize=case.normalize,
    )
    if blocks:
        options["negatives"] = blocks
    if case.focal:
        options |= dict(margin=case.margin, detach_modulation=case.detach)
    function = fastcse.focal_infonce_loss if case.focal else fastcse.infonce_loss
    if case.angular:
        function, options = fastcse.angular_infonce_loss, {**options, "margin": case.margin}
    return function, leaves, extras, place(case.positive), options


def slack_of(backend, dtype):
    """Twice the error of plain torch; more only where the interpreter is at fault: its bfloat16 stores cut digits off
    instead of rounding, and the gradient weights of float16 rows are bfloat16. The device lane holds them to twice."""
    return 8.0 if backend == "triton" and DEVICE == "cpu" and dtype == torch.float16 else 2.0


@pytest.fixture
def run(forced, backend, device):
    """Runs an `oracle.Case` forward and, with `grad`, backward on the forced backend; `upstream` (N,) weighs rows."""

    def go(case, *, reduction="none", upstream=None, learn=False, grad=True, **more):
        temperature = torch.tensor(case.temperature, device=device, requires_grad=True) if learn else None
        function, leaves, extras, positive, options = loss_arguments(case, device, temperature)
        with torch.set_grad_enabled(grad):
            out = forced(function, *leaves, positive, reduction=reduction, **options, **more)
        loss, stats = out if more.get("return_stats") else (out, None)
        if not grad:
            return Outcome(loss, stats=stats)
        if reduction == "none":
            n = len(case.anchor)
            loss.backward(torch.full((n,), 1 / n, device=device) if upstream is None else upstream.to(device))
        else:
            loss.backward()
        return Outcome(
            loss.detach(),
            leaves[0].grad,
            leaves[1].grad,
            tuple(e.grad for e in extras),
            temperature.grad if learn else None,
            stats,
            slack=slack_of(backend, case.anchor.dtype),
        )

    return go


@pytest.fixture(scope="session")
def encoder_path(tmp_path_factory):
    """A tiny encoder on the disk, for all tests that need a real one."""
    from tiny_encoder import write_tiny_encoder

    return write_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def encoder(encoder_path):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(encoder_path, device="cpu")
