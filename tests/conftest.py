"""What tests of several rooms need: the real data and the numbers of the official implementations."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor


def _folder(variable: str, what: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set: {what}")
    return Path(os.environ[variable])


@pytest.fixture
def real_data() -> Path:
    """Folder with the real pictures; the test is skipped where there is none."""
    return _folder("ALLSIGHT_DATA", "folder with real data sets")


@pytest.fixture
def parity() -> Callable[[str], tuple[dict, dict[str, Tensor]]]:
    """Function: name of a parity case -> (its json, its tensors); the test is skipped where there is none."""
    folder = _folder("ALLSIGHT_PARITY", "folder with numbers of the official implementations")

    def load(name: str) -> tuple[dict, dict[str, Tensor]]:
        from safetensors.torch import load_file

        file = folder / name
        return json.loads(file.with_suffix(".json").read_text()), load_file(file.with_suffix(".safetensors"))

    return load
