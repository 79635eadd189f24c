"""What the interpreter cannot see: the kernels compile for an H100 and keep their shape (no GPU needed)."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from allsight.ops.dcnv3 import triton as dcnv3
from allsight.ops.dcnv3._geometry import Geometry
from allsight.ops.expert_dispatch import triton as expert_dispatch
from allsight.ops.ms_deform_attn import triton as ms_deform_attn


class Hopper:
    """As much of a driver as compiling asks for."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch):
    """The kernels compiled so far; launches compile and do not run."""
    kernels, run = [], JITFunction.run

    def compile_only(self, *args, warmup, **kwargs):
        kernels.append(run(self, *args, warmup=True, **kwargs))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    triton.runtime.driver.set_active(Hopper())
    return kernels


def resources(kernel, folder):
    """Registers, stack and local memory of a thread, by name."""
    tool = Path(os.path.dirname(triton.__file__)) / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this build of triton has no cuobjdump")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def run_dcnv3(dtype, task):
    value = torch.zeros(1, 56, 56, 64, dtype=dtype)
    merged = torch.zeros(1, 56, 56, 108, dtype=dtype)
    call = value, merged[..., :72], merged[..., 72:], Geometry.of(4, 3, 1, 1, 1, 1.0, False), True
    return dcnv3.forward(*call) if task == "forward" else dcnv3.backward(value, *call)


def run_ms_deform_attn(dtype, task):
    shapes = ((20, 30), (10, 15))
    value = torch.zeros(1, 750, 8, 32, dtype=dtype)
    locations = torch.zeros(1, 900, 8, 2, 4, 2)
    call = value, locations, torch.zeros(1, 900, 8, 2, 4, dtype=dtype), shapes, True
    grad = torch.zeros(1, 900, 256, dtype=dtype)
    return ms_deform_attn.forward(*call) if task == "forward" else ms_deform_attn.backward(grad, *call)


@pytest.mark.parametrize(
    ("run", "task", "dtype"),
    [
        (run_dcnv3, "forward", torch.bfloat16),
        (run_dcnv3, "backward", torch.float16),
        (run_dcnv3, "deterministic", torch.float32),
        (run_ms_deform_attn, "forward", torch.bfloat16),
        (run_ms_deform_attn, "backward", torch.float32),
    ],
)
def test_kernel_compiles_and_moves_whole_vectors(run, task, dtype, compiled, tmp_path):
    torch.use_deterministic_algorithms(task == "deterministic")
    run(dtype, task)
    torch.use_deterministic_algorithms(False)
    (kernel,) = compiled
    code = kernel.asm["ptx"]
    if task == "forward":
        assert "ld.global.v4.b32" in code
        # Rows stay with their threads: nothing crosses shared memory between load and store.
        assert kernel.metadata.shared == 0
    elif task == "backward":
        assert "global.gpu.relaxed.add.v4.f32" in code
    else:
        assert "global.gpu.relaxed.add.u64" in code
    usage = resources(kernel, tmp_path)
    # Two blocks of 256 threads at least share a multiprocessor, and nothing is spilled.
    assert usage["REG"] <= 128
    assert usage["LOCAL"] == usage["STACK"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_experts_compile_and_use_matrix_units(dtype, compiled, tmp_path):
    x, weight = torch.zeros(4096, 768, dtype=dtype), torch.zeros(8, 3072, 768, dtype=dtype)
    choices = torch.arange(8192).view(4096, 2) % 8, torch.ones(4096, 2)
    call = x, weight, torch.zeros(8, 3072, dtype=dtype), *choices
    expert_dispatch.forward(*call)
    expert_dispatch.backward(torch.zeros(4096, 3072, dtype=dtype), *call)
    assert [kernel.metadata.name for kernel in compiled] == [
        "_product_kernel",
        "_mix_kernel",
        "_product_kernel",
        "_mix_kernel",
        "_gate_kernel",
        "_weight_kernel",
    ]
    for kernel in compiled:
        usage = resources(kernel, tmp_path)
        assert usage["LOCAL"] == usage["STACK"] == 0, kernel.metadata.name
        if dtype.itemsize == 2 and kernel.metadata.name in ("_product_kernel", "_weight_kernel"):
            assert "mma" in kernel.asm["ptx"]
