"""Bad arguments are errors that name both values; a backend that is not there is an error or an announced fallback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcse

LOSSES = [fastcse.infonce_loss, fastcse.focal_infonce_loss, fastcse.angular_infonce_loss]


def pair(n=4, m=4, d=3):
    return torch.randn(n, d), torch.randn(m, d)


BAD = {
    "no anchors": (lambda: (torch.randn(0, 3), torch.randn(4, 3)), {}, "0"),
    "no candidates": (lambda: (torch.randn(4, 3), torch.randn(0, 3)), {}, "0"),
    "widths": (lambda: (torch.randn(4, 3), torch.randn(4, 17)), {}, r"(?s)3.*17|17.*3"),
    "one dimension": (lambda: (torch.randn(11), torch.randn(4, 3)), {}, "11"),
    "dtypes": (lambda: (pair()[0], pair()[1].half()), {}, r"(?s)float32.*float16|float16.*float32"),
    "devices": (lambda: (pair()[0], pair()[1].to("meta")), {}, r"(?s)cpu.*meta|meta.*cpu"),
    "integers": (lambda: (torch.ones(4, 3, dtype=torch.int64),) * 2, {}, "int64"),
    "positive length": (lambda: (*pair(), torch.arange(13)), {}, r"(?s)4.*13|13.*4"),
    "positive dtype": (lambda: (*pair(), torch.arange(4, dtype=torch.int32)), {}, r"(?s)int64.*int32|int32.*int64"),
    "positive missing": (lambda: pair(19, 4), {}, r"(?s)19.*4|4.*19"),
    "temperature zero": (pair, {"temperature": 0.0}, r"\b0"),
    "temperature negative": (pair, {"temperature": -0.25}, "-0.25"),
    "temperature nan": (pair, {"temperature": float("nan")}, "nan"),
    "temperature shape": (pair, {"temperature": torch.ones(17)}, "17"),
    "backend": (pair, {"backend": "cuda_magic"}, r"(?s)cuda_magic.*reference|reference.*cuda_magic"),
    "reduction": (pair, {"reduction": "average"}, r"(?s)average.*mean|mean.*average"),
    "negatives width": (pair, {"negatives": torch.randn(4, 17)}, r"(?s)3.*17|17.*3"),
    "negatives dtype": (pair, {"negatives": torch.randn(4, 3).half()}, r"(?s)float32.*float16|float16.*float32"),
    "negatives device": (pair, {"negatives": torch.randn(4, 3, device="meta")}, r"(?s)cpu.*meta|meta.*cpu"),
    "log_weight length": (pair, {"negatives": [(4, {"log_weight": torch.zeros(13)})]}, r"(?s)4.*13|13.*4"),
    "block id length": (
        pair,
        {"anchor_id": torch.arange(4), "negatives": [(4, {"id": torch.arange(13)})]},
        r"(?s)4.*13|13.*4",
    ),
    "anchor_id length": (pair, {"anchor_id": torch.arange(13), "candidate_id": torch.arange(4)}, r"(?s)4.*13|13.*4"),
    "candidate_id length": (pair, {"anchor_id": torch.arange(4), "candidate_id": torch.arange(13)}, r"(?s)4.*13|13.*4"),
    "candidate_id alone": (pair, {"candidate_id": torch.arange(4)}, "anchor_id"),
    "anchor_id alone": (pair, {"anchor_id": torch.arange(4)}, "candidate_id"),
    "block id alone": (pair, {"negatives": [(4, {"id": torch.arange(4)})]}, "anchor_id"),
}


@pytest.mark.parametrize("function", LOSSES, ids=["infonce", "focal", "angular"])
@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_value_errors_that_name_both_values(function, name):
    make, options, message = BAD[name]

    def call():
        if isinstance(options.get("negatives"), list):
            blocks = [fastcse.CandidateBlock(torch.randn(k, 3), **more) for k, more in options["negatives"]]
            return function(*make(), **{**options, "negatives": blocks})
        return function(*make(), **options)

    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "name", ["no anchors", "no candidates", "widths", "one dimension", "dtypes", "devices", "integers"]
)
def test_bad_arguments_of_similarity(name):
    make, _, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fastcse.similarity(*make())


def test_unknown_backend_of_similarity():
    with pytest.raises(ValueError, match="cuda_magic"):
        fastcse.similarity(*pair(), backend="cuda_magic")


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": float("nan")}, {"reduction": "average"}])
@pytest.mark.parametrize("module", [fastcse.InfoNCELoss, fastcse.FocalInfoNCELoss])
def test_modules_refuse_what_the_functions_refuse(module, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        module(**options)(*pair())


# ---------------------------------------------------------------- backends that are not there


def python(code, **environment):
    """Runs `code` in a fresh interpreter without Triton's; returns what it printed and what it said aloud."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=variables | environment,
        capture_output=True,
        text=True,
        cwd=Path(fastcse.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_CPP = """
import logging, sys, warnings
sys.modules["fastcse._C"] = None
heard = []
class Ear(logging.Handler):
    def emit(self, record): heard.append(record.getMessage())
logging.getLogger().addHandler(Ear())
import torch, fastcse
rows = torch.eye(3)
"""


def test_forced_cpp_without_the_module_says_how_to_build_it():
    out = python(
        WITHOUT_CPP
        + """
assert not fastcse.backends()["cpp"].available, fastcse.backends()
try: fastcse.infonce_loss(rows, rows, backend="cpp")
except RuntimeError as error: print(error)
"""
    )
    assert "cpp" in out
    assert "pip install" in out or "make " in out, out


def test_fallback_is_announced_once():
    out = python(
        WITHOUT_CPP
        + """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3): fastcse.focal_infonce_loss(rows, rows)
said = heard + [str(w.message) for w in caught]
print(fastcse.last_backend(), len([s for s in said if "reference" in s]))
"""
    )
    assert out.split() == ["reference", "1"], out


def test_forced_triton_on_cpu_tensors_without_the_interpreter():
    out = python("""
import torch, fastcse
rows = torch.eye(3)
try: fastcse.infonce_loss(rows, rows, backend="triton")
except RuntimeError as error: print(error)
assert "reference" in fastcse.backends() and fastcse.backends()["reference"].available
""")
    assert "triton" in out
    assert "TRITON_INTERPRET=1" in out or "pip install" in out or "cuda" in out.lower(), out
