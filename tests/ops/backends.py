"""Which backends, and with which floating-point types, the tests of an operator run on.

A backend that the machine can use gets all tests that do not belong to one implementation.
"""

import pytest
import torch

from allsight.ops import dcnv3, dcnv4, ms_deform_attn, status

# Relative L2 for outputs and for gradients, against float64 numbers.
TOLERANCES = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (2e-2, 5e-2),
    torch.bfloat16: (2e-2, 5e-2),
}


def _call_dcn(operator):
    def call(zeros, backend):
        operator(zeros(1, 2, 2, 1), zeros(1, 2, 2, 18), zeros(1, 2, 2, 9), groups=1, backend=backend)

    return call


def _call_ms_deform_attn(zeros, backend):
    ms_deform_attn(
        zeros(1, 4, 1, 1), ((2, 2),), zeros(1, 1, 1, 1, 1, 2), zeros(1, 1, 1, 1, 1), backend=backend
    )


_SMALL_CALLS = {"dcnv3": _call_dcn(dcnv3), "dcnv4": _call_dcn(dcnv4), "ms_deform_attn": _call_ms_deform_attn}


def usable_backends(op):
    """Names of the backends that this machine can use for an operator."""
    return [name for name, state in status()[op].backends.items() if state.usable]


def compiled_first(op):
    """The usable backends for long tests; beside compiled kernels the reference belongs to the slow set."""
    names = usable_backends(op)
    is_slow = {"reference"} if "cpu" in names else set()
    return [pytest.param(name, marks=pytest.mark.slow) if name in is_slow else name for name in names]


def serving(op, *dtypes):
    """All pairs (backend, type) that serve a call on the CPU with these types."""
    pairs = []
    for backend in usable_backends(op):
        for dtype in dtypes:
            try:
                _SMALL_CALLS[op](lambda *shape, dtype=dtype: torch.zeros(shape, dtype=dtype), backend)
            except ValueError as error:
                if "cannot serve this call" not in str(error):
                    raise
            else:
                pairs.append((backend, dtype))
    return pairs


def most_exact(op):
    """Each backend that serves calls on the CPU, with float64 if it knows it, else with float32."""
    pairs = serving(op, torch.float32, torch.float64)
    return list(dict(pairs).items())


def relative(actual, expected):
    """Relative L2 distance."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-300))
