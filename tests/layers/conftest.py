"""Numbers made by the official implementations, for the tests of this room."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file


@pytest.fixture
def parity():
    """Return a function: name of a case file -> (its json, its tensors)."""

    def load(name):
        if "ALLSIGHT_PARITY" not in os.environ:
            pytest.skip("ALLSIGHT_PARITY is not set: folder with numbers of the official implementations")
        file = Path(os.environ["ALLSIGHT_PARITY"]) / name
        return json.loads(file.with_suffix(".json").read_text()), load_file(file.with_suffix(".safetensors"))

    return load
