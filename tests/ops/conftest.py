"""Fixtures of the operators' tests."""

import sys
from pathlib import Path

import jaxtyping
import pytest

# Helper modules of these tests are imported by name, also by the processes that tests start.
HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture
def without_shape_checks(monkeypatch):
    """Let calls with wrong shapes reach the operator, as they do in a user's program."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
