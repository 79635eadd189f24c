"""Numbers made by the official implementation, and its weights under this package's names."""

import json
import os
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from safetensors.torch import load_file

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


def parity_folder():
    folder = os.environ.get("ALLSIGHT_PARITY")
    if not folder or not (Path(folder) / "uniperceiver").is_dir():
        pytest.skip("ALLSIGHT_PARITY is not set: no numbers of the official implementation")
    return Path(folder) / "uniperceiver"


@pytest.fixture(scope="session")
def numbers():
    """Name of a file -> its tensors."""
    return lambda name: load_file(parity_folder() / f"{name}.safetensors")


@pytest.fixture(scope="session")
def facts():
    """Name of a file -> what its json says."""
    return lambda name: json.loads((parity_folder() / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def relative():
    """Distance of `a` from the stored `b`."""

    def distance(a, b):
        with torch.no_grad():
            return float((a.double() - b.double()).norm() / b.double().norm())

    return distance


@pytest.fixture
def without_shape_checks(monkeypatch):
    """Learning tests make thousands of calls whose shapes other tests check."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
