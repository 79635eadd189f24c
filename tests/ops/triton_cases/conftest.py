"""Cases of the Triton kernels, run by `test_triton.py` in the interpreter, each file in its own process.

By hand: `TRITON_INTERPRET=1 pytest tests/ops/triton_cases/dcnv3.py --jaxtyping-packages=`; on a machine with
a GPU without the variable, which runs the same cases there.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_configure(config):
    # The interpreter computes with numpy, which warns of each NaN that a test asks for.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.fixture(scope="session")
def device():
    """Where the kernels run."""
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill fresh memory with NaN (integers: a large number), so that nothing unwritten passes for zero."""

    def poisoned(allocate):
        def allocate_and_fill(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else 2**30)

        return allocate_and_fill

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture
def deterministic():
    """Within the test PyTorch is asked for deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def in_reverse(monkeypatch):
    """Function that makes the interpreter run the programs of a launch last to first (on a GPU: nothing)."""

    def reverse():
        if not INTERPRETED:
            return
        from triton.runtime.interpreter import interpreter_builder as builder

        set_program = builder.set_grid_idx
        monkeypatch.setattr(
            builder, "set_grid_idx", lambda x, y, z: set_program(builder.grid_dim[0] - 1 - x, y, z)
        )

    return reverse


class Close:
    """Comparisons of named tensors; a failure says which one differs."""

    NAMES = ("output", "grad of value", "grad of offset or locations", "grad of mask or weights")

    def relative(self, actual, expected, limit):
        """Norm of the difference over the norm of what is expected."""
        for name, a, e in zip(self.NAMES, actual, expected, strict=True):
            a, e = a.detach().double().cpu(), e.detach().double().cpu()
            assert a.shape == e.shape, name
            error = float((a - e).norm() / e.norm().clamp_min(1e-300))
            assert error < limit or not (e.any() or a.any()), f"{name}: {error:.2e}"

    def rounded(self, actual, expected, dtype):
        """Each element is the exact one, rounded to `dtype` once."""
        for name, a, e in zip(self.NAMES, actual, expected, strict=True):
            assert a.dtype == dtype, name
            e = e.detach().cpu()
            torch.testing.assert_close(
                a.cpu(),
                e.to(dtype),
                rtol=torch.finfo(dtype).eps,
                atol=1e-6 * float(e.abs().max()),
                msg=lambda text, name=name: f"{name}: {text}",
            )

    def same_bits(self, actual, expected, names=NAMES):
        for name, a, e in zip(names, actual, expected, strict=True):
            assert torch.equal(a, e), f"{name}: {float((a - e).abs().max()):.2e}"


@pytest.fixture(scope="session")
def close():
    return Close()
