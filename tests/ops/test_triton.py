"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for an H100.

Triton reads TRITON_INTERPRET when it decorates a kernel, and a test process may have imported it long before;
hence a process of its own for each file of cases.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from allsight.ops import _triton

CASES = Path(__file__).parent / "triton_cases"

has_triton = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not has_triton, reason="triton is not installed")


def run_cases(name, config, folder, **variables):
    """Run a file of cases in a process of its own and show its report if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}
    environment.pop("TRITON_INTERPRET", None)
    # The shape checks wrap functions whose source Triton reads.
    command = [sys.executable, "-m", "pytest", str(CASES / name), "--jaxtyping-packages=", "-q"]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=config.rootpath,
        env=environment | {"TRITON_CACHE_DIR": str(folder)} | variables,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@needs_triton
@pytest.mark.parametrize("operator", ["dcnv3", "expert_dispatch", "ms_deform_attn"])
def test_operator_is_right_in_the_interpreter(operator, pytestconfig, tmp_path):
    run_cases(f"{operator}.py", pytestconfig, tmp_path, TRITON_INTERPRET="1")


@pytest.mark.slow
@needs_triton
def test_kernels_compile_for_hopper(pytestconfig, tmp_path):
    run_cases("hopper.py", pytestconfig, tmp_path)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("operator", ["dcnv3", "expert_dispatch", "ms_deform_attn"])
def test_operator_is_right_on_the_gpu(operator, pytestconfig, tmp_path):
    run_cases(f"{operator}.py", pytestconfig, tmp_path)


def test_importing_the_operators_does_not_import_triton():
    code = "import sys, allsight.ops, allsight.ops._triton; print('triton' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_reason_why_triton_cannot_be_used_is_given_in_words(monkeypatch):
    monkeypatch.setattr(_triton, "_IS_INSTALLED", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert _triton.unusable() == "no CUDA or ROCm device, and TRITON_INTERPRET=1 is not set"
    assert "tensors are on cpu" in _triton.refuses(torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _triton.unusable() is None
    assert _triton.refuses(torch.zeros(1)) is None
    assert _triton.refuses(torch.zeros(1), torch.zeros(1, dtype=torch.int64)) == "no kernel for torch.int64"
    monkeypatch.setattr(_triton, "_IS_INSTALLED", False)
    assert _triton.unusable() == "triton is not installed"


def test_tiles_waste_least_of_a_map_and_are_square_where_that_costs_nothing():
    assert _triton.pixel_tile(64, 56, 56) == (8, 8)
    assert _triton.pixel_tile(64, 28, 28) == (4, 16)
    assert _triton.pixel_tile(64, 1, 500) == (1, 64)
    assert _triton.pixel_tile(64, 500, 1) == (64, 1)
    assert _triton.pixel_tile(1, 5, 3) == (1, 1)


def test_pixel_pitch_is_found_where_pixels_lie_evenly():
    tensor = torch.zeros(2, 3, 4, 10)
    assert _triton.pixel_pitch(tensor) == 10
    assert _triton.pixel_pitch(tensor[..., 2:7]) == 10
    assert _triton.pixel_pitch(tensor[:, :, ::2]) == 20
    assert _triton.pixel_pitch(tensor[:, :, 1:]) is None
    assert _triton.pixel_pitch(tensor[:, :1, 1:2]) == 120
    assert _triton.pixel_pitch(tensor[:1, :1, 1:2]) == 10
    assert _triton.pixel_pitch(tensor[..., ::2]) is None
    assert _triton.pixel_pitch(tensor.transpose(1, 2)) is None
    assert _triton.pixel_pitch(tensor[:1].expand(2, 3, 4, 10)) is None
    assert _triton.pixel_pitch(tensor[:1, :1, :1].expand(2, 1, 1, 10)) is None
