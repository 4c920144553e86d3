"""The forms of the sweep kernel: plain and persistent, whole and in parts, chosen by a table."""

import json
import sys

import pytest
import torch
from calls import views

import fastcse
from fastcse.kernels import configs

launch = sys.modules["fastcse.kernels.sweep"]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
INTERPRETED = configs.triton.knobs.runtime.interpret
BASE = configs.INTERPRETED if INTERPRETED else configs.HALF._replace(block_d=32)
FORMS = {
    "plain, whole": BASE._replace(parts=1, programs=0),
    "plain, quarters": BASE._replace(parts=4, programs=0),
    "persistent, whole": BASE._replace(parts=1, programs=1),
    "persistent, quarters": BASE._replace(parts=4, programs=2),
    "persistent, wide, not flattened": BASE._replace(block_m=2 * BASE.block_m, parts=2, programs=1, flatten=False),
    "persistent, one panel": BASE._replace(group=1, programs=1),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def anchors_and_candidates(n, m, d, device):
    return [x.detach() for x in views(device, n, m, d)[:2]]


@pytest.fixture
def launched(monkeypatch):
    """Names of the sweep kernels that were launched."""
    names = []

    def spy(name):
        kernel = getattr(launch, name)

        class Spy:
            def __getitem__(self, grid):
                names.append(name)
                return kernel[grid]

        monkeypatch.setattr(launch, name, Spy())

    spy("sweep_kernel")
    spy("persistent_sweep_kernel")
    return names


def both_backends(form, call, rows):
    """(triton in this form, reference): the value and its gradients."""
    out = []
    for backend in ("triton", "reference"):
        leaves = [x.clone().requires_grad_() for x in rows]
        with configs.pinned(form):
            value = call(*leaves, backend=backend)
            value.backward()
        out.append([value.detach(), *(x.grad for x in leaves)])
    return out


@every_form
def test_every_form_computes_the_same(form, launched, device):
    rows = anchors_and_candidates(45, 45, 40, device)

    def call(a, c, t, backend):
        return fastcse.focal_infonce_loss(a, c, temperature=t, symmetric=True, backend=backend)

    got, want = both_backends(form, call, [*rows, torch.tensor(0.1, device=device)])
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w, rtol=2e-5, atol=2e-7)
    assert set(launched) == {"persistent_sweep_kernel" if form.programs else "sweep_kernel"}


@every_form
def test_by_products_are_the_same_in_parts(form, device):
    rows = anchors_and_candidates(45, 70, 40, device)
    with configs.pinned(form):
        _, got = fastcse.infonce_loss(*rows, return_stats=True, backend="triton")
    _, want = fastcse.infonce_loss(*rows, return_stats=True, backend="reference")
    for name in want._fields[:-1]:
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=1e-5, atol=1e-6, msg=name)


@every_form
def test_a_shut_gate_and_an_open_one(form, device):
    # Random rows at this temperature leave the static range: the guard's second sweep runs behind its gate.
    rows = anchors_and_candidates(45, 45, 40, device)
    for temperature in (0.005, 0.0125):
        got, want = both_backends(
            form, lambda a, c, backend, t=temperature: fastcse.infonce_loss(a, c, temperature=t, backend=backend), rows
        )
        for g, w in zip(got, want):
            torch.testing.assert_close(g, w, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("d", [33, 38])
def test_rows_that_no_descriptor_describes_take_the_plain_form(d, launched, device):
    rows = anchors_and_candidates(40, 50, d, device)
    form = FORMS["persistent, quarters"]
    got, want = both_backends(form, lambda a, c, backend: fastcse.infonce_loss(a, c, backend=backend), rows)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-7)
    assert set(launched) == {"sweep_kernel"}


def test_rows_that_start_off_alignment_take_the_plain_form(launched, device):
    a, c = anchors_and_candidates(40, 50, 41, device)
    a = torch.nn.functional.pad(a, (0, 3))[:, 1:41]  # rows of 44 floats: 16-byte steps, but not a 16-byte start
    assert a.stride(0) * 4 % 16 == 0
    assert a.data_ptr() % 16 != 0
    with configs.pinned(FORMS["persistent, quarters"]):
        got = fastcse.infonce_loss(a, c[:, :40].contiguous(), backend="triton")
    torch.testing.assert_close(got, fastcse.infonce_loss(a, c[:, :40].contiguous(), backend="reference"))
    assert set(launched) == {"sweep_kernel"}


def test_the_table_is_read_at_the_nearest_width(tmp_path, monkeypatch):
    winner = configs.HALF._replace(group=4)
    wide = configs.HALF_DESCRIBED._replace(num_stages=4)
    table = {"sm_90": {"bfloat16": {"384": {"sums": winner._asdict()}, "1024": {"sums": wide._asdict()}}}}
    monkeypatch.setattr(configs, "TUNED", tmp_path / "tuned.json")
    (tmp_path / "tuned.json").write_text(json.dumps(table))
    configs._tuned.cache_clear()
    try:
        assert configs.tuned_config((9, 0), torch.bfloat16, 256, "sums") == winner
        assert configs.tuned_config((9, 0), torch.bfloat16, 768, "sums") == wide
        assert configs.tuned_config((9, 0), torch.bfloat16, 768, "gradients") is None
        assert configs.tuned_config((9, 0), torch.float16, 768, "sums") is None
        assert configs.tuned_config((8, 0), torch.bfloat16, 768, "sums") is None
    finally:
        monkeypatch.undo()
        configs._tuned.cache_clear()


def test_what_is_in_the_table_can_be_launched():
    if not configs.TUNED.exists():
        pytest.skip("nothing was tuned yet: `make gpu` on a machine with a GPU writes the table")
    for by_type in configs._tuned().values():
        for by_width in by_type.values():
            for kinds in by_width.values():
                for kind, entry in kinds.items():
                    config = configs.TileConfig(**entry)
                    assert kind in configs.KINDS
                    assert configs.LARGEST_TILE % config.block_n == configs.LARGEST_TILE % config.block_m == 0
                    assert config.block_m % config.parts == 0


def test_defaults_by_architecture():
    half, single = torch.bfloat16, torch.float32
    assert configs.default_config((9, 0), half, "gradients").programs == 2
    assert configs.default_config((10, 0), single, "sums").programs == 2
    assert configs.default_config((9, 0), half, "busy").programs == 0
    assert configs.default_config((8, 0), half, "gradients").programs == 0
