"""Fixtures of the operators' tests."""

import ctypes
import sys
from pathlib import Path

import jaxtyping
import pytest

from allsight.ops import _native

# Helper modules of these tests are imported by name, also by the processes that tests start.
HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture
def without_shape_checks(monkeypatch):
    """Let calls with wrong shapes reach the operator, as they do in a user's program."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(params=getattr(_native._LIBRARY, "isas", ()))
def instruction_set(request):
    """Each instruction set that the kernels were built for and this machine has, one after the other."""
    assert not isinstance(_native._LIBRARY, str)
    library = ctypes.CDLL(_native._LIBRARY.path)
    before = _native._LIBRARY.isa
    assert library.allsight_use_isa(request.param.encode())
    yield request.param
    library.allsight_use_isa(before.encode())
