"""Fixtures of the operators' tests."""

import jaxtyping
import pytest


@pytest.fixture
def without_shape_checks(monkeypatch):
    """Let calls with wrong shapes reach the operator, as they do in a user's program."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
