"""DCNv4: what it shares with DCNv3, and its own name in what it says."""

import inspect

import pytest
import torch
from ops.backends import TOLERANCES, most_exact, relative, serving
from ops.dcn_cases import official_options

from allsight.ops import dcnv3, dcnv4, status

EVERY_BACKEND = pytest.mark.parametrize(("backend", "dtype"), most_exact("dcnv4"))


@EVERY_BACKEND
def test_weights_of_any_size_and_sign_are_taken_as_they_are(parity, backend, dtype):
    """dcnv3/core: its weights are not normalised, so its numbers are those of DCNv4 too."""
    about, tensors = parity("dcnv3/core")
    forward, gradient = TOLERANCES[dtype]
    for name, case in about["cases"].items():
        inputs = {k: tensors[f"{name}.{k}"].to(dtype).requires_grad_() for k in ("input", "offset", "mask")}
        output = dcnv4(*inputs.values(), **official_options(case), backend=backend)
        assert relative(output, tensors[f"{name}.output"]) < forward, name
        (output * tensors[f"{name}.loss_weight"].to(dtype)).sum().backward()
        for key, tensor in inputs.items():
            if f"{name}.grad_{key}" in tensors:
                assert relative(tensor.grad, tensors[f"{name}.grad_{key}"]) < gradient, (name, key)


@pytest.mark.parametrize(("backend", "dtype"), serving("dcnv4", torch.float32, torch.bfloat16))
def test_equals_dcnv3_without_softmax_bit_for_bit(backend, dtype):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 5, 4, size).to(dtype) for size in (6, 2 * 8 * 2, 2 * 8)]
    options = dict(groups=2, remove_center=True, offset_scale=0.5, backend=backend)
    assert torch.equal(dcnv4(*inputs, **options), dcnv3(*inputs, **options))


def test_takes_the_arguments_of_dcnv3_but_softmax():
    ours, theirs = (inspect.signature(operator).parameters for operator in (dcnv4, dcnv3))
    assert list(ours) == [name for name in theirs if name != "softmax"]
    assert all(ours[name].default == theirs[name].default for name in ours)


def test_status_lists_it_under_its_own_name():
    assert status()["dcnv4"].op == "dcnv4"
    assert status()["dcnv4"].chosen == status()["dcnv3"].chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(groups=4), "value: expected channels divisible by groups=4, got 6"),
        (dict(groups=1), r"offset: expected shape \(1, 5, 7, 18\)"),
        (dict(groups=0), "groups: expected an integer >= 1, got 0"),
        (dict(groups=2, kernel_size=(0, 3)), "kernel_size: expected an integer >= 1"),
        (dict(groups=2, dilation=9), "value: a map of 5x7"),
        (dict(groups=2, kernel_size=1, remove_center=True), "remove_center: kernel_size 1 has no other"),
    ],
)
def test_calls_that_do_not_fit_name_operator_and_argument(options, message):
    inputs = torch.zeros(1, 5, 7, 6), torch.zeros(1, 5, 7, 36), torch.zeros(1, 5, 7, 18)
    with pytest.raises(ValueError, match=f"^dcnv4: {message}"):
        dcnv4(*inputs, **options)
