"""DCNv3 by Triton against the float64 reference."""

import math
from dataclasses import dataclass, field

import pytest
import torch

from allsight.ops import _triton
from allsight.ops.dcnv3 import triton as kernels
from allsight.ops.dcnv3._geometry import Geometry
from allsight.ops.dcnv3.reference import dcnv3_reference

FLOAT32, FLOAT64 = 1e-6, 1e-12


@dataclass(frozen=True)
class Case:
    size: tuple[int, int] = (7, 5)
    groups: int = 1
    channels: int = 4
    batch: int = 1
    softmax: bool = False
    kernel: tuple[int, int] = (1, 2)
    pattern: dict = field(default_factory=dict)

    @property
    def geometry(self):
        options = dict(stride=1, padding=1, dilation=1, offset_scale=1.0, remove_center=False) | self.pattern
        return Geometry.of(self.groups, self.kernel, **options)

    def inputs(self, device, dtype=torch.float32, seed=0):
        """Value, offset, mask and the gradient of the output; offsets of some pixels."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        geometry, channels = self.geometry, self.groups * self.channels
        output = geometry.output_size(*self.size)
        points = self.groups * geometry.points
        offset = draw(self.batch, *output, points * 2) * 2
        # At whole coordinates the derivative jumps, and the reference's rounding may choose either side.
        offset = torch.where((offset - offset.round()).abs() < 0.01, offset + 0.3, offset)
        return (
            draw(self.batch, *self.size, channels),
            offset,
            draw(self.batch, *output, points),
            draw(self.batch, *output, channels),
        )


def expected(case, value, offset, mask, grad):
    """Output and gradients by the reference, in float64."""
    inputs = [tensor.detach().cpu().double().requires_grad_() for tensor in (value, offset, mask)]
    output = dcnv3_reference(*inputs, case.geometry, case.softmax)
    return output, *torch.autograd.grad(output, inputs, grad.cpu().double())


def actual(case, value, offset, mask, grad):
    output = kernels.forward(value, offset, mask, case.geometry, case.softmax)
    return output, *kernels.backward(grad, value, offset, mask, case.geometry, case.softmax)


PATTERNS = [
    Case(kernel=(3, 3), groups=2, channels=16),
    Case(kernel=(3, 3), size=(1, 1), softmax=True),
    Case(kernel=(3, 3), size=(1, 6), channels=3, pattern=dict(stride=2, offset_scale=2.0)),
    Case(
        kernel=(2, 4),
        size=(6, 5),
        batch=2,
        pattern=dict(stride=(1, 2), padding=(0, 2), dilation=(2, 1), offset_scale=0.5),
        softmax=True,
    ),
    Case(kernel=(5, 1), size=(6, 1), pattern=dict(padding=(3, 0), dilation=(1, 3), offset_scale=1.5)),
    Case(kernel=(3, 3), pattern=dict(padding=(2, 1), dilation=(2, 1), remove_center=True), softmax=True),
    Case(kernel=(1, 1), pattern=dict(stride=(3, 1), padding=(0, 1)), softmax=True),
    Case(kernel=(1, 11), size=(4, 13), pattern=dict(padding=(0, 5))),
    Case(kernel=(1, 1), size=(17, 9), channels=5, pattern=dict(padding=0)),
]
POINT = dict(kernel=(1, 1), size=(4, 5), pattern=dict(padding=0))
WIDTHS = [
    Case(channels=1, groups=3, batch=3, **POINT),
    Case(channels=3, groups=4, softmax=True, **POINT),
    Case(channels=8, batch=2, kernel=(1, 2), softmax=True),
    Case(channels=16, groups=3, **POINT),
    Case(channels=32, groups=2, batch=2, **POINT),
    Case(channels=48, **POINT),
    Case(channels=300, kernel=(1, 1), size=(2, 2), pattern=dict(padding=0)),
]


@pytest.mark.parametrize("case", PATTERNS + WIDTHS, ids=str)
def test_output_and_gradients_match_the_reference(case, device, close):
    inputs = case.inputs(device)
    close.relative(actual(case, *inputs), expected(case, *inputs), FLOAT32)


@pytest.mark.parametrize("softmax", [False, True])
def test_float64_is_computed_in_float64(softmax, device, close):
    case = Case(kernel=(2, 2), channels=3, softmax=softmax, pattern=dict(offset_scale=0.7))
    inputs = case.inputs(device, torch.float64)
    close.relative(actual(case, *inputs), expected(case, *inputs), FLOAT64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softmax", [False, True])
def test_16_bit_tensors_are_computed_in_float32_and_rounded_once(dtype, softmax, device, close):
    case = Case(kernel=(2, 2), groups=2, channels=8, softmax=softmax)
    inputs = case.inputs(device, dtype)
    close.rounded(actual(case, *inputs), expected(case, *inputs), dtype)


def test_gradients_have_the_types_of_their_tensors(device):
    case = Case()
    value, offset, mask, grad = case.inputs(device)
    result = actual(case, value.half(), offset, mask.bfloat16(), grad.half())
    assert [tensor.dtype for tensor in result] == [torch.half, torch.half, torch.float32, torch.bfloat16]


def test_tiles_cover_a_map_of_any_size(device, close, monkeypatch):
    monkeypatch.setattr(_triton, "_MOST_ROWS", 4)
    case = Case(groups=2, **POINT | dict(size=(3, 5)))
    inputs = case.inputs(device)
    close.relative(actual(case, *inputs), expected(case, *inputs), FLOAT32)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, -40.0])
def test_a_point_at_no_finite_place_or_far_outside_contributes_nothing(bad, device, close):
    case = Case(size=(3, 3), kernel=(1, 2), channels=2)
    value, offset, mask, grad = case.inputs(device)
    offset[0, 1, 2, 1] = bad
    result = actual(case, value, offset, mask, grad)
    assert all(tensor.isfinite().all() for tensor in result)
    assert (result[2][0, 1, 2, :2] == 0).all()
    assert result[3][0, 1, 2, 0] == 0
    offset[0, 1, 2, :2] = -100.0
    close.relative(result, expected(case, value, offset, mask, grad), FLOAT32)


def test_derivative_at_whole_coordinates_is_the_one_to_the_right_and_below(device):
    case = Case(size=(3, 4), kernel=(1, 1), channels=1, pattern=dict(padding=0))
    value, offset, mask, _ = case.inputs(device, torch.float64)
    grad_offset = kernels.backward(
        torch.ones_like(value), value, offset * 0, torch.ones_like(mask), case.geometry, False
    )[1]
    padded = torch.nn.functional.pad(value[0, :, :, 0], (0, 1, 0, 1))
    torch.testing.assert_close(grad_offset[0, :, :, 0], padded[:-1, 1:] - padded[:-1, :-1])
    torch.testing.assert_close(grad_offset[0, :, :, 1], padded[1:, :-1] - padded[:-1, :-1])


@pytest.mark.parametrize("beyond", [0, 1])
def test_offset_and_mask_may_be_views_of_one_projection(beyond, device, close):
    case = Case(kernel=(1, 1), groups=2, batch=2, size=(3, 2))
    value, offset, mask, grad = case.inputs(device)
    merged = torch.cat([offset, mask, torch.full((*mask.shape[:3], beyond), torch.nan, device=device)], -1)
    points = mask.shape[3]
    views = merged[..., : 2 * points], merged[..., 2 * points : 3 * points]
    assert [_triton.pixel_pitch(view) for view in views] == [merged.shape[3]] * 2
    close.same_bits(actual(case, value, *views, grad), actual(case, value, offset, mask, grad))


def test_memory_layout_does_not_matter(device, close):
    case = Case(batch=2, size=(3, 2))
    inputs = case.inputs(device)
    scattered = [tensor.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for tensor in inputs]
    close.same_bits(actual(case, *scattered), actual(case, *inputs))
    grad = inputs[3].mean().expand_as(inputs[3])
    close.relative(actual(case, *inputs[:3], grad), expected(case, *inputs[:3], grad), FLOAT32)


@pytest.mark.parametrize("size", [dict(batch=0), dict(channels=0), dict(size=(0, 3))])
def test_empty_tensors(size, device):
    case = Case(**size, pattern=dict(padding=2))
    value, offset, mask, grad = case.inputs(device)
    output, *gradients = actual(case, value, offset, mask, grad)
    assert output.shape == grad.shape
    assert [tensor.shape for tensor in gradients] == [value.shape, offset.shape, mask.shape]
    assert not any(tensor.count_nonzero() for tensor in (output, *gradients))


def test_each_image_of_a_batch_is_computed_alone(device, close, deterministic):
    case, alone = Case(kernel=(2, 1), batch=2), Case(kernel=(2, 1))
    inputs = case.inputs(device)
    inputs[3][1] *= 1e4
    together = actual(case, *inputs)
    for i in range(2):
        one = slice(i, i + 1)
        close.same_bits(actual(alone, *(t[one] for t in inputs)), [t[one] for t in together])


@pytest.mark.parametrize("softmax", [False, True])
def test_deterministic_backward_does_not_depend_on_the_order_of_programs(
    softmax, device, close, in_reverse, deterministic, monkeypatch
):
    monkeypatch.setattr(_triton, "_MOST_ROWS", 4)
    case = Case(softmax=softmax, **POINT)
    inputs = case.inputs(device)
    forwards = actual(case, *inputs)
    torch.use_deterministic_algorithms(False)
    default = actual(case, *inputs)
    close.relative(forwards, default, 1e-6)
    close.relative(forwards, expected(case, *inputs), FLOAT32)
    in_reverse()
    default_in_reverse = actual(case, *inputs)
    torch.use_deterministic_algorithms(True)
    close.same_bits(actual(case, *inputs), forwards)
    if device == "cpu":
        # Else the test would prove nothing.
        assert not torch.equal(default[1], default_in_reverse[1])


@pytest.mark.parametrize(("grad_scale", "mask_scale"), [(1e30, 1e6), (1e-30, 1e-3), (1e-3, 1e-20), (0, 1)])
def test_fixed_point_holds_gradients_of_any_size(grad_scale, mask_scale, device, close, deterministic):
    case = Case(channels=2, **POINT | dict(size=(4, 4)))
    value, offset, mask, grad = case.inputs(device)
    # All samples in one place: the sum is as large as the bound.
    offset[..., 0::2] = -torch.arange(4, device=device)[:, None] + 1.3
    offset[..., 1::2] = -torch.arange(4, device=device)[:, None, None] + 1.7
    inputs = value, offset, mask.abs() * mask_scale, grad.abs() * grad_scale
    close.relative(actual(case, *inputs), expected(case, *inputs), FLOAT32)


def test_gradients_that_are_not_finite_stay_so_in_their_image_alone(device, deterministic):
    case = Case(batch=3, size=(3, 3))
    value, offset, mask, grad = case.inputs(device)
    grad[0, 1, 1, 0], grad[1, 2, 0, 1] = math.nan, math.inf
    grad_value = actual(case, value, offset, mask, grad)[1]
    assert grad_value[:2].isnan().any((1, 2, 3)).all()
    assert grad_value[2].isfinite().all()


def test_official_numbers(parity, device, close):
    about, tensors = parity("dcnv3/core")
    # The interpreter is slow: cases of one image that fits a tile.
    few = {name: case for name, case in about["cases"].items() if tensors[f"{name}.mask"].numel() < 1000}
    assert few
    for name, case in few.items():
        geometry = Geometry.of(
            case["group"],
            (case["kernel_h"], case["kernel_w"]),
            (case["stride_h"], case["stride_w"]),
            (case["pad_h"], case["pad_w"]),
            (case["dilation_h"], case["dilation_w"]),
            case["offset_scale"],
            bool(case["remove_center"]),
        )
        inputs = [tensors[f"{name}.{key}"].to(device) for key in ("input", "offset", "mask")]
        output = kernels.forward(*inputs, geometry, False)
        gradients = kernels.backward(
            tensors[f"{name}.loss_weight"].to(device).contiguous(), *inputs, geometry, False
        )
        found, stored = [output], [tensors[f"{name}.output"]]
        for key, gradient in zip(("input", "offset", "mask"), gradients, strict=True):
            found.append(gradient)
            stored.append(tensors.get(f"{name}.grad_{key}", gradient))
        close.relative(found, stored, 1e-11)


def test_maps_too_large_for_32_bit_pixel_numbers_are_refused():
    with pytest.raises(ValueError, match=r"dcnv3: value: expected maps of less than 2\^31 pixels"):
        _triton.check_map_size("dcnv3: value", 2**16, 2**15)
