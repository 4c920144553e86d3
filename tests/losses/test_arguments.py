"""Bad arguments are errors that name both values; a backend that is not there is an error or an announced fallback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcse


def pair(n=4, m=4, d=3):
    return torch.randn(n, d), torch.randn(m, d)


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
