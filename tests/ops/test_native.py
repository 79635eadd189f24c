"""The compiled CPU kernels: every instruction set, threads, memory, forks, and doing without them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native_cases import calls, draw, outcome

from allsight.ops import _native, dcnv3, ms_deform_attn, status

HERE = Path(__file__).parent
compiled = pytest.mark.skipif(_native.unusable() is not None, reason=str(_native.unusable()))


def run_script(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@compiled
@pytest.mark.parametrize("isa", getattr(_native._LIBRARY, "isas", ()))
def test_every_instruction_set_agrees_with_the_reference(isa):
    result = run_script("import native_cases; native_cases.main()", ALLSIGHT_CPU_ISA=isa)
    assert (result.returncode, result.stdout) == (0, f"{isa}\n"), result.stderr


@compiled
def test_an_instruction_set_this_machine_has_not_is_named_where_the_choice_is_explained():
    code = "from allsight.ops import status; print(status()['dcnv3'])"
    result = run_script(code, ALLSIGHT_CPU_ISA="avx9000", ALLSIGHT_BACKEND="")
    assert result.stdout.split()[:2] == ["dcnv3", "reference"], result.stderr
    assert "the CPU kernels cannot be used: ALLSIGHT_CPU_ISA=avx9000: this machine has" in result.stdout


@compiled
def test_results_are_the_same_bits_for_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 4, 1):
            torch.set_num_threads(threads)
            found = {name: outcome(run, tensors, "cpu") for name, (run, tensors) in calls().items()}
            # Gradients of the operators with a norm in them are PyTorch's, which depend on the threads.
            results.append([made[:1] if "norm" in name else made for name, made in found.items()])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for ours, theirs in zip(results[0], others, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a, b)


@compiled
@pytest.mark.parametrize("softmax", [False, True])
def test_an_image_is_computed_alike_alone_and_in_a_batch(softmax):
    value, offset, mask = draw(0, 3, 6, 7, 32), draw(1, 3, 6, 7, 36) * 2, draw(2, 3, 6, 7, 18)
    grad = draw(3, 3, 6, 7, 32)

    def run(rows):
        tensors = [tensor[rows].clone().requires_grad_() for tensor in (value, offset, mask)]
        output = dcnv3(*tensors, groups=2, softmax=softmax, backend="cpu")
        output.backward(grad[rows])
        return [output.detach(), *(tensor.grad for tensor in tensors)]

    together = run(slice(None))
    for i in range(3):
        for whole, alone in zip(together, run(slice(i, i + 1)), strict=True):
            assert torch.equal(whole[i : i + 1], alone)


@compiled
def test_every_value_of_an_output_is_written(monkeypatch):
    expected = [outcome(run, tensors, "cpu") for run, tensors in calls().values()]
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    for (run, tensors), results in zip(calls().values(), expected, strict=True):
        for a, b in zip(outcome(run, tensors, "cpu"), results, strict=True):
            assert torch.equal(a, b)


@compiled
def test_parts_of_one_projection_need_no_copy():
    value, joint = draw(0, 2, 5, 6, 16), draw(1, 2, 5, 6, 1 + 18 + 9 + 3)
    offset, mask = joint[..., 1:19], joint[..., 19:28]
    assert offset.data_ptr() == _native_rows(offset).data_ptr()
    expected = dcnv3(value, offset.contiguous(), mask.contiguous(), groups=1, backend="cpu")
    assert torch.equal(dcnv3(value, offset, mask, groups=1, backend="cpu"), expected)


def _native_rows(tensor):
    from allsight.ops.dcnv3 import cpu

    return cpu._rows(tensor, tensor.dtype)


@compiled
def test_second_derivatives_are_refused_in_words():
    value = draw(0, 1, 4, 4, 8).requires_grad_()
    output = dcnv3(value, draw(1, 1, 4, 4, 18), draw(2, 1, 4, 4, 9), groups=1, backend="cpu")
    (grad,) = torch.autograd.grad(output.sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad.sum().backward()


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registered_operators_pass_opcheck(dtype):
    value, offset, mask = draw(0, 2, 4, 5, 8).to(dtype), draw(1, 2, 4, 5, 36) + 0.3, draw(2, 2, 4, 5, 18)
    tensors = [tensor.requires_grad_() for tensor in (value, offset, mask)]
    pattern = (2, 3, 3, 1, 1, 1, 1, 1, 1, 0)
    torch.library.opcheck(torch.ops.allsight.dcnv3.default, (*tensors, pattern, 1.0, True, "cpu"))
    value, places, weights = draw(0, 2, 6, 2, 4).to(dtype), draw(1, 2, 5, 2, 1, 3, 2), draw(2, 2, 5, 2, 1, 3)
    tensors = [tensor.requires_grad_() for tensor in (value, places, weights)]
    torch.library.opcheck(torch.ops.allsight.ms_deform_attn.default, (*tensors, [2, 3], True, "cpu"))


@compiled
def test_profilers_see_the_operators_by_name():
    tensors = draw(0, 1, 4, 4, 8), draw(1, 1, 4, 4, 18), draw(2, 1, 4, 4, 9)
    with torch.profiler.profile() as profile:
        dcnv3(*tensors, groups=1, backend="cpu")
    assert any(event.key == "allsight::dcnv3" for event in profile.key_averages())


@compiled
def test_autocast_leaves_places_in_float32_and_features_as_they_come():
    value, offset, mask = draw(0, 1, 4, 4, 8).bfloat16(), draw(1, 1, 4, 4, 18) * 9, draw(2, 1, 4, 4, 9)
    with torch.autocast("cpu", torch.bfloat16):
        output = dcnv3(value, offset, mask, groups=1, backend="cpu")
    assert output.dtype == torch.bfloat16
    exact = dcnv3(value.double(), offset.double(), mask.double(), groups=1, backend="reference")
    torch.testing.assert_close(output, exact.bfloat16(), rtol=0.01, atol=0.01)


FORK = """
import os, sys, torch
from native_cases import calls, outcome
torch.set_num_threads(2)
run, tensors = calls()["dcnv3 16"]
before = outcome(run, tensors, "cpu")
child = os.fork()
if child == 0:
    with torch.no_grad():
        same = torch.equal(run("cpu", *tensors), before[0])
    os._exit(0 if same else 1)
_, state = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(state))
"""


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_after_its_parent_used_threads():
    result = run_script(FORK)
    assert result.returncode == 0, result.stderr


NO_MEMORY = """
import resource, torch
from allsight.ops import dcnv3
groups = 2**20
tensors = torch.zeros(1, 1, 1, groups), torch.zeros(1, 1, 1, 18 * groups), torch.zeros(1, 1, 1, 9 * groups)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    dcnv3(*tensors, groups=groups, backend="cpu")
except MemoryError as error:
    print(error)
small = torch.ones(1, 2, 2, 1), torch.zeros(1, 2, 2, 18), torch.ones(1, 2, 2, 9)
assert dcnv3(*small, groups=1, backend="cpu")[0, 0, 0, 0] == 4
"""


@compiled
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_no_memory_is_an_exception_and_the_next_call_works():
    result = run_script(NO_MEMORY)
    assert (result.returncode, result.stdout) == (0, "dcnv3_forward: no memory for scratch space\n"), (
        result.stderr
    )


def test_without_the_library_the_reference_serves_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    monkeypatch.setattr(_native, "_BUILD_NOTE", tmp_path / "not_built.txt")
    monkeypatch.delenv(_native.LIBRARY_VARIABLE, raising=False)
    assert "no C++ compiler was found then" in _native._open()
    (tmp_path / "not_built.txt").write_text("the build failed\n")
    reason = _native._open()
    assert reason == "the CPU kernels were not built when allsight was installed (the build failed)"
    (tmp_path / "liballsight_ops.so").write_text("no library")
    assert "the CPU kernels cannot be used: " in _native._open()

    monkeypatch.setattr(_native, "_LIBRARY", reason)
    tensors = draw(0, 1, 4, 4, 8), draw(1, 1, 4, 4, 18), draw(2, 1, 4, 4, 9)
    expected = dcnv3(*tensors, groups=1, backend="reference")
    assert torch.equal(dcnv3(*tensors, groups=1), expected)
    with pytest.raises(ValueError, match=r"'cpu' .* cannot serve this call: the CPU kernels were not built"):
        dcnv3(*tensors, groups=1, backend="cpu")
    for name in status():
        assert status()[name].chosen == "reference"
        assert "the build failed" in str(status()[name])


@compiled
def test_maps_of_more_pixels_than_can_be_counted_are_refused():
    from allsight.ops.ms_deform_attn import cpu

    many = torch.empty(1).expand(1, 2**31, 1, 1)
    with pytest.raises(ValueError, match="2147483648 pixels, more than the CPU kernels can count"):
        cpu._call(many, ((2**16, 2**15),), draw(0, 1, 1, 1, 1, 1, 2), draw(1, 1, 1, 1, 1, 1), False)


@compiled
@pytest.mark.slow
def test_values_beyond_2_to_the_31_are_reached():
    """A map of 2^31 + some values: the last image's last pixels are read and written where they are."""
    shapes = ((2**14, 2**12),)
    value = torch.zeros(1, 2**26, 1, 33)
    value[0, -1] = 1
    places = torch.tensor([1 - 0.5 / 2**12, 1 - 0.5 / 2**14]).view(1, 1, 1, 1, 1, 2)
    output = ms_deform_attn(value, shapes, places, torch.ones(1, 1, 1, 1, 1), backend="cpu")
    torch.testing.assert_close(output, torch.ones(1, 1, 33), rtol=0, atol=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_sanitizers_find_nothing(tmp_path):
    root = HERE.parents[1]
    cmake = Path(sys.executable).parent / "cmake"
    configure = [
        str(cmake),
        "-S",
        str(root),
        "-B",
        str(tmp_path / "build"),
        "-DALLSIGHT_SANITIZE=address,undefined",
    ]
    for command in (configure, [str(cmake), "--build", str(tmp_path / "build"), "-j2"]):
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    preload = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    for isa in getattr(_native._LIBRARY, "isas", ("generic",)):
        result = run_script(
            "import native_cases; native_cases.main()",
            LD_PRELOAD=":".join(preload),
            ASAN_OPTIONS="detect_leaks=0",
            UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1",
            ALLSIGHT_CPU_LIBRARY=str(tmp_path / "build" / "liballsight_ops.so"),
            ALLSIGHT_CPU_ISA=isa,
        )
        assert (result.returncode, result.stdout) == (0, f"{isa}\n"), result.stdout + result.stderr
